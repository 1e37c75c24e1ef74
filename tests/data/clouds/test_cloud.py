# SPDX-License-Identifier: MIT
"""All formats: a row for each row, rows without a point marked and counted, and gzip."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from cloud_files import POINTS, points_of, refusal, scan, written

from bpfn_cli.data.clouds import CLOUD_FORMATS, ending_of, read_cloud, stem_of
from bpfn_cli.errors import UsageError

NAN, INF = float("nan"), float("inf")
ROWS = np.array([[1, 2, 3], [NAN, 2, 3], [0, 0, 0], [4, 5, 6], [7, -INF, 9], [-0.0, 0, 0], [0, 0, 1]], np.float32)
VALID = [True, False, False, True, False, False, True]
FIELDS = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]


def ply(rows: np.ndarray, kind: str) -> bytes:
    header = f"ply\nformat {kind} 1.0\nelement vertex {len(rows)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    body = lines(rows, " ") if kind == "ascii" else rows.astype("<f4").tobytes()
    return header.encode() + body


def pcd(rows: np.ndarray, kind: str) -> bytes:
    header = f"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nPOINTS {len(rows)}\nDATA {kind}\n"
    planes = rows.astype("<f4").T.tobytes()
    body = {
        "ascii": lines(rows, " "),
        "binary": rows.astype("<f4").tobytes(),
        "binary_compressed": struct.pack("<II", len(planes), len(planes)) + planes,
    }
    return header.encode() + body[kind]


def lines(rows: np.ndarray, separator: str) -> bytes:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows.tolist()).encode()


def npy(array: np.ndarray) -> bytes:
    from io import BytesIO

    np.save(stream := BytesIO(), array)
    return stream.getvalue()


def npz(array: np.ndarray) -> bytes:
    from io import BytesIO

    np.savez(stream := BytesIO(), points=array)
    return stream.getvalue()


FILES = {
    "a.npy": npy(ROWS),
    "doubles.npy": npy(ROWS.astype(np.float64)),
    "half.npy": npy(ROWS.astype(np.float16)),
    "table.npy": npy(np.ascontiguousarray(ROWS).view(FIELDS).reshape(-1)),
    "a.npz": npz(ROWS),
    "ascii.ply": ply(ROWS, "ascii"),
    "binary.ply": ply(ROWS, "binary_little_endian"),
    "ascii.pcd": pcd(ROWS, "ascii"),
    "binary.pcd": pcd(ROWS, "binary"),
    "compressed.pcd": pcd(ROWS, "binary_compressed"),
    "a.bin": ROWS.tobytes(),
    "a.pcd.bin": ROWS.tobytes(),
    "a.xyz": lines(ROWS, " "),
    "a.txt": lines(ROWS, "\t"),
    "a.csv": b"x,y,z\n" + lines(ROWS, ","),
}


@pytest.mark.parametrize("packed", [False, True], ids=["", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_rows_without_a_point_are_kept_and_counted_in_every_format(tmp_path: Path, name: str, packed: bool) -> None:
    content = gzip.compress(FILES[name]) if packed else FILES[name]
    cloud = read_cloud(written(tmp_path, name + packed * ".gz", content), 3 if name.endswith(".bin") else None)
    assert cloud.valid.tolist() == VALID
    assert cloud.points[cloud.valid].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 1]]
    assert not cloud.points[~cloud.valid].any()
    assert cloud.left_out == {"NaN or infinite": 2, "at (0, 0, 0)": 2}


def test_every_format_is_in_that_test_but_las() -> None:
    assert {ending_of(Path(name)) for name in FILES} == set(CLOUD_FORMATS) - {".las", ".laz"}


def test_cloud_without_a_point_is_refused_with_the_reasons(tmp_path: Path) -> None:
    rows = np.array([[0, 0, 0], [NAN, 0, 0], [0, 0, 0]])
    said = refusal(written(tmp_path, "a.npy", npy(rows)))
    assert "no row is a point: 1 NaN or infinite and 2 at (0, 0, 0) of 3 rows" in said
    assert "empty" in refusal(written(tmp_path, "b.npy", npy(np.zeros((0, 3)))))


def test_doubles_are_kept_for_coordinates_of_maps(tmp_path: Path) -> None:
    point = [500000.123456, 4812345.654321, 12.5]
    assert points_of(written(tmp_path, "a.npy", npy(np.array([point])))) == [point]
    assert points_of(written(tmp_path, "a.csv", "x,y,z\n500000.123456,4812345.654321,12.5\n")) == [point]


@pytest.mark.parametrize("order", "<>")
def test_singles_of_both_byte_orders_stay_singles(tmp_path: Path, order: str) -> None:
    header = f"ply\nformat binary_{'little' if order == '<' else 'big'}_endian 1.0\nelement vertex 2\n"
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    content = f"{header}{properties}end_header\n".encode() + np.array(POINTS, f"{order}f4").tobytes()
    assert read_cloud(written(tmp_path, "a.ply", content)).points.dtype == np.float32


def test_endings_are_read_in_any_case(tmp_path: Path) -> None:
    assert points_of(written(tmp_path, "CLOUD.NPY", npy(np.array(POINTS)))) == POINTS
    assert stem_of(Path("a/n015.PCD.bin.gz")) == "n015"
    assert stem_of(Path("a/b.c.ply")) == "b.c"


@pytest.mark.parametrize("name", ["cloud.obj", "cloud", "cloud.gz", ".npy", "cloud.npy.zip"])
def test_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    assert "use one of .npy, .npz, .ply, .pcd, .pcd.bin, .bin, " in refusal(written(tmp_path, name, b"1 2 3"))


@pytest.mark.parametrize("ending", [".npy", ".npz", ".ply", ".bin", ".xyz", ".ply.gz"])
def test_missing_files_and_fifos_are_refused(tmp_path: Path, ending: str) -> None:
    assert "no such file" in refusal(tmp_path / f"cloud{ending}")
    os.mkfifo(tmp_path / f"cloud{ending}")
    assert "pipe" in refusal(tmp_path / f"cloud{ending}")


def test_gzip_is_found_by_name_and_content(tmp_path: Path) -> None:
    packed = gzip.compress(npy(scan()))
    assert "is compressed with gzip; add .gz" in refusal(written(tmp_path, "a.npy", packed))
    assert "not a gzip file" in refusal(written(tmp_path, "a.npy.gz", npy(scan())))
    assert "not a gzip file, or damaged" in refusal(written(tmp_path, "a.npy.gz", packed[:-20]))
    bomb = gzip.compress(bytes(80 << 20))
    assert "zip bomb" in refusal(written(tmp_path, "a.bin.gz", bomb))


def test_columns_are_for_files_without_a_header(tmp_path: Path) -> None:
    path = written(tmp_path, "a.npy", npy(scan()))
    assert "--columns 4" in refusal(path, lambda path: read_cloud(path, 4), UsageError)
