# SPDX-License-Identifier: MIT
"""Scenes with occlusion and LiDAR logs: frames, masks, cuts, bad files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from scene_folders import damage, write_log, write_occluded

from bpfn_cli.data.datasets import describe, find_dataset, open_dataset, sequence_of
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.errors import BpfnError, DataError, UsageError


def test_things_turn_x_and_keep_the_mask(tmp_path: Path) -> None:
    root = write_occluded(
        tmp_path, points1=np.array([[1, 2, 3]] * 12, np.float32), flow=np.array([[4, 5, 6]] * 12, np.float32)
    )
    scene = open_dataset(root, "train").load(0)
    assert scene.pc1[0].tolist() == [-1, 2, 3]
    assert scene.flow[0].tolist() == [-4, 5, 6]
    assert scene.valid is not None
    assert scene.valid.tolist() == [index % 3 > 0 for index in range(12)]
    assert scene.camera is not None


def test_things_have_two_splits_and_known_bad_scenes(tmp_path: Path) -> None:
    for name in ("TRAIN_A_0000_left_0006-0", "TRAIN_C_0140_left_0006-0", "TRAIN_B_0609_right_0010-0"):
        write_occluded(tmp_path, name)
    for name in ("TEST_A_0000_left_0006-0", "TEST_A_0123_right_0009-0"):
        write_occluded(tmp_path, name)
    assert open_dataset(tmp_path, "train").names == ("TRAIN_A_0000_left_0006-0",)
    for split in ("val", "test"):
        assert open_dataset(tmp_path, split).names == ("TEST_A_0000_left_0006-0",)
    identity = find_dataset(tmp_path).identity
    assert (identity.kind, identity.train_scenes, identity.val_scenes) == ("flyingthings3d_occluded", 1, 1)
    assert open_dataset(tmp_path, "train").identity() != open_dataset(tmp_path, "val").identity()


def test_far_points_are_cut_from_each_cloud(tmp_path: Path) -> None:
    points1, points2 = np.full((12, 3), 3, np.float32), np.full((12, 3), 3, np.float32)
    points1[:5, 2], points2[:2, 2] = 35, 90
    scene = open_dataset(write_occluded(tmp_path, points1=points1, points2=points2), "train").load(0)
    assert (len(scene.pc1), len(scene.pc2), len(scene.flow), len(scene.valid)) == (7, 10, 7, 7)  # type: ignore[arg-type]


def test_kitti_columns_are_turned(tmp_path: Path) -> None:
    cloud = np.array([[10, 2, 3], [40, 2, 3]], np.float32)
    np.savez(tmp_path / "000007.npz", pos1=cloud, pos2=cloud + 1, gt=np.array([[1, 2, 3]] * 2, np.float32))
    dataset = open_dataset(tmp_path, "test")
    scene = dataset.load(0)
    assert dataset.kind == "kitti_occluded"
    for split in ("test", "all"):
        assert "kitti_occluded, 1 test scenes" in describe(open_dataset(tmp_path, split))
    assert scene.pc1.tolist() == [[2, 3, 10]]
    assert scene.flow.tolist() == [[2, 3, 1]]
    assert (scene.valid, scene.camera) == (None, None)


def test_batches_carry_the_mask(tmp_path: Path) -> None:
    dataset = open_dataset(write_occluded(tmp_path), "train")
    (batch,) = evaluation_batches(dataset, [0], points=8, batch_size=1, seed=0)
    assert batch.valid is not None
    scene = dataset.load(0)
    known = {tuple(p): bool(v) for p, v in zip(scene.pc1.tolist(), scene.valid, strict=True)}  # type: ignore[arg-type]
    assert [known[tuple(p)] for p in batch.pc1[0].tolist()] == batch.valid[0].tolist()
    assert batch.to("cpu").valid is not None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"valid_mask1": np.zeros(12, bool)}, "no point with known flow"),
        ({"valid_mask1": np.ones(11, bool)}, "one row per point"),
        ({"flow": np.zeros((11, 3), np.float32)}, "one row per point"),
        ({"points1": np.full((12, 3), np.nan, np.float32)}, "NaN"),
        ({"points2": np.zeros((12, 2), np.float32)}, r"shape \(12, 2\)"),
        ({"points1": np.full((12, 3), 50, np.float32)}, "within 35 m"),
    ],
)
def test_damaged_scenes_are_named(tmp_path: Path, other: dict, said: str) -> None:
    dataset = open_dataset(write_occluded(tmp_path, **other), "train")
    with pytest.raises(DataError, match=f"TRAIN_A_0000_left_0006-0.*{said}"):
        dataset.load(0)


def test_a_foreign_file_and_a_wrong_split_are_refused(tmp_path: Path) -> None:
    write_occluded(tmp_path)
    with pytest.raises(UsageError, match="all"):
        open_dataset(tmp_path, "all")
    np.savez(tmp_path / "mine.npz", x=np.zeros(1))
    with pytest.raises(DataError, match=r"mine\.npz"):
        open_dataset(tmp_path, "train")


def test_a_log_is_its_pairs_of_sweeps(tmp_path: Path) -> None:
    write_log(tmp_path / "log.h5")
    write_log(tmp_path / "more.h5", sweeps=2)
    dataset = open_dataset(tmp_path, "test")
    assert dataset.kind == "lidar_logs"
    assert [name.split("/")[0] for name in dataset.names] == ["log", "log", "more"]
    scene = dataset.load(0)
    with h5py.File(tmp_path / "log.h5") as file:
        group = file["315966265659927216"]
        lidar, flow, valid = group["lidar"][5:, :3], group["flow"][5:], group["flow_is_valid"][5:]
    np.testing.assert_array_equal(scene.pc1, lidar[:, [1, 2, 0]])
    np.testing.assert_array_equal(scene.flow, flow[:, [1, 2, 0]])
    assert scene.valid is not None
    assert scene.valid.tolist() == valid.tolist()
    assert "3 test scenes" in describe(dataset)
    assert find_dataset(tmp_path).identity.kind == "lidar_logs"
    assert len(dataset.identity()) == 64


def test_far_and_ground_points_of_a_log_are_cut(tmp_path: Path) -> None:
    lidar = np.full((20, 4), 3, np.float32)
    lidar[:8, 0] = 100
    write_log(tmp_path / "log.h5", lidar=lidar)
    scene = open_dataset(tmp_path, "test").load(0)
    assert len(scene.pc1) == len(scene.pc2) == 12


def test_log_gives_categories_and_the_motion_of_the_vehicle(tmp_path: Path) -> None:
    """It drives 1 m forward and turns left, in x forward, y left, z up."""
    motion = np.array([[0, 1, 0, -1], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
    write_log(tmp_path / "log.h5", flow_category_indices=np.arange(20, dtype=np.uint8), ego_motion=motion)
    dataset = open_dataset(tmp_path, "test")
    scene = dataset.load(0)
    assert scene.categories is not None
    assert scene.ego_motion is not None
    assert scene.categories.tolist() == list(range(5, 20))
    forward = scene.ego_motion @ (0, 0, 10, 1)  # 10 m ahead, in x left, y up, z forward
    assert forward.tolist() == [-10, 0, -1, 1]
    (batch,) = evaluation_batches(dataset, [0], points=8, batch_size=1, seed=0)
    assert batch.categories is not None
    assert batch.ego_motion is not None
    of_point = {tuple(point): index for point, index in zip(scene.pc1.tolist(), scene.categories.tolist(), strict=True)}
    assert [of_point[tuple(point)] for point in batch.pc1[0].tolist()] == batch.categories[0].tolist()
    assert np.array_equal(batch.of_samples(0, 1).ego_motion[0], scene.ego_motion)  # type: ignore[index]


def test_motion_of_the_vehicle_is_known_from_the_poses_of_both_sweeps(tmp_path: Path) -> None:
    write_log(tmp_path / "log.h5", sweeps=2)
    with h5py.File(tmp_path / "log.h5", "a") as file:
        for group, x in zip(file.values(), (100, 102), strict=True):
            group["pose"] = np.array([[0, -1, 0, x], [1, 0, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    motion = open_dataset(tmp_path, "test").load(0).ego_motion
    assert motion is not None
    # It faces y and moves along x, to its right: what stands still moves 2 m to the left, our x.
    assert motion.tolist() == [[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_log_without_categories_and_poses_has_none(tmp_path: Path) -> None:
    write_log(tmp_path / "log.h5")
    scene = open_dataset(tmp_path, "test").load(0)
    assert (scene.categories, scene.ego_motion) == (None, None)


def test_square_takes_the_corners_and_the_evaluation_mask(tmp_path: Path) -> None:
    lidar = np.full((20, 4), 3, np.float32)
    lidar[5:9, :2] = [(34, 34), (35, 0), (-35, -35), (36, 0)]
    mask = np.arange(20)[:, None] != 6
    write_log(tmp_path / "log.h5", lidar=lidar, eval_mask=mask, flow_is_valid=np.ones(20, bool))
    write_log(tmp_path / "other.h5", lidar=lidar)
    with h5py.File(tmp_path / "log.h5", "a") as file:
        del next(iter(file.values()))["eval_mask"]
    usual, square = open_dataset(tmp_path, "test"), open_dataset(tmp_path, "test", "square")
    assert (usual.format.region, square.format.region) == ("radius", "square")
    assert [len(each) for each in (usual, square)] == [4, 3]  # no sweep without the mask of its log
    assert len(usual.load(1).pc1) == 11
    scene = square.load(0)
    assert scene.name == usual.names[1]
    assert len(scene.pc1) == 14
    assert scene.valid is not None
    assert scene.valid.tolist() == [True, False] + [True] * 12


def test_only_logs_have_a_choice_of_regions(tmp_path: Path) -> None:
    write_occluded(tmp_path)
    with pytest.raises(UsageError, match="only LiDAR logs have a choice"):
        open_dataset(tmp_path, "train", "square")


def test_scenes_of_a_log_are_a_sequence(tmp_path: Path) -> None:
    write_log(tmp_path / "log.h5")
    dataset = open_dataset(tmp_path, "test")
    assert {sequence_of("lidar_logs", name) for name in dataset.names} == {"log"}


def test_frames_of_both_cameras_are_a_sequence() -> None:
    def sequence(name: str) -> int | str:
        return sequence_of("flyingthings3d_occluded", name)

    frames = [f"TRAIN_A_0140_{side}_{frame:04d}-0" for side in ("left", "right") for frame in range(6, 16)]
    assert len({sequence(name) for name in frames}) == 1
    assert len({sequence(f"TRAIN_{part}_{number}_left_0006-0") for part in "AB" for number in ("0001", "0002")}) == 4
    prepared = [sequence(f"TRAIN_A_0001_left_{frame:04d}-0") for frame in range(16, 40)]
    assert [prepared.count(one) for one in dict.fromkeys(prepared)] == [4, 10, 10]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"flow_category_indices": np.zeros(19, np.uint8)}, r"flow_category_indices: \(19,\) found, \(20,\) expected"),
        ({"flow_category_indices": np.full(20, -1)}, "indices from 0 to 255 expected"),
        ({"flow_category_indices": np.zeros(20)}, "float64 from 0.0 to 0.0 found"),
        ({"eval_mask": np.zeros((19, 1), bool)}, r"eval_mask: \(19, 1\) found"),
        ({"eval_mask": np.zeros(20, bool)}, r"no point with known flow within 35 m \(square\)"),
        ({"ego_motion": np.eye(3)}, "a rotation and a translation"),
        ({"ego_motion": np.diag([1, 1, -1, 1])}, "a rotation and a translation"),
        ({"pose": np.full((4, 4), np.nan)}, "pose: a rotation and a translation"),
        ({"flow": np.zeros((19, 3), np.float32)}, "20 points and 19 flows"),
        ({"flow_is_valid": np.zeros(3, bool)}, r"\(3,\) found"),
        ({"lidar": np.full((20, 4), np.inf, np.float32)}, "NaN or infinity"),
        ({"lidar": np.array([b"text"] * 20)}, "numbers of up to"),
        ({"lidar": np.zeros((20, 65), np.float32)}, "numbers of up to"),
        ({"flow_is_valid": np.zeros(20, bool)}, "no point with known flow"),
    ],
)
def test_damaged_logs_are_named(tmp_path: Path, other: dict, said: str) -> None:
    write_log(tmp_path / "log.h5", **other)
    with pytest.raises(DataError, match=rf"log\.h5.*{said}"):
        open_dataset(tmp_path, "test", "square").load(0)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_mutated_logs_give_scenes_or_one_line_errors(tmp_path: Path, count: int) -> None:
    path = write_log(tmp_path / "log.h5", sweeps=2)
    whole = path.read_bytes()
    for seed in range(count):
        path.write_bytes(whole)
        damage(path, seed, changes=8)
        try:
            dataset = open_dataset(tmp_path, "test")
            for index in range(len(dataset)):
                dataset.load(index)
        except BpfnError as error:
            assert "\n" not in str(error)
