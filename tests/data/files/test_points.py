# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from npy_files import POINTS, npy, refusal, written

from bpfn_cli.data.files.points import check_points, read_points, write_points
from bpfn_cli.errors import DataError, DiskError


def test_read_points_converts_doubles(tmp_path):
    points = read_points(written(tmp_path, npy(np.array([[0.1, -2, 1e4]]))))
    assert points.dtype == np.float32
    assert points.tolist() == [[np.float32(0.1), -2, 10000]]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 2), "f4"),
        np.zeros((4, 4), "f4"),
        np.zeros(3, "f4"),
        np.zeros((2, 2, 3)),
        POINTS.astype(int),
    ],
)
def test_other_shapes_are_refused_with_the_expected_one(tmp_path, array):
    assert "float32 of shape (N, 3) expected" in refusal(written(tmp_path, npy(array)))


def test_empty_cloud_is_refused(tmp_path):
    assert "empty" in refusal(written(tmp_path, npy(np.zeros((0, 3), "f4"))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_counted_and_the_first_named(tmp_path, bad):
    points = np.zeros((10, 3))
    points[[4, 7], [2, 0]] = bad
    assert "2 of 10 rows hold NaN or infinity, the first is row 4" in refusal(written(tmp_path, npy(points)))


@pytest.mark.parametrize("far", [10000.01, -1e5, 1e300])
def test_far_rows_are_refused_with_the_remedy(tmp_path, far):
    points = np.zeros((10, 3))
    points[3, 1] = far
    message = refusal(written(tmp_path, npy(points)))
    assert "1 of 10 rows are beyond 10000 m, the first is row 3; subtract an origin" in message


def test_check_points_names_what_it_checked():
    with pytest.raises(DataError, match=r"pair\.npz: flow: empty"):
        check_points(np.zeros((0, 3)), Path("pair.npz"), "flow")


def test_write_points_writes_what_numpy_and_read_points_read(tmp_path):
    path = tmp_path / "flow.npy"
    write_points(path, np.asfortranarray(POINTS.astype(np.float64)))
    assert np.load(path).dtype == np.float32
    assert np.load(path).tolist() == read_points(path).tolist() == POINTS.tolist()
    assert path.stat().st_size == 128 + 48


def test_write_points_refuses_what_could_not_be_read_back(tmp_path):
    with pytest.raises(DataError, match="NaN"):
        write_points(tmp_path / "flow.npy", POINTS * np.nan)
    assert list(tmp_path.iterdir()) == []


def test_write_points_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "flow.npy"
    write_points(path, POINTS)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="no space"):
        write_points(path, POINTS + 1)
    assert read_points(path).tolist() == POINTS.tolist()
    assert list(tmp_path.iterdir()) == [path]
