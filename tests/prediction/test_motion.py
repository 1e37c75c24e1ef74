# SPDX-License-Identifier: MIT
"""The motion of the sensor, by hand and out of flows with moving objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bpfn_cli.prediction.motion import estimate_pose, read_poses, sensor_flow, with_origin, write_pose

QUARTER_TURN = np.array([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, -2], [0, 0, 0, 1.0]])  # about z, then a step
POINTS = np.array([[1, 0, 0], [0, 2, 3], [4, 4, 4.0]])


def test_sensor_flow_by_hand() -> None:
    flow = sensor_flow(POINTS, QUARTER_TURN)
    assert flow.tolist() == [[4, 1, -2], [3, -2, -2], [-3, 0, -2]]  # (1, 0, 0) goes to (5, 1, -2)


def test_origin_moves_with_the_pose() -> None:
    origin = np.array([10.0, -20, 3])
    centered = sensor_flow(POINTS - origin, with_origin(QUARTER_TURN, origin))
    assert np.allclose(centered, sensor_flow(POINTS, QUARTER_TURN))
    assert np.allclose(with_origin(with_origin(QUARTER_TURN, origin), -origin), QUARTER_TURN)


def test_pose_is_estimated_beside_moving_objects() -> None:
    chance = np.random.default_rng(0)
    points = chance.uniform(-20, 20, (600, 3)).astype(np.float32)
    flow = sensor_flow(points, QUARTER_TURN).astype(np.float32) + chance.normal(0, 0.01, (600, 3)).astype(np.float32)
    flow[:150] += np.float32([1.5, 0, 0])  # a quarter moves by itself
    assert np.allclose(estimate_pose(points, flow), QUARTER_TURN, atol=0.01)


def test_pose_is_that_of_the_points_that_agree_beside_large_vehicles() -> None:
    """Least squares, however reweighted, ends between the motions."""
    chance = np.random.default_rng(0)
    points = chance.uniform(-20, 20, (900, 3)).astype(np.float32)
    still = np.eye(4)
    flow = sensor_flow(points, still).astype(np.float32)
    flow[:260] += np.float32([0, 0, 1])
    flow[260:520] += np.float32([0, 0, 1.3])  # most move, but no motion has as many points as the rest
    assert np.allclose(estimate_pose(points, flow), still, atol=0.01)


def test_written_pose_is_read_back(tmp_path: Path) -> None:
    write_pose(tmp_path / "T.txt", QUARTER_TURN)
    assert (tmp_path / "T.txt").read_text() == "0 -1 0 5\n1 0 0 0\n0 0 1 -2\n0 0 0 1\n"
    (pose,) = read_poses(tmp_path / "T.txt", 1)
    assert np.array_equal(pose, QUARTER_TURN)


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_poses_of_any_arrangement_are_read(tmp_path: Path, rows: int, flat: bool, count: int) -> None:
    poses = [with_origin(QUARTER_TURN, np.full(3, index)) for index in range(count)]
    values = np.stack([pose[:rows] for pose in poses])
    np.savetxt(tmp_path / "T.csv", values.reshape((count, -1) if flat else (-1, 4)), delimiter=",")
    np.save(tmp_path / "T.npy", values.reshape(count, -1) if flat else values)
    for name in ("T.csv", "T.npy"):
        assert np.allclose(read_poses(tmp_path / name, count), poses)
