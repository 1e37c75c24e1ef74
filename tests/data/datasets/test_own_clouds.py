# SPDX-License-Identifier: MIT
"""One's own clouds without labels: what is read, and what is refused with one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfn_cli.cli.main import run
from bpfn_cli.data.clouds.agreement import disagreement
from bpfn_cli.data.datasets import describe, find_data, find_dataset
from bpfn_cli.data.inspect import check_dataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.errors import BpfnError, DataError, UsageError
from bpfn_cli.training.job import split_scenes


def street(seed: int = 0) -> np.ndarray:
    """(N, 3) float32 metres within 35 m, axes of a LiDAR."""
    cloud = np.random.default_rng(seed).normal(0, (12, 8, 0.7), (2000, 3)).astype(np.float32)
    return cloud[np.hypot(cloud[:, 0], cloud[:, 1]) < 30]


def write_frames(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        np.save(folder / f"{number}.npy", street() + np.float32(0.1 * number))
    return folder


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "scans")


def test_frames_are_pairs_of_neighbors_in_internal_axes_and_without_flow(frames: Path) -> None:
    dataset = find_data(frames, frame="lidar").open("train")
    assert (dataset.kind, dataset.names, dataset.has_flow) == ("pairs", ("0", "1"), False)
    assert describe(dataset) == f"pairs, 2 pairs without true flow in {frames}"
    scene = dataset.load(1)
    x, y, z = street().T + np.float32(0.1)
    np.testing.assert_allclose(scene.pc1, np.stack([y, z, x], axis=1), atol=1e-6)
    np.testing.assert_allclose(scene.pc2, scene.pc1 + 0.1, atol=1e-5)
    assert (scene.flow, scene.valid, scene.camera) == (None, None, None)
    with pytest.raises(DataError, match=r"^scene 1: its true flow is unknown; use scenes with labels$"):
        _ = scene.truth
    (batch,) = evaluation_batches(dataset, [0], points=64, batch_size=1, seed=0)
    assert batch.flow is None and batch.pc1.shape == batch.pc2.shape == (1, 64, 3)
    assert pickle.loads(pickle.dumps(dataset)).load(1).name == "1"


def test_pairs_that_share_clouds_are_held_out_together(tmp_path: Path) -> None:
    dataset = find_data(write_frames(tmp_path / "scans", 101), frame="lidar").open("train")
    blocks = [dataset.format.sequence(name) for name in sorted(dataset.names, key=int)]
    assert blocks == [block for block in dict.fromkeys(blocks) for _ in range(5)]  # a twentieth of 100 pairs
    for seed in range(3):
        held_out = sorted(int(dataset.names[index]) for index in split_scenes(dataset, 0.05, seed).held_out)
        assert held_out == list(range(held_out[0], held_out[0] + 5))
    few = find_data(write_frames(tmp_path / "few", 3), frame="lidar").open("train")
    assert len({few.format.sequence(name) for name in few.names}) == 2


def test_list_names_pairs_of_several_logs_whose_files_have_equal_names(tmp_path: Path) -> None:
    for log in ("a", "b"):
        write_frames(tmp_path / log, 2)
    listed = tmp_path / "pairs.txt"
    listed.write_text("a/0.npy a/1.npy\nb/0.npy b/1.npy\n")
    assert find_data(listed, frame="lidar").open("train").names == ("a/0.npy", "b/0.npy")
    listed.write_text("a/0.npy a/1.npy\na/0.npy b/1.npy\n")
    with pytest.raises(DataError, match=r"a/0\.npy: first cloud of two pairs; list it once"):
        find_data(listed, frame="lidar")


def test_flow_in_a_file_is_not_used_and_far_points_and_ground_are_left_out(tmp_path: Path) -> None:
    cloud = street()
    road = np.stack([*np.random.default_rng(1).uniform(-25, 25, (2, 2000)), np.full(2000, -1.7)], axis=1)
    both = np.concatenate([cloud, road, [[40, 0, 0]]]).astype(np.float32)
    path = tmp_path / "pair.npz"
    np.savez(path, pc1=both, pc2=both, flow=np.zeros_like(both))
    scene = find_data(path, frame="lidar").open("train").load(0)
    assert (len(scene.pc1), scene.flow) == (len(both) - 1, None)
    without = find_data(path, frame="lidar", remove_ground=True).open("train").load(0)
    assert len(without.pc1) < len(both) - 1900


def test_identity_changes_with_the_files_the_pairing_the_frame_and_the_ground(frames: Path) -> None:
    listed = frames / "pairs.txt"

    def identity(lines: str, **reading: Any) -> str:
        listed.write_text(lines)
        return find_data(listed, **{"frame": "lidar", **reading}).identity.sha256

    first = identity("0.npy 1.npy\n1.npy 2.npy\n")
    assert identity("0.npy 1.npy\n1.npy 2.npy\n") == first
    others = {
        identity("0.npy 2.npy\n1.npy 2.npy\n"),
        identity("0.npy 1.npy\n1.npy 2.npy\n", frame="camera"),
        identity("0.npy 1.npy\n1.npy 2.npy\n", remove_ground=True),
    }
    np.save(frames / "2.npy", street(1))
    assert len(others | {first, identity("0.npy 1.npy\n1.npy 2.npy\n")}) == 5


def test_check_shows_that_there_is_no_true_flow(frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (split,) = check_dataset(find_data(frames, frame="lidar")).splits
    assert (split.split, split.scenes, split.has_flow, split.flow_length_m) == ("train", 2, False, ())
    assert split.depth_m
    words = ["data", "check", str(frames), "--frame", "lidar", "--processes", "1"]
    assert run(words) == 0
    assert "no true flow" in capsys.readouterr().out
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["splits"][0]["has_flow"]) == ("pairs", False)


def missing(root: Path) -> Path:
    write_frames(root)
    (root / "pairs.txt").write_text("0.npy 1.npy\n1.npy 7.npy\n")
    return root / "pairs.txt"


def empty_file(root: Path) -> Path:
    write_frames(root)
    (root / "1.npy").write_bytes(b"")
    return root


def no_points(root: Path) -> Path:
    write_frames(root)
    np.save(root / "1.npy", np.empty((0, 3), np.float32))
    return root


def other_unit(root: Path) -> Path:
    write_frames(root, 2)
    np.save(root / "1.npy", street() * 1000)
    return root


def other_axes(root: Path) -> Path:
    write_frames(root, 2)
    np.save(root / "1.npy", street()[:, [1, 2, 0]])
    return root


def other_place(root: Path) -> Path:
    write_frames(root, 2)
    np.save(root / "1.npy", street() + np.float32(200))
    return root


def other_ending(root: Path) -> Path:
    write_frames(root, 1)
    np.c_[street(), np.zeros((len(street()), 2))].astype(np.float32).tofile(root / "1.pcd.bin")
    (root / "pairs.txt").write_text("0.npy 1.pcd.bin")
    return root / "pairs.txt"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (missing, "line 2: {root}/7.npy: no such file; paths are relative to the list"),
        (empty_file, "{root}/1.npy: empty; write it again, or leave the pair out"),
        (no_points, "{root}/1.npy: empty, at least one row expected"),
        (other_unit, "coordinates up to"),
        (other_axes, "the clouds are flat along z and along y; are they in different frames? transform both to one"),
        (other_place, "m apart; are they of one place, frame and unit?"),
        (other_ending, "one cloud is in frame nuscenes by its ending, the other is not; transform both to one frame"),
    ],
)
def test_bad_pairs_are_refused_with_one_line(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    source = make(tmp_path / "scans")
    with pytest.raises(BpfnError) as caught:
        dataset = find_data(source, frame="lidar")
        dataset.format.check(dataset.open("train"))  # type: ignore[attr-defined]
    assert expected.format(root=tmp_path / "scans") in str(caught.value)
    assert str(caught.value).isprintable()


def test_units_within_reach_are_told_by_the_extents() -> None:
    assert "are they in different units? convert both to metres" in disagreement(street(), street() / 100)
    assert disagreement(street(), street(1)) == ""


def test_frame_must_be_known_and_is_only_for_clouds_of_ones_own(frames: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the axes of these clouds are unknown; give --frame \(data\.frame\), one of"):
        find_data(frames, "pairs")
    with pytest.raises(UsageError, match="sideways is not a direction"):
        find_data(frames, frame="sideways")
    with pytest.raises(UsageError, match=r"^data\.remove_ground: only for clouds of your own"):
        find_data(frames, remove_ground=True)
    with pytest.raises(UsageError, match=r"^data\.frame lidar: only for clouds of your own"):
        find_data(frames, "kitti", frame="lidar")
    with pytest.raises(DataError, match="no dataset"):
        find_dataset(frames)
    with pytest.raises(UsageError, match="split test: pairs has no such split"):
        find_data(frames, frame="lidar").open("test")
    (bins := tmp_path / "bins").mkdir()
    for number in range(2):
        np.c_[street(), np.zeros((len(street()), 2))].astype(np.float32).tofile(bins / f"{number}.pcd.bin")
    found = find_data(bins, "pairs").open("train").load(0)  # nuScenes: y forward
    np.testing.assert_array_equal(found.pc1[:, 2], street()[:, 1])
