# SPDX-License-Identifier: MIT
"""Clouds in `.npy` and `.npz`: by name where there are names, and named for what they are where they are no clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cloud_files import POINTS, points_of, refusal, scan

from bpfn_cli.data.clouds import read_cloud


def saved(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "cloud.npy", array)
    return folder / "cloud.npy"


@pytest.mark.parametrize("columns", [3, 4, 7])
def test_npy_cloud_is_its_first_three_columns(tmp_path: Path, columns: int) -> None:
    path = saved(tmp_path, np.concatenate([POINTS, np.full((2, columns - 3), np.nan)], axis=1))
    assert points_of(path) == POINTS
    assert read_cloud(path).holds == ("" if columns == 3 else f"the first 3 of {columns} columns")


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8", "<i2", ">i8", "|u1"])
def test_npy_numbers_of_any_type_are_read(tmp_path: Path, kind: str) -> None:
    assert points_of(saved(tmp_path, np.array([[1, 2, 3], [4, 5, 6]], kind))) == [[1, 2, 3], [4, 5, 6]]


def test_half_precision_is_read_and_its_steps_named(tmp_path: Path) -> None:
    cloud = read_cloud(saved(tmp_path, np.array([[1, 2, 3], [-4, 5.5, 60]], np.float16)))
    assert cloud.points.dtype == np.float32
    assert cloud.points.tolist() == [[1, 2, 3], [-4, 5.5, 60]]
    assert cloud.notes == ("float16: coordinates have steps of up to 0.031 m",)


@pytest.mark.parametrize("order", "<>")
def test_table_is_read_by_name(tmp_path: Path, order: str) -> None:
    kinds = [("label", "S3"), ("z", f"{order}f8"), ("rgb", "u1", (3,)), ("x", f"{order}f4"), ("Y", f"{order}i4")]
    table = np.zeros(2, np.dtype(kinds, align=True))
    table["x"], table["Y"], table["z"] = [1, 4], [2, 5], [3, 6]
    assert points_of(saved(tmp_path, table)) == [[1, 2, 3], [4, 5, 6]]
    assert points_of(saved(tmp_path, table[None])) == [[1, 2, 3], [4, 5, 6]]
    assert read_cloud(saved(tmp_path, table)).holds.startswith("a table of ")


@pytest.mark.parametrize("name", ["xyz", "position"])
def test_table_with_one_field_for_the_coordinates_is_read(tmp_path: Path, name: str) -> None:
    table = np.zeros(2, [("intensity", "f4"), (name, "f4", (3,))])
    table[name] = POINTS
    assert points_of(saved(tmp_path, table)) == POINTS


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            np.zeros(3, [("x", "f4"), ("y", "f4"), ("height", "f4")]),
            "points without x, y and z; they have x, y, height",
        ),
        (np.zeros((4, 5), [("x", "f4"), ("y", "f4"), ("z", "f4")]), "a table of shape (4, 5)"),
        (np.zeros(3, [("x", "f4", (2,)), ("y", "f4"), ("z", "f4")]), "not one number per point"),
        (np.zeros(3, [("x", "S4"), ("y", "f4"), ("z", "f4")]), "not one number per point"),
        (np.zeros(3, [("x", "c8"), ("y", "f4"), ("z", "f4")]), "is not plain numbers"),
        (np.zeros(3, [("x", "M8[s]"), ("y", "f4"), ("z", "f4")]), "is not plain numbers"),
    ],
)
def test_table_of_other_fields_is_refused(tmp_path: Path, table: np.ndarray, words: str) -> None:
    assert words in refusal(saved(tmp_path, table))


def test_leading_dimension_of_one_is_dropped_and_said(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array(POINTS)[None, None])
    assert points_of(path) == POINTS
    assert read_cloud(path).notes == ("shape (1, 1, 2, 3) is read as (2, 3)",)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4096)), "shape (3, 4096) found, (N, 3) or more columns expected; transposed?"),
        (np.zeros((1, 4, 4096)), "shape (1, 4, 4096) found, (N, 3) or more columns expected; transposed?"),
        (np.zeros((64, 2)), "two columns are not a point in space"),
        (
            np.zeros((2, 64, 3)),
            "shape (2, 64, 3) found, (N, 3) or more columns expected; an image of points, or several",
        ),
        (np.zeros((2, 3, 2)), "several transposed clouds?"),
        (np.zeros(12), "shape (12,) found"),
        (np.zeros((5, 3), bool), "bool of shape (5, 3) found"),
        (np.c_[np.arange(20), scan(20)], "the first column numbers the rows"),
        (np.c_[np.arange(1, 21), scan(20)], "the first column numbers the rows"),
    ],
)
def test_arrays_that_are_no_cloud_are_named(tmp_path: Path, array: np.ndarray, words: str) -> None:
    assert words in refusal(saved(tmp_path, array))


@pytest.mark.parametrize("name", ["points", "pc", "xyz", "pos", "position", "coords"])
def test_npz_cloud_is_the_array_of_a_known_name(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "cloud.npz", other=np.zeros(3), **{name: np.array(POINTS)})
    assert points_of(tmp_path / "cloud.npz") == POINTS


def test_npz_cloud_is_the_only_array_or_x_y_and_z(tmp_path: Path) -> None:
    np.savez(tmp_path / "cloud.npz", anything=np.array(POINTS))
    assert points_of(tmp_path / "cloud.npz") == POINTS
    x, y, z = np.array(POINTS).T
    np.savez(tmp_path / "cloud.npz", z=z, y=y, x=x, intensity=np.zeros(5))
    assert points_of(tmp_path / "cloud.npz") == POINTS
    np.savez(tmp_path / "cloud.npz", z=z[:1], y=y, x=x)
    assert "differ in shape" in refusal(tmp_path / "cloud.npz")


def test_npz_of_unknown_arrays_is_refused_with_their_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "cloud.npz", a=np.array(POINTS), b=np.array(POINTS))
    assert "holds a, b" in refusal(tmp_path / "cloud.npz")
    np.savez(tmp_path / "cloud.npz")
    assert "holds nothing" in refusal(tmp_path / "cloud.npz")
