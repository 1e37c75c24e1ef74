# SPDX-License-Identifier: MIT
"""`.bin`: the type and the number of columns come from the content, or the file is refused with the candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cloud_files import refusal, scan, written

from bpfn_cli.data.clouds import binary, read_cloud

POINTS = scan(3000)
CHANCE = np.random.default_rng(1)
REFLECTANCE = CHANCE.random((3000, 1), np.float32)
INTENSITY = np.floor(REFLECTANCE * 255)
RING = np.arange(3000, dtype=np.float32)[:, None] % 32  # as in nuScenes: periodic
COLORS = CHANCE.integers(0, 256, (3000, 3)).astype(np.float32)
NORMALS = CHANCE.normal(size=(3000, 3)).astype(np.float32)
TIME = np.full((3000, 1), 1.5e9, np.float32)
KINDS = {"<f4": "float32", ">f4": "big-endian float32", "<f8": "float64", ">f8": "big-endian float64"}
LAYOUTS = {
    "x y z": [POINTS],
    "KITTI": [POINTS, REFLECTANCE],
    "nuScenes": [POINTS, INTENSITY, RING],
    "reflectance and ring": [POINTS, REFLECTANCE, RING],
    "colors": [POINTS, COLORS],
    "colors in 0..1": [POINTS, COLORS / 256],
    "normals": [POINTS, NORMALS],
    "Waymo": [POINTS, REFLECTANCE, REFLECTANCE**2, TIME],
    "two zeros": [POINTS, REFLECTANCE, np.zeros((3000, 2), np.float32)],
    "a room": [np.abs(POINTS) / 20, COLORS],
    "millimetres": [np.rint(POINTS * 1000), INTENSITY],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_and_type_are_found(tmp_path: Path, layout: str, kind: str) -> None:
    rows = np.concatenate(LAYOUTS[layout], axis=1)
    cloud = read_cloud(written(tmp_path, "a.bin", rows.astype(kind).tobytes()))
    assert np.array_equal(cloud.points, rows[:, :3])
    assert cloud.points.dtype == np.dtype(kind).newbyteorder("=")
    assert cloud.holds.startswith(f"{rows.shape[1]} columns of {KINDS[kind]}, by their statistics")


@pytest.mark.parametrize("period", [2, 3, 4])
def test_rows_of_zeros_do_not_hide_the_columns(tmp_path: Path, period: int) -> None:
    rows = np.concatenate([POINTS, INTENSITY, RING], axis=1)
    rows[::period] = 0
    cloud = read_cloud(written(tmp_path, "a.bin", rows.tobytes()))
    assert np.array_equal(cloud.points, rows[:, :3])
    assert cloud.left_out == {"at (0, 0, 0)": -(-3000 // period)}


def test_given_number_of_columns_is_used(tmp_path: Path) -> None:
    rows = np.concatenate([POINTS, REFLECTANCE], axis=1)
    path = written(tmp_path, "a.bin", rows.tobytes())
    assert np.array_equal(read_cloud(path, 4).points, POINTS)
    assert read_cloud(path, 4).holds == "4 columns of float32"
    assert not read_cloud(path, 4).notes
    other = read_cloud(path, 3)
    assert len(other.points) == 4000  # as asked for
    assert other.notes == ("4 columns by their statistics, but read as 3",)
    said = refusal(path, lambda path: read_cloud(path, 7))
    assert "48,000 bytes found, a multiple of 28 expected (7 columns of float32); truncated, or give" in said


def test_ambiguous_files_are_refused_with_the_candidates(tmp_path: Path) -> None:
    cube = CHANCE.random((1000, 3), np.float32)
    said = refusal(written(tmp_path, "cube.bin", cube.tobytes()))
    assert "3,000 values of float32 in an unknown number of columns: 3 (1,000 points), 4 (750 points), " in said
    assert "give their number with --columns" in said
    assert np.array_equal(read_cloud(tmp_path / "cube.bin", 3).points, cube)
    few = np.concatenate([POINTS, REFLECTANCE], axis=1)[:5]
    assert "4 (5 points), 5 (4 points)" in refusal(written(tmp_path, "few.bin", few.tobytes()))


@pytest.mark.parametrize("others", [np.zeros((3000, 3)), POINTS + 0.1], ids=["no colors", "second cloud"])
def test_six_columns_that_look_like_three_are_refused(tmp_path: Path, others: np.ndarray) -> None:
    path = written(tmp_path, "a.bin", np.hstack([POINTS, others]).astype(np.float32).tobytes())
    assert "3 (6,000 points), 4 (4,500 points), 5 (3,600 points), 6 (3,000 points)" in refusal(path)
    assert np.array_equal(read_cloud(path, 6).points, POINTS)


def test_interleaved_scanners_are_not_taken_for_twice_the_columns(tmp_path: Path) -> None:
    up_and_down = np.abs(POINTS) * np.where(np.arange(3000) % 2, 1, -1)[:, None].astype(np.float32)
    assert "3 (3,000 points), " in refusal(written(tmp_path, "a.bin", up_and_down.tobytes()))


def test_beams_that_alternate_are_not_taken_for_twice_the_columns(tmp_path: Path) -> None:
    azimuth = np.repeat(np.linspace(0, 6, 1500), 2)  # of two beams: one meets the ground, the other one walls
    rays = np.stack([np.cos(azimuth), np.sin(azimuth), np.tile([-0.4, 0.1], 1500)], axis=1)
    points = rays * np.tile([4.5, 25], 1500)[:, None] + CHANCE.normal(0, 0.1, (3000, 3))
    assert "3 (3,000 points), " in refusal(written(tmp_path, "a.bin", points.astype(np.float32).tobytes()))


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    content = np.concatenate([POINTS, REFLECTANCE], axis=1).tobytes()
    for missing in (1, 4, 8):
        said = refusal(written(tmp_path, "a.bin", content[:-missing]))
        assert "a multiple of 16 expected (4 columns of float32); truncated" in said
    assert "empty" in refusal(written(tmp_path, "a.bin", b""))


@pytest.mark.parametrize("kind", ["<i4", "<i2", ">i8", "u1"])
def test_integers_are_refused(tmp_path: Path, kind: str) -> None:
    said = refusal(written(tmp_path, "a.bin", (POINTS * 100).astype(kind).tobytes()))
    assert "not float32 or float64 in any byte order" in said or "do not begin with coordinates" in said


def test_half_precision_is_refused(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, "a.bin", POINTS.astype("<f2").tobytes()))
    assert "do not begin with coordinates" in said or "unknown number of columns" in said


def test_noise_is_refused(tmp_path: Path) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).integers(0, 256, 4800, np.uint8)
        assert "not float32 or float64" in refusal(written(tmp_path, "a.bin", noise.tobytes()))


def test_nuscenes_ending_means_five_columns(tmp_path: Path) -> None:
    rows = np.concatenate([POINTS, INTENSITY, RING], axis=1)
    cloud = read_cloud(written(tmp_path, "a.pcd.bin", rows.tobytes()))
    assert np.array_equal(cloud.points, rows[:, :3])
    assert cloud.holds == "5 columns of float32, as nuScenes has them"
    few = read_cloud(written(tmp_path, "b.pcd.bin", rows[:8].tobytes()))  # too few for statistics
    assert np.array_equal(few.points, rows[:8, :3])
    other = np.concatenate([POINTS, REFLECTANCE], axis=1)
    said = refusal(written(tmp_path, "c.pcd.bin", other.tobytes()))
    assert "4 columns by their statistics, but nuScenes has 5" in said
    assert np.array_equal(read_cloud(tmp_path / "c.pcd.bin", 4).points, POINTS)


def test_statistics_of_a_sweep_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, count = [], binary._count_columns
    monkeypatch.setattr(binary, "_count_columns", lambda values: (seen.append(len(values)), count(values))[1])
    read_cloud(written(tmp_path, "a.pcd.bin", np.concatenate([POINTS, INTENSITY, RING], axis=1).tobytes()))
    assert seen == [15000]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_without_a_return_do_not_hide_type_and_columns(tmp_path: Path, value: float) -> None:
    rows = np.concatenate([POINTS, INTENSITY, RING], axis=1)
    rows[CHANCE.random(3000) < 0.5, :3] = value
    rows[0, :3] = value
    cloud = read_cloud(written(tmp_path, "a.bin", rows.tobytes()))
    assert cloud.holds.startswith("5 columns of float32")
    assert np.array_equal(cloud.points[cloud.valid], rows[np.isfinite(rows).all(axis=1), :3])
