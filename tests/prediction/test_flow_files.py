# SPDX-License-Identifier: MIT
"""Flows as files, read back by other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pypcd4
import pytest
import trimesh

from bpfn_cli.data.clouds import read_cloud
from bpfn_cli.errors import DataError, UsageError
from bpfn_cli.prediction.flow_files import FLOW_FORMATS, read_flow, write_flow

POINTS = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]])
FLOW = np.float32([[1, 0, 0], [-1, 0, 0], [0, 0, 0], [np.nan, np.nan, np.nan]])  # lidar: forward, backward
COLORS = [(255, 0, 0), (0, 255, 255), (140, 140, 140), (128, 128, 128)]
FIELDS = ("x", "y", "z", "flow_x", "flow_y", "flow_z")


def written(folder: Path, ending: str, points: np.ndarray = POINTS) -> Path:
    path = folder / f"flow{ending}"
    write_flow(path, FLOW, points, "lidar")
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_ply_has_points_flow_and_color(tmp_path: Path, kind: type) -> None:
    points = POINTS.astype(kind)
    path = written(tmp_path, ".ply", points)
    loaded = trimesh.load(path)
    assert np.array_equal(loaded.vertices, points)
    assert [tuple(color[:3]) for color in loaded.colors] == COLORS
    rows = loaded.metadata["_ply_raw"]["vertex"]["data"]
    found = np.stack([np.ravel(rows[name]) for name in FIELDS], axis=1)
    assert np.array_equal(found, np.hstack([points, FLOW]), equal_nan=True)
    assert read_cloud(path).points.dtype == kind


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pcd_has_points_flow_and_color(tmp_path: Path, kind: type) -> None:
    points = POINTS.astype(kind)
    cloud = pypcd4.PointCloud.from_path(written(tmp_path, ".pcd", points))
    assert cloud.fields == (*FIELDS, "rgb")
    assert np.array_equal(cloud.numpy(FIELDS), np.hstack([points, FLOW]), equal_nan=True)
    assert [*map(tuple, pypcd4.PointCloud.decode_rgb(cloud.pc_data["rgb"]))] == COLORS


def test_npz_has_the_first_cloud_and_is_no_pair(tmp_path: Path) -> None:
    with np.load(written(tmp_path, ".npz")) as arrays:
        assert {*arrays} == {"pc1", "flow"}  # with pc2, the flow would be read as the true one
        assert np.array_equal(arrays["pc1"], POINTS)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_flow_is_read_back(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, ending)
    assert np.array_equal(read_flow(path, 4), FLOW, equal_nan=True)
    with pytest.raises(DataError, match=r"shape \(4, 3\) found, \(5, 3\) floats expected"):
        read_flow(path, 5)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"use \.npy, \.npz, \.ply, \.pcd"):
        written(tmp_path, ".xyz")
    with pytest.raises(DataError, match=r"read from \.npy and \.npz"):
        read_flow(written(tmp_path, ".ply"), 4)
    assert [*FLOW_FORMATS] == [".npy", ".npz", ".ply", ".pcd"]
