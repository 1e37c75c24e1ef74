# SPDX-License-Identifier: MIT
"""Notes on results, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bpfn_cli.prediction import checks
from bpfn_cli.prediction.checks import nearest_m, notes_on_fit, notes_on_pose


def test_nearest_distance_by_hand() -> None:
    cloud = np.float32([[0, 0, 0], [10, 0, 0], [0, 10, 0]])
    points = np.float32([[1, 0, 0], [10, 0, 2], [0, 10, 3]])  # 1, 2 and 3 m away
    assert nearest_m(cloud, points) == (2.0,)
    assert nearest_m(cloud, points, cloud, np.float32([[0, 10, 4], [13, 0, 0]])) == (2.0, 0.0, 3.5)


def test_one_search_serves_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    searched, knn = [], checks.knn
    monkeypatch.setattr(checks, "knn", lambda *args: (searched.append(args), knn(*args))[1])
    cloud = np.float32([[0, 0, 0], [1, 0, 0]])
    assert nearest_m(cloud, cloud, cloud, cloud) == (0.0, 0.0, 0.0)
    assert len(searched) == 1


@pytest.mark.parametrize(
    ("before_m", "after_m", "words"),
    [
        (0.5, 0.6, "the flow brings the clouds no closer"),
        (0.5, 0.4, ""),
        (0.010, 0.015, ""),  # as near as neighbors in one cloud
        (0.0, 0.1, "the clouds are the same"),
        (6.0, 7.0, "the clouds are 6 m apart"),
    ],
)
def test_fit_is_noted_where_the_flow_does_not_help(before_m: float, after_m: float, words: str) -> None:
    said = list(notes_on_fit(before_m, after_m))
    assert len(said) == bool(words)
    assert all(note.startswith(words) for note in said)


def test_inverse_pose_is_noted_if_it_is_clearly_closer() -> None:
    assert not list(notes_on_pose(0.5, 0.41))
    assert "(0.3 m, not 0.5 m)" in next(notes_on_pose(0.5, 0.3))
