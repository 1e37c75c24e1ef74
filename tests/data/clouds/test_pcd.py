# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from cloud_files import points_of, refusal, scan, written

from bpfn_cli.data import clouds
from bpfn_cli.data.clouds import read_cloud
from bpfn_cli.data.clouds.cloud import CloudFile
from bpfn_cli.data.clouds.pcd import expand_lzf, read_pcd
from bpfn_cli.errors import DataError

PCD = """# .PCD v0.7
VERSION 0.7
FIELDS {fields}
SIZE {sizes}
TYPE {types}
COUNT {counts}
WIDTH {points}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {points}
DATA {data}
"""


def pcd(data: str, body: bytes, points: int = 2, **changes: str) -> bytes:
    words = {"fields": "x y z intensity", "sizes": "4 4 4 1", "types": "F F F U", "counts": "1 1 1 1", **changes}
    return PCD.format(points=points, data=data, **words).encode() + body


def test_pcd_by_hand(tmp_path):
    expected = [[1, 2, 3], [4, 5, 6]]
    ascii_file, binary = tmp_path / "a.pcd", tmp_path / "b.pcd"
    ascii_file.write_bytes(pcd("ascii", b"1 2 3 9\n4 5 6 9\n"))
    binary.write_bytes(pcd("binary", struct.pack("<fffBfffB", 1, 2, 3, 9, 4, 5, 6, 9)))
    assert points_of(ascii_file) == points_of(binary) == expected
    wide = {"fields": "z _ x y", "sizes": "8 1 4 2", "types": "F U F I", "counts": "1 3 1 1"}
    binary.write_bytes(pcd("binary", struct.pack("<d3Bfhd3Bfh", 3, 0, 0, 0, 1, 2, 6, 0, 0, 0, 4, 5), **wide))
    ascii_file.write_bytes(pcd("ascii", b"3 0 0 0 1 2\n6 0 0 0 4 5\n", **wide))
    assert points_of(ascii_file) == points_of(binary) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nothing", "not a PCD file"),
        (
            pcd("binary_packed", b""),
            "DATA binary_packed is unknown; save it as one of ascii, binary, binary_compressed",
        ),
        (pcd("ascii", b"").replace(b"0 0 0 1 0 0 0", b"0 0 0 1"), "VIEWPOINT of 4 numbers, 7 expected"),
        (pcd("binary", b"\0" * 25), "25 bytes after the header found, 26 expected"),
        (pcd("ascii", b"1 2 3"), "1 lines of points found, 2 expected"),
        (pcd("ascii", b"1 2 3\n4 5 6"), "3 numbers per point found, 4 expected"),
        (pcd("ascii", b"1 2 3 x\n4 5 6 7"), "point [12] is .*numbers in each line expected"),
        (pcd("ascii", b"1 2 3 4\n" * 2, fields="x y intensity t"), "without x, y and z; they have x, y, intensity, t"),
        (pcd("ascii", b"", sizes="4 4"), "damaged PCD header"),
        (pcd("ascii", b"", types="F F F S"), "damaged PCD header"),
        (pcd("ascii", b"", sizes="3 4 4 1"), "damaged PCD header"),
        (pcd("ascii", b"", counts="1 1 1 9999999"), "damaged PCD header"),
        (pcd("binary", b"", points=10**12), "0 bytes after the header found"),
        (pcd("ascii", b"nan 1 1 1\nnan 1 1 1"), "no row is a point"),
    ],
)
def test_damaged_pcd(tmp_path, content, said):
    (tmp_path / "a.pcd").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_cloud(tmp_path / "a.pcd")


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_pcd_gives_points_or_data_errors(monkeypatch, count):
    bodies = b"1 2 3 9\n4 5 6 9\n", struct.pack("<fffBfffB", 1, 2, 3, 9, 4, 5, 6, 9)
    refused = 0
    for seed in range(count):
        generator = np.random.default_rng(seed)
        content = bytearray(pcd(("ascii", "binary")[seed % 2], bodies[seed % 2]))
        for _ in range(5):
            content[generator.integers(len(content))] = generator.integers(256)
        monkeypatch.setattr(clouds, "read_file", lambda _path, content=content: content)
        try:
            read_cloud(Path("fuzzed.pcd"))
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert count / 3 < refused < count


# --- trailing data, viewpoints -----------------------------------------------------------------------


def test_data_after_the_last_point_are_left_out_and_said(tmp_path):
    expected = [[1, 2, 3], [4, 5, 6]]
    lines = written(tmp_path, "a.pcd", pcd("ascii", b"1 2 3 9\n4 5 6 9\n7 8 9 9\n\n"))
    assert points_of(lines) == expected
    assert read_cloud(lines).notes == ("1 lines after the last point are left out",)
    more = written(tmp_path, "b.pcd", pcd("binary", struct.pack("<fffBfffB", 1, 2, 3, 9, 4, 5, 6, 9) + b"!!!"))
    assert points_of(more) == expected
    assert read_cloud(more).notes == ("3 bytes after the last point are left out",)


def test_viewpoint_is_kept(tmp_path):
    content = pcd("ascii", b"1 2 3 9\n4 5 6 9\n")
    assert read_cloud(written(tmp_path, "a.pcd", content)).viewpoint == (0, 0, 0, 1, 0, 0, 0)
    moved = content.replace(b"VIEWPOINT 0 0 0 1", b"VIEWPOINT 1.5 -2 0 1")
    assert read_cloud(written(tmp_path, "a.pcd", moved)).viewpoint == (1.5, -2, 0, 1, 0, 0, 0)
    assert read_cloud(written(tmp_path, "a.pcd", content.replace(b"VIEWPOINT", b"#"))).viewpoint is None


# --- binary_compressed ------------------------------------------------------------------------------


def lzf(data: bytes) -> bytes:
    """Compress: literals, and copies of the last place with the same three bytes."""
    out, seen, at, literals = bytearray(), {}, 0, bytearray()

    def flush() -> None:
        for start in range(0, len(literals), 32):
            part = literals[start : start + 32]
            out.extend([len(part) - 1, *part])
        literals.clear()

    while at < len(data):
        key, place = data[at : at + 3], seen.get(data[at : at + 3])
        seen[key] = at
        if len(key) == 3 and place is not None and at - place <= 8192:
            length = 3
            while length < 264 and at + length < len(data) and data[place + length] == data[at + length]:
                length += 1
            flush()
            distance = at - place - 1
            head = [min(length - 2, 7) << 5 | distance >> 8, *([length - 9] if length >= 9 else []), distance & 255]
            out.extend(head)
            at += length
            continue
        literals.append(data[at])
        at += 1
    flush()
    return bytes(out)


def compressed(planes: bytes, packed: bytes | None = None, **changes: str) -> bytes:
    packed = lzf(planes) if packed is None else packed
    return pcd("binary_compressed", struct.pack("<II", len(packed), len(planes)) + packed, **changes)


PLANES = struct.pack("<2f2f2f2B", 1, 4, 2, 5, 3, 6, 9, 9)


def test_compressed_points_are_read(tmp_path):
    path = written(tmp_path, "a.pcd", compressed(PLANES))
    assert points_of(path) == [[1, 2, 3], [4, 5, 6]]
    assert read_cloud(path).holds == "PCD binary_compressed"
    assert not read_cloud(path).notes


def test_compressed_scan_is_read(tmp_path):
    rows = np.round(scan(3000), 1)
    rows[::3] = 0  # runs to copy
    table = {"fields": "x y z ring", "sizes": "4 4 4 2", "types": "F F F U", "counts": "1 1 1 1"}
    planes = rows.T.tobytes() + (np.arange(3000) % 64).astype("<u2").tobytes()
    content = compressed(planes, points=3000, **table)
    assert len(content) < len(planes)
    cloud = read_cloud(written(tmp_path, "a.pcd", content))
    assert np.array_equal(cloud.points, rows)
    assert cloud.left_out == {"at (0, 0, 0)": 1000}


def test_compressed_fields_of_several_values_and_padding(tmp_path):
    """A field with a count is one plane of rows; fields that only align others are not stored."""
    table = {"fields": "x _ normal y z", "sizes": "4 1 4 8 4", "types": "F U F F F", "counts": "1 4 3 1 1"}
    planes = struct.pack("<2f6f2d2f", 1, 4, *range(6), 2, 5, 3, 6)
    assert points_of(written(tmp_path, "a.pcd", compressed(planes, **table))) == [[1, 2, 3], [4, 5, 6]]


def test_points_stored_raw_under_that_label_are_read(tmp_path):
    path = written(tmp_path, "a.pcd", compressed(PLANES, packed=PLANES))
    assert points_of(path) == [[1, 2, 3], [4, 5, 6]]
    assert read_cloud(path).notes == ("labelled binary_compressed, but not compressed; it is read as that",)
    rows = struct.pack("<fffBfffB", 1, 2, 3, 9, 4, 5, 6, 9)
    path = written(tmp_path, "b.pcd", pcd("binary_compressed", rows))
    assert points_of(path) == [[1, 2, 3], [4, 5, 6]]
    assert read_cloud(path).notes == ("labelled binary_compressed, but binary; it is read as that",)


def test_damaged_compressed_points_are_refused(tmp_path):
    packed, whole = lzf(PLANES), compressed(PLANES)
    for content, words in (
        (whole[:-1], "truncated: "),
        (pcd("binary_compressed", b""), "and 0 bytes when decompressed"),
        (compressed(PLANES + b"!"), "2 points of 13 bytes, and 27 bytes when decompressed"),
        (compressed(PLANES, packed=packed[:-2]), "damaged compressed points"),
        (compressed(PLANES, packed=packed + b"\0!"), "damaged compressed points"),
        (compressed(PLANES, packed=b"\x40\x05" + packed[2:]), "damaged compressed points"),
        (compressed(PLANES, points=10**9), "and 26 bytes when decompressed"),
    ):
        assert words in refusal(written(tmp_path, "a.pcd", content))
    assert points_of(written(tmp_path, "a.pcd", whole + b"!!")) == [[1, 2, 3], [4, 5, 6]]
    assert read_cloud(tmp_path / "a.pcd").notes == ("2 bytes after the last point are left out",)


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (b"", b""),
        (b"\x02abc", b"abc"),
        (b"\x02abc\x20\x02", b"abcabc"),  # 3 bytes from 3 before
        (b"\x00a\xe0\x09\x00", b"a" * 19),  # 18 bytes from 1 before
        (b"\x01ab\x80\x01", b"abababab"),
        (b"\x02abc\x20", None),
        (b"\x02ab", None),
        (b"\x20\x00", None),
        (b"\x02abc\x20\x03", None),
    ],
)
def test_lzf_by_hand(packed, expected):
    assert expand_lzf(packed, 100) == expected


def test_lzf_never_exceeds_the_size_by_more_than_a_copy():
    assert expand_lzf(b"\x00a" + b"\xe0\xff\x00" * 1000, 1000) is None


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_compressed_pcd_gives_points_or_data_errors(monkeypatch, count):
    whole = compressed(PLANES)
    for seed in range(count):
        generator = np.random.default_rng(seed)
        content = bytearray(whole)
        for _ in range(3):
            content[generator.integers(len(content))] = generator.integers(256)
        monkeypatch.setattr(clouds, "read_file", lambda _path, content=content: content)
        try:
            read_cloud(Path("fuzzed.pcd"))
        except DataError as error:
            assert "\n" not in str(error)


# --- pypcd4 -----------------------------------------------------------------------------------------

TABLES = {
    "floats": [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4")],
    "types": [("ring", "<u2"), ("x", "<f8"), ("flag", "i1"), ("y", "<f4"), ("z", "<i4"), ("t", "<u4")],
    "padded": [("z", "<f8"), ("_", "u1", 4), ("x", "<f4"), ("normal", "<f4", 3), ("y", "<f4")],
}


def table(fields: list[tuple], rows: np.ndarray) -> bytes:
    """A binary PCD with x, y and z from (N, 3), and with other numbers in the other fields."""
    dtype = np.dtype(fields)
    made = np.zeros(len(rows), dtype)
    for index, name in enumerate(dtype.names):
        values = np.random.default_rng(index).integers(100, size=made[name].shape)
        with np.errstate(invalid="ignore"):  # NaN in an integer
            made[name] = rows[:, "xyz".index(name)] if name in ("x", "y", "z") else values
    kinds = [dtype[name].base for name in dtype.names]
    words = {
        "fields": dtype.names,
        "sizes": [kind.itemsize for kind in kinds],
        "types": [kind.kind.upper() for kind in kinds],
        "counts": [dtype[name].shape[0] if dtype[name].shape else 1 for name in dtype.names],
    }
    return pcd("binary", made.tobytes(), len(rows), **{key: " ".join(map(str, word)) for key, word in words.items()})


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("fields", TABLES.values(), ids=TABLES)
def test_fields_equal_those_of_pypcd4(fields, encoding):
    pypcd4 = pytest.importorskip("pypcd4", reason="pypcd4, of the extra dev, is not installed")
    rows = scan(500)
    rows[::5], rows[1::5, 1] = 0, np.nan
    content = table(fields, rows).replace(b"VIEWPOINT 0 0", b"VIEWPOINT 1.5 -2")
    stream = io.BytesIO()
    pypcd4.PointCloud.from_fileobj(io.BytesIO(content)).save(stream, pypcd4.Encoding(encoding))
    library = pypcd4.PointCloud.from_fileobj(io.BytesIO(stream.getvalue()))
    read = read_pcd(CloudFile("a.pcd", bytearray(stream.getvalue())))
    assert read.holds == f"PCD {encoding}"
    assert read.viewpoint == library.metadata.viewpoint == (1.5, -2, 0, 1, 0, 0, 0)
    for name in {field[0] for field in fields if len(field) == 2}:
        expected = library.pc_data[name]
        assert np.array_equal(read.by_name[name].astype(expected.dtype), expected, equal_nan=expected.dtype.kind == "f")


def test_files_are_read_that_pypcd4_misreads_or_refuses(tmp_path):
    rows = struct.pack("<3f3B3f3B", 1, 2, 3, 7, 8, 9, 4, 5, 6, 7, 8, 9)
    named = {"fields": "x y z t/s a:0 b", "sizes": "4 4 4 1 1 1", "types": "F F F U U U", "counts": "1 1 1 1 1 1"}
    text, padded = b"1 2 3 9\n4 5 6 9\n", {"fields": "x _ y z", "types": "F U F F", "sizes": "4 4 4 4"}
    for content in (
        pcd("binary", rows, **named),
        pcd("ascii", text.replace(b" ", b"\t")),
        pcd("ascii", text.replace(b" ", b"  ")),
        pcd("ascii", text.replace(b"9", b"9.0")),
        pcd("ascii", text).replace(b"COUNT 1 1 1 1\n", b""),
        pcd("ascii", text).replace(b"VERSION 0.7", b"VERSION .5"),
        pcd("ascii", text).replace(b"DATA", b"SENSOR front\nDATA"),
        pcd("ascii", text).replace(b"VERSION", b"# Stra\xdfe\nVERSION"),
        compressed(struct.pack("<6f", 1, 4, 2, 5, 3, 6), **padded),
    ):
        assert points_of(written(tmp_path, "a.pcd", content)) == [[1, 2, 3], [4, 5, 6]]
