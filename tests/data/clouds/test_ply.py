# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from cloud_files import POINTS, points_of, refusal, scan, written

from bpfn_cli.data import clouds
from bpfn_cli.data.clouds import read_cloud
from bpfn_cli.data.clouds.cloud import CloudFile
from bpfn_cli.data.clouds.ply import read_ply
from bpfn_cli.errors import DataError

ASCII_PLY = """ply
format ascii 1.0
comment made by hand, Å, é
obj_info nothing
element vertex 2
property float x
property uchar red
property float y
property double z
element face 1
property list uchar int vertex_indices
end_header
1 255 2 3
-4 0 5.5 6.25
3 0 1 1
"""


def binary_ply(order: str, faces: bool = True) -> bytes:
    word = {"<": "little", ">": "big"}[order]
    header = f"ply\nformat binary_{word}_endian 1.0\n" + ASCII_PLY.partition("1.0\n")[2].partition("end_header")[0]
    body = b"".join(struct.pack(order + "fBfd", x, 7, y, z) for x, y, z in POINTS)
    if not faces:
        return header.partition("element face")[0].encode() + b"end_header\n" + body
    return header.encode() + b"end_header\n" + body + struct.pack(order + "Biii", 3, 0, 1, 1)


def test_ascii_ply_finds_xyz_among_other_properties(tmp_path):
    assert points_of(written(tmp_path, "cloud.ply", ASCII_PLY)) == POINTS
    assert points_of(written(tmp_path, "dos.ply", ASCII_PLY.replace("\n", "\r\n"))) == POINTS


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("faces", [True, False])
def test_binary_ply_finds_xyz_among_other_properties(tmp_path, order, faces):
    assert points_of(written(tmp_path, "cloud.ply", binary_ply(order, faces))) == POINTS


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("char", "i1"),
        ("uint8", "u1"),
        ("short", "i2"),
        ("uint16", "u2"),
        ("int", "i4"),
        ("uint32", "u4"),
        ("int64", "i8"),
    ],
)
def test_binary_ply_reads_integers(tmp_path, name, kind):
    header = "ply\nformat binary_big_endian 1.0\nelement vertex 1\n" + "".join(
        f"property {name} {axis}\n" for axis in "zyx"
    )
    body = np.array([3, 2, 1], ">" + kind).tobytes()
    path = written(tmp_path, "cloud.ply", header.encode() + b"end_header\n" + body)
    assert points_of(path) == [[1, 2, 3]]


def test_ply_skips_plain_elements_before_the_vertices(tmp_path):
    camera = "element camera 2\nproperty float focal\n"
    text = ASCII_PLY.replace("element vertex", camera + "element vertex").replace("end_header\n", "end_header\n9\n9\n")
    assert points_of(written(tmp_path, "ascii.ply", text)) == POINTS
    content = binary_ply("<").replace(b"element vertex", camera.encode() + b"element vertex")
    content = content.replace(b"end_header\n", b"end_header\n" + bytes(8))
    assert points_of(written(tmp_path, "binary.ply", content)) == POINTS


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("ply\n", "plx\n", "not a PLY"),
        ("end_header\n", "", "not a PLY"),
        ("format ascii 1.0\n", "", "without a format"),
        ("ascii 1.0", "ascii 2.0", "unknown PLY header line"),
        ("ascii", "binary_middle_endian", "unknown PLY header line"),
        ("vertex 2", "vertex -2", "unknown PLY header line"),
        ("vertex 2", "vertex 9999999999999", "unknown PLY header line"),
        ("vertex 2", "vertex 999999999999", "truncated: 3 lines of points found, 999999999999 expected"),
        ("vertex 2", "vertex 0", "empty"),
        ("vertex 2", "corner 2", "0 vertex elements"),
        ("element face 1", "element vertex 1", "2 vertex elements"),
        ("property uchar red", "property half red", "unknown PLY header line"),
        ("property uchar red", "property float x", "duplicate property"),
        (
            "property uchar red",
            "property list uchar int red",
            "a vertex does not have the numbers that its lists announce",
        ),
        ("property uchar red", "property list float int red", "unknown PLY header line"),
        ("property uchar red", "property list int64 int red", "unknown PLY header line"),
        (
            "element vertex",
            "element face 1\nproperty list uchar int i\nelement vertex",
            "truncated: 3 lines after the header",
        ),
        ("property float y", "property float h", "without x, y and z; they have x, red, h, z"),
        ("element vertex 2\n", "", "unknown PLY header line"),
        ("1 255 2 3", "1 255 2", "point 2 is '-4 0 5.5 6.25'; 3 numbers in each line expected"),
        ("1 255 2 3", "1 255 2 3 4", "point 2 is '-4 0 5.5 6.25'"),
        ("1 255 2 3\n-4 0 5.5 6.25", "1 2 3\n4 5 6", "expected"),
        ("1 255 2 3", "", "point 1 is ''; 4 numbers in each line expected"),
        ("1 255 2 3", "1 255 two 3", "point 1 is '1 255 two 3'"),
        ("1 255 2 3", "1 255 0x2 3", "point 1 is"),
    ],
)
def test_damaged_ascii_ply_is_refused(tmp_path, old, new, word):
    assert old in ASCII_PLY
    assert word in refusal(written(tmp_path, "cloud.ply", ASCII_PLY.replace(old, new, 1)))


def test_binary_ply_compares_sizes(tmp_path):
    whole = binary_ply("<", faces=False)
    assert "truncated: 33 bytes" in refusal(written(tmp_path, "short.ply", whole[:-1]))
    longer = written(tmp_path, "long.ply", whole + b"!")
    assert points_of(longer) == POINTS
    assert read_cloud(longer).notes == ("1 bytes after the last element are left out",)
    claims = whole.replace(b"vertex 2", b"vertex 999999999999")
    assert "16999999999983 expected" in refusal(written(tmp_path, "claims.ply", claims))


@pytest.mark.parametrize("count", [600, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_clouds_give_points_or_data_errors(monkeypatch, recwarn, count):
    dice = random.Random(0)
    sources = [ASCII_PLY.encode(), binary_ply("<"), binary_ply(">", faces=False)]
    refused = 0
    for index in range(count):
        content = bytearray(sources[index % 3])
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(content))
            match dice.randrange(3):
                case 0:
                    content[at] = dice.randrange(256)
                case 1:
                    del content[at : at + dice.randint(1, 9)]
                case 2:
                    content[at:at] = dice.choice([b"\n", b"9999", b"list ", b"-", b"\x85", b"nan"])
        monkeypatch.setattr(clouds, "read_file", lambda _path, content=content: content)
        try:
            cloud = read_cloud(Path("fuzzed.ply"))
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
        else:
            assert cloud.points.shape == (len(cloud.valid), 3)
            assert np.isfinite(cloud.points).all()
    assert count / 3 < refused < count
    assert not recwarn.list


# --- lists ------------------------------------------------------------------------------------------

LISTS_PLY = """ply
format {kind} 1.0
element camera 2
property list ushort float k
element vertex 3
property float x
property list uchar short neighbors
property double y
property uchar quality
property list int uchar tags
property float z
element face 1
property list uchar int vertex_indices
end_header
"""
LISTS_ASCII = "1 9\n0\n1 2 7 8 2 200 0 3\n4 0 5 100 3 1 2 3 6\n7 1 9 8 0 1 5 9\n3 0 1 2\n"
LISTS_ROWS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def lists_body(order: str) -> bytes:
    cameras = struct.pack(order + "HfH", 1, 9, 0)
    vertices = (
        struct.pack(order + "fBhhdBif", 1, 2, 7, 8, 2, 200, 0, 3)
        + struct.pack(order + "fBdBi3Bf", 4, 0, 5, 100, 3, 1, 2, 3, 6)
        + struct.pack(order + "fBhdBiBf", 7, 1, 9, 8, 0, 1, 5, 9)
    )
    return cameras + vertices + struct.pack(order + "Biii", 3, 0, 1, 2)


LISTS = {
    "ascii": LISTS_ASCII.encode(),
    "binary_little_endian": lists_body("<"),
    "binary_big_endian": lists_body(">"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_in_and_before_the_vertices_are_skipped(tmp_path, kind):
    path = written(tmp_path, "a.ply", LISTS_PLY.format(kind=kind).encode() + LISTS[kind])
    assert points_of(path) == LISTS_ROWS
    assert not read_cloud(path).notes


@pytest.mark.parametrize("kind", LISTS)
def test_truncated_lists_are_refused(tmp_path, kind):
    whole = LISTS_PLY.format(kind=kind).encode() + LISTS[kind]
    for missing in (15, 30, 50):
        assert refusal(written(tmp_path, "a.ply", whole[:-missing]))
    negative = whole.replace(struct.pack("<i", 3), struct.pack("<i", -3))
    if kind == "binary_little_endian":
        assert "negative length" in refusal(written(tmp_path, "a.ply", negative))


def test_wrong_count_of_vertices_with_lists_is_refused(tmp_path):
    text = LISTS_PLY.format(kind="ascii")
    assert "truncated" in refusal(written(tmp_path, "a.ply", text.replace("vertex 3", "vertex 9") + LISTS_ASCII))
    wrong = LISTS_ASCII.replace("1 2 7 8 2", "1 3 7 8 2")
    assert "lists announce" in refusal(written(tmp_path, "a.ply", text + wrong))


def test_lines_after_the_last_element_are_said(tmp_path):
    path = written(tmp_path, "a.ply", ASCII_PLY + "1 2 3\n\n")
    assert points_of(path) == POINTS
    assert read_cloud(path).notes == ("1 lines after the last element are left out",)


# --- trimesh ----------------------------------------------------------------------------------------


def trimesh():
    return pytest.importorskip("trimesh", reason="trimesh, of the extra dev, is not installed")


def equals_trimesh(content: bytes, *more: str) -> None:
    """Whether x, y and z, and the bytes named by `more`, are those that trimesh finds."""
    library = trimesh().load(io.BytesIO(content), file_type="ply", process=False)
    read = read_ply(CloudFile("a.ply", bytearray(content))).by_name
    points = np.stack([read[axis] for axis in "xyz"], axis=1)
    if content.split()[2] == b"ascii":  # trimesh rounds to the type in the header
        points, vertices = points.astype(np.float32), library.vertices.astype(np.float32)
    else:
        vertices = library.vertices
    assert np.array_equal(points, vertices, equal_nan=True)
    assert not more or np.array_equal(np.stack([read[name] for name in more], axis=1), library.colors)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_clouds_and_meshes_written_by_trimesh_equal_its_own(encoding, kind):
    library, rows, count = trimesh(), scan(500).astype(kind) / 3, np.arange(500)
    rows[::5], rows[1::5, 1] = 0, np.nan
    colors = np.random.default_rng(0).integers(256, size=(500, 4), dtype=np.uint8)
    cloud = library.PointCloud(rows, colors=colors).export(file_type="ply", encoding=encoding)
    equals_trimesh(cloud, "red", "green", "blue", "alpha")
    faces, labels = (
        np.stack([count[:-2], count[1:-1], count[2:]], axis=1),
        {"label": count, "half": rows[:, 0].astype("f2")},
    )
    mesh = library.Trimesh(rows, faces, process=False, vertex_attributes=labels)
    equals_trimesh(mesh.export(file_type="ply", encoding=encoding))


@pytest.mark.parametrize(
    "content", [ASCII_PLY.encode(), binary_ply("<"), binary_ply(">"), binary_ply(">", faces=False)]
)
def test_points_equal_those_of_trimesh(content):
    equals_trimesh(content)


def test_files_are_read_that_trimesh_misreads_or_refuses(tmp_path):
    quad = struct.pack("<B3iB4i", 3, 0, 1, 1, 4, 0, 1, 1, 0)
    for content in (
        binary_ply(">").replace(b"ply\n", b"ply\ncomment made by hand\n"),
        binary_ply("<").replace(b"face 1", b"face 2")[:-13] + quad,
        ASCII_PLY.replace("comment made", "comment end_header is below, made").encode(),
        ASCII_PLY.encode("latin-1"),
        ASCII_PLY.replace("float x", "float X").encode(),
    ):
        assert points_of(written(tmp_path, "a.ply", content)) == POINTS
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty list uchar short neighbors\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    body = struct.pack("<Bh3fBhh3fB3f", 1, 7, 1, 2, 3, 2, 7, 7, 4, 5, 6, 0, 7, 8, 9)
    assert points_of(written(tmp_path, "a.ply", header.encode() + body)) == LISTS_ROWS
