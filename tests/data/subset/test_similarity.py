# SPDX-License-Identifier: MIT
"""How representative a subset is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene_folders import write_scene
from scipy.stats import ks_2samp

from bpfn_cli.data.subset import plan
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import ks_distance


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scipy's, of the p-value
@given(
    first=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    second=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
)
def test_ks_distance_is_scipys(first, second):
    expected = ks_2samp(first, second, method="asymp").statistic
    assert ks_distance(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-12)


def test_ks_distance_by_hand():
    assert ks_distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == 0.5
    assert ks_distance(np.array([1.0]), np.array([1.0, 1.0])) == 0
    assert ks_distance(np.array([1.0]), np.array([2.0])) == 1


def test_similarity_compares_flow_lengths_and_depths_of_subset_and_source(tmp_path, out):
    # scene k: two points 4 m and 8 m deep, with flow 3 k and 4 k; hash, seed 0 keeps scene 6 of 0..9
    for scene in range(10):
        pc1 = np.array([[0, 0, -4], [0, 0, -8]])
        write_scene(
            tmp_path / "source" / "train" / f"{scene:07d}",
            pc1,
            np.add(pc1, [[0, 3 * scene, 0], [0, 4 * scene, 0]]),
        )
    similarity = make_subset(tmp_path / "source", out, SubsetOptions(0.1)).similarity
    # lengths of the subset: 18, 24; of the source 0, 0, 3, 4, 6, 8, 9, 12, 12, 15, 16, 18, 20, ..., 36:
    # below 18 lie 11 of 20 (and none of the subset), up to 24 lie 16 of 20 (and all of the subset)
    assert similarity.flow_length == 0.55
    assert similarity.depth == 0
    assert (similarity.source_scenes, similarity.subset_scenes) == (10, 1)


def test_similarity_of_the_whole_is_perfect(source, out):
    similarity = make_subset(source, out, SubsetOptions(1.0)).similarity
    assert (similarity.flow_length, similarity.depth) == (0, 0)


def test_similarity_samples_scenes_by_another_order_than_the_choice(source, out, monkeypatch):
    monkeypatch.setattr(plan, "SAMPLED_SCENES", 2)
    found = make_subset(source, out, SubsetOptions()).similarity  # keeps 2 of 10
    assert found.flow_length > 0
    assert (found.source_scenes, found.subset_scenes) == (2, 2)
