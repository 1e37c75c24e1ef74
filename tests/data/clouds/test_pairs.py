# SPDX-License-Identifier: MIT
"""Both clouds in one file, under the names that people use; and files that are read once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cloud_files import POINTS, refusal

from bpfn_cli.data.clouds import pairs
from bpfn_cli.data.clouds.pairs import CloudPair, PairReader, holds_pair, read_cloud_pair

FIRST, SECOND = np.array(POINTS), np.ones((5, 3))
FLOW = np.full((2, 3), 0.5, np.float32)


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "pair.npz", **arrays)
    return folder / "pair.npz"


@pytest.mark.parametrize(
    "names", [("pc1", "pc2"), ("pc0", "pc1"), ("pos1", "pos2"), ("points1", "points2")], ids=" ".join
)
@pytest.mark.parametrize("flow", ["", "flow", "gt", "scene_flow"])
def test_pair_is_read_under_the_names_of_others(tmp_path: Path, names: tuple[str, str], flow: str) -> None:
    arrays = dict(zip(names, (FIRST, np.c_[SECOND, SECOND]), strict=True)) | ({flow: FLOW} if flow else {})
    path = saved(tmp_path, color1=np.zeros((2, 3)), **arrays)
    assert holds_pair(path)
    read = read_cloud_pair(path)
    assert read.first.points.tolist() == POINTS
    assert read.second.points.tolist() == SECOND.tolist()
    if flow:
        assert read.truth is not None and read.known is not None
        assert read.truth.tolist() == FLOW.tolist()
        assert read.known.all()
    else:
        assert read.truth is None


def test_pc1_beside_pc0_is_the_second_cloud_and_that_is_said(tmp_path: Path) -> None:
    read = read_cloud_pair(saved(tmp_path, pc1=SECOND, pc0=FIRST))
    assert read.first.points.tolist() == POINTS
    assert read.first.notes == ("beside pc0, pc1 is the second cloud",)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (("pc0", "pc1", "pc2"), "several pairs: pc1 to pc2 or pc0 to pc1; write the pair"),
        (("pc1", "pc2", "pos1", "pos2"), "several pairs: pc1 to pc2 or pos1 to pos2"),
        (("pc1",), "no pair of arrays: pc1 and pc2 or pc0 and pc1 or "),
        (("a", "b"), "it holds a, b"),
        (("pc1", "pc2", "flow", "gt"), "several flows: flow, gt"),
    ],
)
def test_ambiguous_names_are_refused(tmp_path: Path, arrays: tuple[str, ...], words: str) -> None:
    assert words in refusal(saved(tmp_path, **dict.fromkeys(arrays, FIRST)), read_cloud_pair)


def test_rows_are_known_where_flow_and_masks_are(tmp_path: Path) -> None:
    first = np.arange(1, 16, dtype=np.float32).reshape(5, 3)
    first[1], first[2] = 0, np.nan
    flow = np.ones((5, 3))
    flow[3, 1] = np.inf
    read = read_cloud_pair(saved(tmp_path, pos1=first, pos2=SECOND, gt=flow))
    assert read.known is not None and read.known.tolist() == [True, False, False, False, True]
    read = read_cloud_pair(saved(tmp_path, points1=first, points2=SECOND, flow=flow, valid_mask1=np.arange(5)))
    assert read.known is not None and read.known.tolist() == [False, False, False, False, True]


def test_faults_name_the_array(tmp_path: Path) -> None:
    bad = saved(tmp_path, pc1=FIRST, pc2=np.full((5, 3), np.nan))
    assert "pair.npz: pc2: no row is a point: 5 NaN or infinite" in refusal(bad, read_cloud_pair)
    bad = saved(tmp_path, pc1=FIRST, pc2=np.zeros((3, 100)))
    assert "pair.npz: pc2: shape (3, 100) found" in refusal(bad, read_cloud_pair)
    bad = saved(tmp_path, pc1=FIRST, pc2=SECOND, flow=SECOND)
    assert "flow has 5 rows, pc1 2" in refusal(bad, read_cloud_pair)
    bad = saved(tmp_path, pc1=FIRST, pc2=SECOND, flow=np.ones(2))
    assert "flow has shape (2,), pc1 2" in refusal(bad, read_cloud_pair)
    bad = saved(tmp_path, pc1=FIRST, pc2=SECOND, flow=FLOW, valid=np.ones(3))
    assert "valid has shape (3,), (2,) expected" in refusal(bad, read_cloud_pair)
    assert "must be an .npz with pc1 and pc2" in refusal(tmp_path / "pair.ply", read_cloud_pair)


@pytest.mark.realdata
def test_argoverse_pair_is_read() -> None:
    if "BPFN_REAL_DATA" not in os.environ:
        pytest.skip("BPFN_REAL_DATA, the folder of real samples, is not set")
    read = read_cloud_pair(Path(os.environ["BPFN_REAL_DATA"]) / "argoverse2" / "pair.npz")
    assert read.first.points.shape == (78502, 3)
    assert read.second.points.shape == (95518, 3)
    assert read.truth is not None and read.truth.shape == (78502, 3)
    assert read.known is not None and read.known.all()
    assert read.dynamic is not None and read.dynamic.sum() == 1819


def test_mask_of_what_moves_is_read(tmp_path: Path) -> None:
    read = read_cloud_pair(saved(tmp_path, pc1=FIRST, pc2=SECOND, flow=FLOW, is_dynamic=np.array([0, 2])))
    assert read.dynamic is not None and read.dynamic.tolist() == [False, True]
    bad = saved(tmp_path, pc1=FIRST, pc2=SECOND, flow=FLOW, dynamic=np.ones(3))
    assert "dynamic has shape (3,), (2,) expected" in refusal(bad, read_cloud_pair)


def test_reader_reads_each_frame_of_a_sequence_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.npy" for index in range(4)]
    for index, path in enumerate(paths):
        np.save(path, FIRST + index)
    saved(tmp_path, pc1=FIRST, pc2=SECOND, flow=FLOW)
    seen, read = [], pairs.read_cloud
    monkeypatch.setattr(pairs, "read_cloud", lambda path, columns: (seen.append(path.stem), read(path, columns))[1])
    both = [(0, 1), (1, 2), (2, 3), (0, 1)]
    wanted = [CloudPair(paths[first], paths[second]) for first, second in both] + [CloudPair(tmp_path / "pair.npz")]
    answers = list(map(PairReader(), wanted))
    for (first, second), clouds in zip(both, answers, strict=False):
        assert np.array_equal(clouds.first.points, FIRST + first)
        assert np.array_equal(clouds.second.points, FIRST + second)
        assert clouds.truth is None
    assert answers[-1].truth is not None and np.array_equal(answers[-1].truth, FLOW)
    assert seen == ["0", "1", "2", "3", "0", "1"]


def test_pairs_of_a_sequence_lead_to_each_other() -> None:
    first, second = CloudPair(Path("a.ply"), Path("b.ply")), CloudPair(Path("b.ply"), Path("c.ply"))
    assert first.leads_to(second)
    assert not second.leads_to(first)
    assert not CloudPair(Path("a.npz")).leads_to(CloudPair(Path("b.npz")))
    assert not first.leads_to(None)
