# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import io
import os
import pickle
import random
import socket
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfn_cli.data.files import npz as npz_files
from bpfn_cli.data.files.npy import npy_shape, parse_npy, read_npy
from bpfn_cli.data.files.npz import npz_names, read_npz
from bpfn_cli.data.files.points import check_points, read_points, write_points
from bpfn_cli.data.files.regular import read_file
from bpfn_cli.errors import BpfnError, DataError, DiskError

POINTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def with_header(text: str, data: bytes = b"") -> bytes:
    header = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def shape_header(shape: str, descr: str = "'<f4'") -> bytes:
    return with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


def written(folder: Path, content: bytes, name: str = "cloud.npy") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path, reader=read_points, kind: type[BpfnError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        reader(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message.replace(str(path.parent), "")  # which may hold the word looked for


class Canary:
    """Unpickled, it creates the file `touched`."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8"])
@pytest.mark.parametrize("order", "<>")
def test_read_npy_gives_native_values_of_every_order(tmp_path, version, kind, order):
    array = np.array([[1, 2, 3], [4, 5, 100]], dtype=order + kind)
    read = read_npy(written(tmp_path, npy(array, version)))
    assert read.tolist() == [[1, 2, 3], [4, 5, 100]]
    assert read.dtype == np.dtype(kind)
    assert read.dtype.isnative and read.flags.writeable and read.flags.c_contiguous and read.flags.aligned


@pytest.mark.parametrize("values", [[True, False], [[1.5]], 7, [], [[], []]])
def test_read_npy_keeps_shape(tmp_path, values):
    array = np.array(values)
    read = read_npy(written(tmp_path, npy(array)))
    assert read.shape == array.shape
    assert read.tolist() == array.tolist()


def test_read_npy_converts_fortran_order_exactly(tmp_path):
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(5, 3)).astype(">f4"))
    content = npy(array)
    assert b"'fortran_order': True" in content
    read = read_npy(written(tmp_path, content))
    assert read.flags.c_contiguous
    assert read.tolist() == array.tolist()


def test_read_npy_aligns_data_behind_an_odd_header(tmp_path):
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"
    text += " " * (len(text) % 2)
    read = read_npy(written(tmp_path, with_header(text, np.array([1, 2], "<f4").tobytes())))
    assert read.tolist() == [1, 2]
    assert read.flags.aligned


def test_read_npy_reads_any_nonzero_byte_as_true(tmp_path):
    content = npy(np.array([False, False, True]))[:-3] + b"\x00\x02\xff"
    read = read_npy(written(tmp_path, content))
    assert read.view(np.uint8).tolist() == [0, 1, 1]


def test_npy_shape_needs_no_data(tmp_path):
    assert npy_shape(written(tmp_path, npy(POINTS))) == (4, 3)
    assert "truncated" in refusal(written(tmp_path, npy(POINTS)[:-1]), npy_shape)


def test_read_points_converts_doubles(tmp_path):
    points = read_points(written(tmp_path, npy(np.array([[0.1, -2, 1e4]]))))
    assert points.dtype == np.float32
    assert points.tolist() == [[np.float32(0.1), -2, 10000]]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 47, 100])
def test_truncated_file_names_bytes_found_and_expected(tmp_path, missing):
    content = npy(POINTS)
    message = refusal(written(tmp_path, content[:-missing]))
    assert f"{len(content) - missing} bytes found" in message
    assert "expected" in message


def test_trailing_bytes_are_refused_with_both_sizes(tmp_path):
    path = written(tmp_path, npy(POINTS) + b"!")
    assert np.load(path).shape == (4, 3)  # what makes the rule necessary
    assert "trailing" in (message := refusal(path))
    assert "177 bytes found, 176 expected" in message


def test_object_array_runs_nothing(tmp_path):
    touched = tmp_path / "touched"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(touched)], dtype=object), allow_pickle=True)
    assert "Python objects" in refusal(written(tmp_path, buffer.getvalue()))
    assert not touched.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_raw_pickle_runs_nothing(tmp_path, protocol):
    touched = tmp_path / "touched"
    message = refusal(written(tmp_path, pickle.dumps(Canary(touched), protocol)))
    assert "pickle" in message
    assert not touched.exists()


def test_archive_named_npy_is_called_an_archive(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, POINTS)
    assert "zip archive" in refusal(written(tmp_path, buffer.getvalue()))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"1 2 3\n", "something else"),
        (b"\x93NUMPY", "truncated"),
        (b"\x93NUMPY\x04\x00" + bytes(60), "version 4"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(60), "header of 4294967295 bytes"),
        (b"\x93NUMPY\x01\x00\x80\x00" + bytes(60), "truncated"),
        (with_header("{ "), "damaged"),
        (with_header("{'descr': '<f4', 'shape': (1, 3)}"), "fortran_order"),
        (with_header("{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 3)}"), "fortran_order"),
        (with_header("['descr']"), "descr"),
        (with_header("(" * 4000), "damaged"),
        (with_header("[" * 1500 + "]" * 1500), "damaged"),
        (with_header("{'a': 9" + "9" * 4000 + "}"), "damaged"),
        (with_header("__import__('os').getpid()"), "damaged"),
        (with_header("{[]: 1}"), "damaged"),
        (with_header("{1if 1else 2: 3}"), "damaged"),
    ],
)
def test_what_is_no_npy_file_is_said(tmp_path, recwarn, content, word):
    assert word in refusal(written(tmp_path, content))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (shape_header("(1000000000000, 3)"), "more than any file holds"),
        (shape_header("(1000000000, 3)"), "12000000"),
        (shape_header("(10000000000, 3)", "'|V0'"), "float32"),
        (shape_header("(99999999999999999999999999, 3)"), "more than any file holds"),
        (shape_header("(0, 99999999999999999999, 99999999999999999999)"), "more than any file holds"),
        (shape_header("(1, 1, 1, 1, 1, 1, 1, 1, 1)"), "more than any file holds"),
        (shape_header("(-1, 3)"), "damaged"),
        (shape_header("(True, 3)"), "not a tuple of sizes"),
        (shape_header("(1.0, 3)"), "damaged"),
        (shape_header("[1, 3]"), "not a tuple of sizes"),
        (shape_header("3"), "not a tuple of sizes"),
    ],
)
def test_claimed_sizes_are_refused_without_allocation(tmp_path, content, word):
    path = written(tmp_path, content)
    tracemalloc.start()
    try:
        assert word in refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, np.complex64),
        np.zeros(4, np.float16),
        np.zeros(4, "S3"),
        np.zeros(4, "M8[s]"),
        np.zeros(4, [("x", "f4"), ("y", "f4"), ("z", "f4")]),
    ],
)
def test_other_types_are_refused_with_the_expected_one(tmp_path, array):
    assert "float32" in refusal(written(tmp_path, npy(array)))


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


# --- files that are no files ---------------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    assert "no such file" in refusal(tmp_path / "pc2.npy")
    assert "no such file" in refusal(written(tmp_path, b"") / "pc2.npy")


def test_folder_fifo_socket_and_device_are_refused_at_once(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "fifo.npy")
    assert "folder" in refusal(tmp_path / "folder.npy")
    assert "pipe" in refusal(tmp_path / "fifo.npy")
    assert "device" in refusal(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.npy"))
        assert "socket" in refusal(tmp_path / "s.npy")


def test_fifo_put_in_place_after_the_check_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "fifo.npy"
    os.mkfifo(path)
    regular = written(tmp_path, b"", "regular").stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: regular)
    assert "pipe" in refusal(path)


def test_links_are_followed_and_loops_refused(tmp_path):
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    (tmp_path / "link.npy").symlink_to(written(tmp_path, npy(POINTS)))
    assert "no such file" in refusal(tmp_path / "loop.npy")
    assert read_points(tmp_path / "link.npy").tolist() == POINTS.tolist()


def test_impossible_name_is_refused():
    with pytest.raises(DataError, match="not a valid file name"):
        read_file(Path("a\0b"))
    with pytest.raises(DataError, match="no such file"):
        read_file(Path("x" * 5000))


@pytest.mark.parametrize(("number", "word"), [(errno.EACCES, "permission"), (errno.EIO, "error")])
def test_refusals_of_the_system_are_disk_errors(tmp_path, monkeypatch, number, word):
    path = written(tmp_path, npy(POINTS))

    def refuse(*_args):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refuse)
    assert word in refusal(path, kind=DiskError)


def test_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, npy(POINTS))
    fstat = os.fstat

    def shrink_after(descriptor):
        status = fstat(descriptor)
        os.truncate(path, 100)
        return status

    monkeypatch.setattr(os, "fstat", shrink_after)
    assert "shorter" in refusal(path)


def test_file_of_terabytes_is_refused_unread(tmp_path):
    path = tmp_path / "sparse.npy"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    assert "1099511627776 bytes" in refusal(path)


def test_control_characters_in_names_are_escaped(tmp_path):
    with pytest.raises(DataError) as caught:
        read_points(written(tmp_path, b"", "a\x1b[31m\nb.npy"))
    assert "a\\x1b[31m\\nb.npy" in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_with_spaces_and_accents_work(tmp_path):
    assert len(read_points(written(tmp_path, npy(POINTS), "-où est la clé.npy"))) == 4


# --- archives ------------------------------------------------------------------------------------


def npz(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def pc1_refusal(path: Path) -> str:
    return refusal(path, lambda path: read_npz(path, ["pc1"]))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_read_npz_gives_the_named_arrays(tmp_path, save):
    save(tmp_path / "pair.npz", pc1=POINTS, pc2=POINTS[:2] + 1, other=np.array([None]))
    assert npz_names(tmp_path / "pair.npz") == ("pc1", "pc2", "other")
    read = read_npz(tmp_path / "pair.npz", ["pc2", "pc1"])
    assert list(read) == ["pc2", "pc1"]
    assert read["pc2"].tolist() == (POINTS[:2] + 1).tolist()


def test_read_npz_names_what_is_missing_and_what_is_there(tmp_path):
    message = pc1_refusal(written(tmp_path, npz(points1=npy(POINTS)), "pair.npz"))
    assert "no array pc1; it holds points1" in message


def test_read_npz_runs_nothing(tmp_path):
    touched = tmp_path / "touched"
    np.savez(tmp_path / "pair.npz", pc1=np.array([Canary(touched)], dtype=object))
    assert "Python objects" in pc1_refusal(tmp_path / "pair.npz")
    assert not touched.exists()


def test_zip_bomb_is_refused_before_it_expands(tmp_path):
    size = npz_files.MAX_UNQUESTIONED_BYTES // 12 + 1
    path = written(tmp_path, npz(zipfile.ZIP_DEFLATED, pc1=npy(np.zeros((size, 3), "f4"))), "bomb.npz")
    tracemalloc.start()
    try:
        assert "bomb" in pc1_refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("change", [-4, 4, 1 << 24])
def test_member_whose_declared_size_is_not_that_of_its_header_is_refused(tmp_path, change):
    content = bytearray(npz(pc1=npy(np.zeros((1000, 3), "f4"))))
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (12128 + change).to_bytes(4, "little")
    message = pc1_refusal(written(tmp_path, bytes(content), "pair.npz"))
    assert f"{12128 + change} bytes declared, 12128 expected" in message


def test_member_with_trailing_bytes_is_refused(tmp_path):
    assert "177" in pc1_refusal(written(tmp_path, npz(pc1=npy(POINTS) + b"!"), "pair.npz"))


def test_member_of_other_compression_is_refused(tmp_path):
    assert "compression" in pc1_refusal(written(tmp_path, npz(zipfile.ZIP_BZIP2, pc1=npy(POINTS)), "pair.npz"))


def test_encrypted_member_is_refused(tmp_path):
    content = bytearray(npz(pc1=npy(POINTS)))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in pc1_refusal(written(tmp_path, bytes(content), "pair.npz"))


def test_two_members_of_one_name_are_refused(tmp_path):
    content = npz(pc1=npy(POINTS), pc2=npy(POINTS)).replace(b"pc2.npy", b"pc1.npy")
    assert "same name" in pc1_refusal(written(tmp_path, content, "pair.npz"))


def test_too_many_members_are_refused(tmp_path):
    members = {f"a{index}": b"" for index in range(npz_files.MAX_MEMBERS + 1)}
    assert "1025 members" in pc1_refusal(written(tmp_path, npz(**members), "pair.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", npy(POINTS), npz(pc1=npy(POINTS))[:-30]])
def test_what_is_no_archive_is_refused(tmp_path, content):
    assert "not an .npz archive" in pc1_refusal(written(tmp_path, content, "pair.npz"))


def test_damaged_member_is_refused_by_its_checksum(tmp_path):
    content = bytearray(npz(pc1=npy(POINTS)))
    content[content.index(POINTS.tobytes()) + 5] ^= 1
    assert "damaged" in pc1_refusal(written(tmp_path, bytes(content), "pair.npz"))


# --- writing -------------------------------------------------------------------------------------


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


# --- fuzz ----------------------------------------------------------------------------------------


def mutated(content: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or inserted, most of them near the start."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(len(changed), dice.choice([20, 128, len(changed)])) or 1)
        match dice.randrange(5):
            case 0 if changed:
                changed[at % len(changed)] = dice.randrange(256)
            case 1 if changed:
                changed[at % len(changed)] ^= 1 << dice.randrange(8)
            case 2:
                del changed[at : at + dice.randint(1, 40)]
            case 3:
                changed[at:at] = changed[at : at + dice.randint(1, 40)]
            case 4:
                changed[at:at] = dice.choice([b"(", b"9" * 9, b"'", b"-", b"\x00", b"1 or ", b"}"])
    return bytes(changed)


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_npy_files_give_points_or_data_errors(count):
    dice = random.Random(0)
    sources = [npy(POINTS), npy(np.asfortranarray(POINTS)), npy(POINTS, (2, 0)), npy(POINTS.astype(">f8"))]
    refused = 0
    for index in range(count):
        content = bytearray(mutated(sources[index % len(sources)], dice))
        try:
            points = check_points(parse_npy(content, "fuzzed.npy"), Path("fuzzed.npy"))
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
        else:
            assert points.shape[1] == 3 and np.isfinite(points).all()
    assert count / 10 < refused < count


@pytest.mark.parametrize("count", [600, pytest.param(4000, marks=pytest.mark.slow)])
def test_mutated_npz_files_give_arrays_or_data_errors(monkeypatch, count):
    dice = random.Random(1)
    sources = [
        npz(pc1=npy(POINTS), pc2=npy(POINTS + 1)),
        npz(zipfile.ZIP_DEFLATED, pc1=npy(POINTS), pc2=npy(POINTS + 1)),
    ]
    refused = 0
    for index in range(count):
        content = mutated(sources[index % 2], dice)
        if index % 4 > 1:  # the central directory, at the end, is what zipfile believes
            content = mutated(sources[index % 2][::-1], dice)[::-1]
        monkeypatch.setattr(npz_files, "read_file", lambda _path, content=content: bytearray(content))
        try:
            read_npz(Path("fuzzed.npz"), ["pc1", "pc2"])
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
    assert count / 4 < refused < count


HEADER_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["<f4", ">f8", "|O", "|V0"]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(descr=HEADER_VALUES, fortran=HEADER_VALUES, shape=HEADER_VALUES, data=st.binary(max_size=48))
def test_any_header_gives_an_array_of_its_size_or_a_data_error(descr, fortran, shape, data):
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape})
    content = bytearray(with_header(text.encode("ascii", "replace").decode(), data))
    try:
        array = parse_npy(content, "any.npy")
    except DataError as error:
        assert str(error).isprintable()
    else:
        assert array.nbytes == len(data)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    kind=st.sampled_from(["<f4", ">f4", "<f8", ">i2", "|u1", "|b1"]),
    fortran=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_plain_array_reads_as_numpy_reads_it(shape, kind, fortran, seed):
    array = np.random.default_rng(seed).integers(0, 2, size=shape).astype(kind)
    content = npy(np.asfortranarray(array) if fortran else array)
    read = parse_npy(bytearray(content), "any.npy")
    expected = np.load(io.BytesIO(content))
    assert read.shape == expected.shape
    assert read.tolist() == expected.tolist()
