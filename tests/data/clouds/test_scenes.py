# SPDX-License-Identifier: MIT
"""Scenes of datasets as pairs: their rows are those of the files, in the axes of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scene_folders import write_scene

from bpfn_cli.data.clouds.pairs import Clouds, PairReader
from bpfn_cli.data.clouds.scenes import CUT
from bpfn_cli.data.clouds.search import Source, find_source
from bpfn_cli.data.inspect import describe_scene
from bpfn_cli.errors import DataError
from bpfn_cli.frames import axes_of

CHANCE = np.random.default_rng(0)


def cloud(low: tuple[float, ...], high: tuple[float, ...], points: int = 50) -> np.ndarray:
    return CHANCE.uniform(low, high, (points, 3)).astype(np.float32)


def kitti(root: Path, name: str) -> np.ndarray:
    """A scene with ground in row 3 and a point beyond 35 m in row 5; x left, y up, z forward."""
    pc1 = cloud((-5, -1, 4), (5, 2, 30))
    pc1[3, 1], pc1[5, 2] = -1.7, 40
    write_scene(root / name, pc1, pc1 + np.float32([0.1, 0, -0.5]))
    return pc1


def flyingthings3d(root: Path, split: str, name: str) -> np.ndarray:
    """x right, y up, z backward."""
    pc1 = cloud((-5, -2, -30), (5, 3, -2))
    write_scene(root / split / name, pc1, pc1 + np.float32([0.1, 0.2, 0.3]))
    return pc1


def search(path: Path) -> Source:
    return find_source(path, None, known_frame=False)


def read(source: Source, index: int = 0) -> Clouds:
    return source.pairs[index].read(PairReader())


def test_kitti_scene_keeps_the_rows_of_its_file(tmp_path: Path) -> None:
    pc1 = kitti(tmp_path / "kitti", "000002")
    source = search(tmp_path / "kitti" / "000002")
    assert (source.frame, source.many, len(source.pairs)) == ("internal", False, 1)
    assert source.origin == "of KITTI scenes"
    assert source.pairs[0].name == "000002"
    clouds = read(source)
    kept = ~np.isin(np.arange(50), (3, 5))
    assert np.array_equal(clouds.first.valid, kept)
    assert np.array_equal(clouds.first.points[kept], pc1[kept])
    assert clouds.first.left_out == {CUT: 2}
    assert len(clouds.second.points) == 48
    assert clouds.known is not None and clouds.truth is not None
    assert np.array_equal(clouds.known, kept)
    assert np.allclose(clouds.truth[kept], (0.1, 0, -0.5), atol=1e-5)


def test_dataset_is_its_test_scenes_and_a_split_folder_its_own(tmp_path: Path) -> None:
    root = tmp_path / "things"
    for split, name in (("train", "0000000"), ("val", "0000001"), ("val", "0000002")):
        flyingthings3d(root, split, name)
    assert [pair.name for pair in search(root).pairs] == ["0000001", "0000002"]
    assert [pair.name for pair in search(root / "val").pairs] == ["0000001", "0000002"]
    assert [pair.name for pair in search(root / "train").pairs] == ["0000000"]
    assert [pair.name for pair in search(root / "val" / "0000002").pairs] == ["0000002"]
    assert search(root).frame == "flyingthings3d"


@pytest.mark.parametrize(("inside", "path"), [("val", "0000001"), ("val", "."), ("val/0000001", "."), ("", "val")])
def test_scene_is_found_from_inside_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, path: str
) -> None:
    root = tmp_path / "things"
    for split, name in (("train", "0000000"), ("val", "0000001")):
        flyingthings3d(root, split, name)
    monkeypatch.chdir(root / inside)
    source = search(Path(path))
    assert (source.frame, [pair.name for pair in source.pairs]) == ("flyingthings3d", ["0000001"])


def test_name_without_its_split_must_belong_to_one(tmp_path: Path) -> None:
    root = tmp_path / "things"
    for split, name in (("train", "0000000"), ("train", "0000001"), ("val", "0000000")):
        flyingthings3d(root, split, name)
    assert str(search(root / "0000001").pairs[0]) == str(root / "train" / "0000001")
    with pytest.raises(
        DataError, match=r"0000000: a scene of train and of val; give the split, such as .*train/0000000"
    ):
        search(root / "0000000")


def test_scene_is_in_the_axes_of_its_file(tmp_path: Path) -> None:
    pc1 = flyingthings3d(tmp_path / "things", "val", "0000001")
    flyingthings3d(tmp_path / "things", "train", "0000000")
    clouds = read(search(tmp_path / "things"))
    assert np.array_equal(clouds.first.points, pc1)
    assert clouds.truth is not None and np.allclose(clouds.truth, (0.1, 0.2, 0.3), atol=1e-5)


def test_occluded_scenes_are_in_the_axes_of_their_files(tmp_path: Path) -> None:
    pos1 = cloud((2, -5, -1), (30, 5, 2))  # x forward, y left, z up
    pos1[7, 0] = 50
    np.savez(tmp_path / "000002.npz", pos1=pos1, pos2=pos1 + 1, gt=np.full((50, 3), (1, 2, 3), np.float32))
    source = search(tmp_path / "000002.npz")
    assert (source.frame, source.many) == ("lidar", False)
    clouds = read(source)
    assert np.array_equal(clouds.first.points[clouds.first.valid], np.delete(pos1, 7, axis=0))
    assert clouds.first.left_out == {CUT: 1}
    assert clouds.truth is not None and clouds.truth[0].tolist() == [1, 2, 3]
    name = "TEST_A_0000_left_0006-0"
    points1 = cloud((-5, -2, 2), (5, 3, 30))  # x right, y up, z forward
    mask = np.arange(50) % 2
    (tmp_path / "ft3d").mkdir()
    np.savez(tmp_path / "ft3d" / name, points1=points1, points2=points1, flow=points1 / 9, valid_mask1=mask)
    source = search(tmp_path / "ft3d")
    assert source.frame == "right,up,forward"
    clouds = read(source)
    assert np.array_equal(clouds.first.points, points1)
    assert clouds.known is not None and np.array_equal(clouds.known, mask == 1)


def test_given_frame_reads_the_files_as_they_are(tmp_path: Path) -> None:
    kitti(tmp_path / "scans", "000002")
    source = find_source(tmp_path / "scans", None, known_frame=True)
    assert source.frame is None
    assert read(source).first.valid.all()


def test_folders_with_names_of_their_own_are_read_as_files(tmp_path: Path) -> None:
    kitti(tmp_path / "others", "first")
    kitti(tmp_path / "others", "000002")
    assert search(tmp_path / "others").frame is None
    assert search(tmp_path / "others" / "first").origin == ""


def test_files_that_only_look_like_scenes_need_a_frame(tmp_path: Path) -> None:
    for name in ("000000", "000001"):  # names of KITTI with occlusion, and none of its arrays
        pc1 = cloud((-5, -1, 4), (5, 2, 30))
        np.savez(tmp_path / f"{name}.npz", pc1=pc1, pc2=pc1)
    taken = r"\(taken for KITTI with occlusion scenes; --frame reads the files as they are\)$"
    for path in (tmp_path, tmp_path / "000001.npz"):
        with pytest.raises(DataError, match=taken):
            search(path)
    source = find_source(tmp_path, None, known_frame=True)
    assert len(source.pairs) == 2
    assert read(source).first.points.shape == (50, 3)


def test_scene_without_points_to_evaluate_is_not_read_in_another_frame(tmp_path: Path) -> None:
    root = tmp_path / "things"
    flyingthings3d(root, "train", "0000000")
    far = cloud((-5, -2, -60), (5, 3, -40))
    write_scene(root / "val" / "0000001", far, far)
    flyingthings3d(root, "val", "0000002")
    for path in (root, root / "val", root / "val" / "0000001"):
        with pytest.raises(DataError, match=r"none of 50 points is left .*\(taken for FlyingThings3D scenes; --frame"):
            search(path)
    assert search(root / "val" / "0000002").frame == "flyingthings3d"


def test_dataset_without_test_scenes_is_not_read_in_another_frame(tmp_path: Path) -> None:
    flyingthings3d(tmp_path / "things", "train", "0000000")
    kitti(tmp_path / "kitti", "000000")  # not evaluated
    points = cloud((-5, -2, 2), (5, 3, 30))
    (tmp_path / "ft3d").mkdir()
    for name in ("TRAIN_A_0000_left_0006-0", "TRAIN_A_0364_left_0008-0"):  # the second one is not used
        arrays = {"points1": points, "points2": points, "flow": points, "valid_mask1": np.ones(50)}
        np.savez(tmp_path / "ft3d" / name, **arrays)
    for name in ("things", "kitti", "ft3d"):
        with pytest.raises(DataError, match=r"no test scenes; check the path \(taken for "):
            search(tmp_path / name)
    assert search(tmp_path / "ft3d" / "TRAIN_A_0000_left_0006-0.npz").frame == "right,up,forward"
    with pytest.raises(DataError, match="no point that is visible in both frames"):
        search(tmp_path / "ft3d" / "TRAIN_A_0364_left_0008-0.npz")


def test_file_beside_occluded_scenes_does_not_change_their_frame(tmp_path: Path) -> None:
    points = cloud((2, -5, -1), (30, 5, 2))
    for name in ("000002", "more"):
        np.savez(tmp_path / f"{name}.npz", pos1=points, pos2=points, gt=points)
    for path in (tmp_path, tmp_path / "000002.npz"):
        with pytest.raises(DataError, match=r"more.npz: not the name of a kitti_occluded scene; .* \(taken for "):
            search(path)


@pytest.mark.parametrize(
    ("record", "message"), [("synthetic.json.partial", "unfinished"), ("subset.json", "subset.json")]
)
def test_scene_of_a_damaged_dataset_is_not_read_in_another_frame(tmp_path: Path, record: str, message: str) -> None:
    root = tmp_path / "things"
    flyingthings3d(root, "val", "0000002")
    (root / record).write_text("{")
    flyingthings3d(tmp_path / "others", "val", "0000002")
    for path in (root, root / "val", root / "val" / "0000002"):
        with pytest.raises(DataError, match=rf"{message}.* \(taken for dataset scenes; --frame reads"):
            search(path)
    with pytest.raises(DataError, match=message):
        describe_scene(root / "val" / "0000002")
    assert find_source(root / "val" / "0000002", None, known_frame=True).frame is None
    assert search(tmp_path / "others" / "val" / "0000002").frame == "flyingthings3d"


@pytest.mark.parametrize("frame", ["lidar", "flyingthings3d", "right,up,forward", "internal"])
def test_axes_lead_there_and_back(frame: str) -> None:
    points = cloud((-1, -1, -1), (1, 1, 1))
    assert np.array_equal(points @ axes_of(frame).T @ axes_of(frame), points)
