# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import pickle
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from npy_files import POINTS, Canary, mutated, npy, refusal, shape_header, with_header, written

from bpfn_cli.data.files.npy import npy_shape, parse_npy, read_npy
from bpfn_cli.data.files.points import check_points
from bpfn_cli.errors import DataError


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
