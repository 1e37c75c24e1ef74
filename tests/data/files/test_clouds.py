# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from bpfn_cli.data.files import clouds
from bpfn_cli.data.files.clouds import read_cloud, read_cloud_pair
from bpfn_cli.errors import DataError

POINTS = [[1.0, 2.0, 3.0], [-4.0, 5.5, 6.25]]

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


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, reader=read_cloud) -> str:
    with pytest.raises(DataError) as caught:
        reader(path)
    assert str(caught.value).isprintable()
    assert path.name in str(caught.value)
    return str(caught.value).replace(str(path.parent), "")  # which may hold the word looked for


def binary_ply(order: str, faces: bool = True) -> bytes:
    word = {"<": "little", ">": "big"}[order]
    header = f"ply\nformat binary_{word}_endian 1.0\n" + ASCII_PLY.partition("1.0\n")[2].partition("end_header")[0]
    body = b"".join(struct.pack(order + "fBfd", x, 7, y, z) for x, y, z in POINTS)
    if not faces:
        return header.partition("element face")[0].encode() + b"end_header\n" + body
    return header.encode() + b"end_header\n" + body + struct.pack(order + "Biii", 3, 0, 1, 1)


# --- npy, npz, bin -------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [3, 4, 7])
def test_npy_cloud_is_its_first_three_columns(tmp_path, columns):
    rows = np.concatenate([POINTS, np.full((2, columns - 3), np.nan)], axis=1)
    np.save(tmp_path / "cloud.npy", rows)
    cloud = read_cloud(tmp_path / "cloud.npy")
    assert cloud.dtype == np.float32
    assert cloud.flags.c_contiguous
    assert cloud.tolist() == POINTS


def test_ending_is_read_in_any_case(tmp_path):
    np.save(tmp_path / "cloud.npy", np.array(POINTS))
    (tmp_path / "cloud.npy").rename(tmp_path / "cloud.NPY")
    assert read_cloud(tmp_path / "cloud.NPY").tolist() == POINTS


@pytest.mark.parametrize("name", ["points", "pc", "xyz"])
def test_npz_cloud_is_the_array_of_a_known_name(tmp_path, name):
    np.savez(tmp_path / "cloud.npz", other=np.zeros(3), **{name: np.array(POINTS)})
    assert read_cloud(tmp_path / "cloud.npz").tolist() == POINTS


def test_npz_cloud_is_the_only_array(tmp_path):
    np.savez(tmp_path / "cloud.npz", anything=np.array(POINTS))
    assert read_cloud(tmp_path / "cloud.npz").tolist() == POINTS


def test_npz_of_unknown_arrays_is_refused_with_their_names(tmp_path):
    np.savez(tmp_path / "cloud.npz", a=np.array(POINTS), b=np.array(POINTS))
    assert "holds a, b" in refusal(tmp_path / "cloud.npz")
    np.savez(tmp_path / "cloud.npz")
    assert "holds nothing" in refusal(tmp_path / "cloud.npz")


def test_velodyne_cloud_drops_the_intensity(tmp_path):
    content = struct.pack("<8f", 1, 2, 3, 0.5, -4, 5.5, 6.25, 0)
    assert read_cloud(written(tmp_path, "000000.bin", content)).tolist() == POINTS
    assert "33 bytes found, a multiple of 16" in refusal(written(tmp_path, "bad.bin", content + b"!"))
    assert "empty" in refusal(written(tmp_path, "empty.bin", b""))


@pytest.mark.parametrize("ending", [".npy", ".npz", ".ply", ".bin"])
def test_every_format_checks_its_points(tmp_path, ending):
    far = np.array([[0, 0, 0], [0, 2e4, 0]], np.float32)
    path = tmp_path / f"cloud{ending}"
    match ending:
        case ".npy":
            np.save(path, far)
        case ".npz":
            np.savez(path, far)
        case ".ply":
            path.write_text(
                "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\n"
                "property float z\nend_header\n0 0 0\n0 2e4 0\n"
            )
        case ".bin":
            path.write_bytes(np.pad(far, ((0, 0), (0, 1))).tobytes())
    assert "1 of 2 rows are beyond 10000 m, the first is row 1; subtract an origin" in refusal(path)


@pytest.mark.parametrize("name", ["cloud.txt", "cloud", "cloud.npy.gz", ".npy"])
def test_unknown_ending_is_refused_with_the_known_ones(tmp_path, name):
    assert "use one of .bin, .npy, .npz, .pcd, .ply" in refusal(written(tmp_path, name, b"1 2 3"))


@pytest.mark.parametrize("ending", [".npy", ".npz", ".ply", ".bin"])
def test_missing_files_and_fifos_are_refused(tmp_path, ending):
    assert "no such file" in refusal(tmp_path / f"cloud{ending}")
    os.mkfifo(tmp_path / f"cloud{ending}")
    assert "pipe" in refusal(tmp_path / f"cloud{ending}")


# --- pairs ---------------------------------------------------------------------------------------


def test_pair_without_flow(tmp_path):
    np.savez(tmp_path / "pair.npz", pc1=np.array(POINTS), pc2=np.ones((5, 4)))
    pc1, pc2, flow = read_cloud_pair(tmp_path / "pair.npz")
    assert pc1.tolist() == POINTS
    assert pc2.tolist() == [[1, 1, 1]] * 5
    assert flow is None


def test_pair_with_flow(tmp_path):
    np.savez(tmp_path / "pair.npz", pc1=np.array(POINTS), pc2=np.ones((5, 3)), flow=np.ones((2, 3)))
    flow = read_cloud_pair(tmp_path / "pair.npz")[2]
    assert flow is not None
    assert flow.dtype == np.float32
    assert flow.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_pair_refuses_a_flow_of_other_length(tmp_path):
    np.savez(tmp_path / "pair.npz", pc1=np.array(POINTS), pc2=np.ones((5, 3)), flow=np.ones((5, 3)))
    assert "flow has 5 rows, pc1 2" in refusal(tmp_path / "pair.npz", read_cloud_pair)


def test_pair_names_the_array_at_fault(tmp_path):
    np.savez(tmp_path / "pair.npz", pc1=np.array(POINTS), pc2=np.full((5, 3), np.nan))
    assert "pc2: 5 of 5 rows hold NaN" in refusal(tmp_path / "pair.npz", read_cloud_pair)
    np.savez(tmp_path / "pair.npz", pc1=np.array(POINTS))
    assert "no array pc2; it holds pc1" in refusal(tmp_path / "pair.npz", read_cloud_pair)


def test_pair_is_an_npz(tmp_path):
    assert "must be an .npz with pc1 and pc2" in refusal(tmp_path / "pair.ply", read_cloud_pair)


@pytest.mark.realdata
def test_argoverse_pair_is_read():
    if "BPFN_REAL_DATA" not in os.environ:
        pytest.skip("BPFN_REAL_DATA, the folder of real samples, is not set")
    pc1, pc2, flow = read_cloud_pair(Path(os.environ["BPFN_REAL_DATA"]) / "argoverse2" / "pair.npz")
    assert pc1.shape == (78502, 3)
    assert pc2.shape == (95518, 3)
    assert flow is not None and flow.shape == (78502, 3)


# --- ply -----------------------------------------------------------------------------------------


def test_ascii_ply_finds_xyz_among_other_properties(tmp_path):
    assert read_cloud(written(tmp_path, "cloud.ply", ASCII_PLY)).tolist() == POINTS
    assert read_cloud(written(tmp_path, "dos.ply", ASCII_PLY.replace("\n", "\r\n"))).tolist() == POINTS


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("faces", [True, False])
def test_binary_ply_finds_xyz_among_other_properties(tmp_path, order, faces):
    assert read_cloud(written(tmp_path, "cloud.ply", binary_ply(order, faces))).tolist() == POINTS


@pytest.mark.parametrize(
    ("name", "kind"),
    [("char", "i1"), ("uint8", "u1"), ("short", "i2"), ("uint16", "u2"), ("int", "i4"), ("uint32", "u4")],
)
def test_binary_ply_reads_integers(tmp_path, name, kind):
    header = "ply\nformat binary_big_endian 1.0\nelement vertex 1\n" + "".join(
        f"property {name} {axis}\n" for axis in "zyx"
    )
    body = np.array([3, 2, 1], ">" + kind).tobytes()
    path = written(tmp_path, "cloud.ply", header.encode() + b"end_header\n" + body)
    assert read_cloud(path).tolist() == [[1, 2, 3]]


def test_ply_skips_plain_elements_before_the_vertices(tmp_path):
    camera = "element camera 2\nproperty float focal\n"
    text = ASCII_PLY.replace("element vertex", camera + "element vertex").replace("end_header\n", "end_header\n9\n9\n")
    assert read_cloud(written(tmp_path, "ascii.ply", text)).tolist() == POINTS
    content = binary_ply("<").replace(b"element vertex", camera.encode() + b"element vertex")
    content = content.replace(b"end_header\n", b"end_header\n" + bytes(8))
    assert read_cloud(written(tmp_path, "binary.ply", content)).tolist() == POINTS


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
        ("property uchar red", "property list uchar int red", "lists"),
        ("element vertex", "element face 1\nproperty list uchar int i\nelement vertex", "lists"),
        ("property float y", "property float Y", "without x, y and z"),
        ("element vertex 2\n", "", "unknown PLY header line"),
        ("1 255 2 3", "1 255 2", "numbers only"),
        ("1 255 2 3", "1 255 2 3 4", "numbers only"),
        ("1 255 2 3\n-4 0 5.5 6.25", "1 2 3\n4 5 6", "expected"),
        ("1 255 2 3", "", "numbers only"),
        ("1 255 2 3", "1 255 two 3", "numbers only"),
        ("1 255 2 3", "1 255 0x2 3", "numbers only"),
        ("1 255 2 3", "1 255 nan 3", "1 of 2 rows hold NaN"),
    ],
)
def test_damaged_ascii_ply_is_refused(tmp_path, old, new, word):
    assert old in ASCII_PLY
    assert word in refusal(written(tmp_path, "cloud.ply", ASCII_PLY.replace(old, new, 1)))


def test_binary_ply_compares_sizes(tmp_path):
    whole = binary_ply("<", faces=False)
    assert "truncated: 33 bytes" in refusal(written(tmp_path, "short.ply", whole[:-1]))
    assert "trailing bytes: 35 bytes after the header found, 34 expected" in refusal(
        written(tmp_path, "long.ply", whole + b"!")
    )
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
            assert cloud.shape[1] == 3 and np.isfinite(cloud).all()
    assert count / 3 < refused < count
    assert not recwarn.list


# --- PCD -------------------------------------------------------------------------------------------

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
    assert read_cloud(ascii_file).tolist() == read_cloud(binary).tolist() == expected
    wide = {"fields": "z _ x y", "sizes": "8 1 4 2", "types": "F U F I", "counts": "1 3 1 1"}
    binary.write_bytes(pcd("binary", struct.pack("<d3Bfhd3Bfh", 3, 0, 0, 0, 1, 2, 6, 0, 0, 0, 4, 5), **wide))
    ascii_file.write_bytes(pcd("ascii", b"3 0 0 0 1 2\n6 0 0 0 4 5\n", **wide))
    assert read_cloud(ascii_file).tolist() == read_cloud(binary).tolist() == expected


def test_pcd_points_without_a_measurement_are_left_out(tmp_path):
    (tmp_path / "a.pcd").write_bytes(pcd("ascii", b"nan nan nan 0\n4 5 6 9\n"))
    assert read_cloud(tmp_path / "a.pcd").tolist() == [[4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nothing", "not a PCD file"),
        (pcd("binary_compressed", b""), "save it as ascii or binary"),
        (pcd("binary", b"\0" * 25), "25 bytes after the header found, 26 expected"),
        (pcd("ascii", b"1 2 3"), "1 lines of points found, 2 expected"),
        (pcd("ascii", b"1 2 3\n4 5 6"), "3 numbers per point found, 4 expected"),
        (pcd("ascii", b"1 2 3 x\n4 5 6 7"), "numbers only"),
        (pcd("ascii", b"", fields="x y intensity t"), "without x, y and z"),
        (pcd("ascii", b"", sizes="4 4"), "damaged PCD header"),
        (pcd("ascii", b"", types="F F F S"), "damaged PCD header"),
        (pcd("ascii", b"", sizes="3 4 4 1"), "damaged PCD header"),
        (pcd("ascii", b"", counts="1 1 1 9999999"), "damaged PCD header"),
        (pcd("binary", b"", points=10**12), "0 bytes after the header found"),
        (pcd("ascii", b"nan 1 1 1\nnan 1 1 1"), "empty"),
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
