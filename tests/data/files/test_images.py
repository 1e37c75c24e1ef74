# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import os
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import png
import pytest

from bpfn_cli.data.files.images import (
    MAX_IMAGE_BYTES,
    parse_flo,
    parse_kitti_disparity,
    parse_kitti_flow,
    parse_mask_png,
    parse_pfm,
)
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import read_file


def reader(parse):
    return lambda path: parse(read_file(path), printable(path))


read_pfm, read_flo, read_mask_png = map(reader, (parse_pfm, parse_flo, parse_mask_png))
read_kitti_disparity, read_kitti_flow = map(reader, (parse_kitti_disparity, parse_kitti_flow))
READERS = [read_pfm, read_flo, read_kitti_disparity, read_kitti_flow, read_mask_png]

PFM = b"Pf\n3 2\n-1.0\n" + struct.pack("<6f", 4, 5, 6, 1, 2, 3)  # rows bottom-up
FLO = b"PIEH" + struct.pack("<ii4f", 2, 1, 1.5, -2, 3, 4)


def written(folder: Path, content: bytes, name: str = "map") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path, reader) -> str:
    with pytest.raises(DataError) as caught:
        reader(path)
    assert str(caught.value).isprintable()
    assert path.name in str(caught.value)
    return str(caught.value).replace(str(path.parent), "")  # which may hold the word looked for


def png_bytes(rows: list, **options) -> bytes:
    """A PNG by pypng; `rows` of width * planes values."""
    planes = 1 if options.get("greyscale") or options.get("palette") else 3
    planes += bool(options.get("alpha"))
    buffer = io.BytesIO()
    png.Writer(len(rows[0]) // planes, len(rows), **options).write(buffer, rows)
    return buffer.getvalue()


def png_by_hand(size: tuple[int, int], depth: int, color: int, pixels: bytes, interlaced: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


# --- what is read --------------------------------------------------------------------------------


def test_pfm_puts_the_top_row_first(tmp_path):
    values = read_pfm(written(tmp_path, PFM))
    assert values.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert values.dtype == np.float32
    assert values.flags.c_contiguous


@pytest.mark.parametrize("scale", [b"1", b"1.0", b"+2.5e0", b".5"])
def test_pfm_of_positive_scale_is_big_endian(tmp_path, scale):
    content = b"Pf\n3 2\n" + scale + b"\n" + struct.pack(">6f", 4, 5, 6, 1, 2, 3)
    assert read_pfm(written(tmp_path, content)).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_pfm_header_on_one_line_or_of_dos(tmp_path):
    assert read_pfm(written(tmp_path, PFM.replace(b"Pf\n3", b"Pf 3"))).shape == (2, 3)
    assert read_pfm(written(tmp_path, PFM.replace(b"-1.0\n", b"-1.0\r\n"))).shape == (2, 3)


def test_flo_is_pairs_in_rows(tmp_path):
    flow = read_flo(written(tmp_path, FLO))
    assert flow.tolist() == [[[1.5, -2], [3, 4]]]
    assert flow.dtype == np.float32


def test_kitti_disparity_is_in_256ths_of_a_pixel(tmp_path):
    content = png_bytes([[0, 1, 256], [65535, 640, 3]], greyscale=True, bitdepth=16)
    disparity = read_kitti_disparity(written(tmp_path, content))
    assert disparity.dtype == np.float32
    assert disparity.tolist() == [[0, 1 / 256, 1], [65535 / 256, 2.5, 3 / 256]]


def test_kitti_flow_is_in_64ths_of_a_pixel_where_the_third_channel_is_1(tmp_path):
    content = png_bytes([[32768, 32768, 1, 32832, 32767, 1, 0, 65535, 0]], greyscale=False, bitdepth=16)
    flow, known = read_kitti_flow(written(tmp_path, content))
    assert flow.tolist() == [[[0, 0], [1, -1 / 64], [-512, 32767 / 64]]]
    assert known.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([[0, 1, 0], [1, 1, 0]], {"greyscale": True, "bitdepth": 1}),
        ([[0, 255, 0], [1, 7, 0]], {"greyscale": True, "bitdepth": 8}),
        ([[0, 65535, 0], [1, 7, 0]], {"greyscale": True, "bitdepth": 16}),
        (
            [[0, 0, 0, 0, 0, 9, 0, 0, 0], [255, 255, 255, 1, 0, 0, 0, 0, 0]],
            {"greyscale": False, "bitdepth": 8},
        ),
        ([[0, 1, 0], [1, 1, 0]], {"palette": [(0, 0, 0), (255, 255, 255)], "bitdepth": 1}),
        ([[1, 0, 1], [0, 0, 1]], {"palette": [(255, 255, 255), (0, 0, 0)], "bitdepth": 8}),
        ([[0, 255, 9, 0, 0, 255], [255, 9, 1, 255, 0, 0]], {"greyscale": True, "alpha": True, "bitdepth": 8}),
        ([[0, 1, 0], [1, 1, 0]], {"palette": [(0, 0, 0, 0), (255, 255, 255, 9)], "bitdepth": 1}),
    ],
)
def test_mask_is_where_a_color_is_not_0(tmp_path, rows, options):
    mask = read_mask_png(written(tmp_path, png_bytes(rows, **options)))
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[False, True, False], [True, True, False]]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_missing_empty_special_and_foreign_files_are_refused(tmp_path, reader):
    refusal(tmp_path / "missing", reader)
    refusal(tmp_path, reader)
    os.mkfifo(tmp_path / "fifo")
    assert "pipe" in refusal(tmp_path / "fifo", reader)
    for content in (b"", b"<html></html>", b"\x89PNG\r\n\x1a\n", b"Pf\n", b"PIEH", os.urandom(100)):
        refusal(written(tmp_path, content), reader)


@pytest.mark.parametrize(("reader", "content"), [(read_pfm, PFM), (read_flo, FLO)])
def test_float_maps_compare_sizes(tmp_path, reader, content):
    assert "bytes of pixels found" in refusal(written(tmp_path, content[:-1]), reader)
    assert "bytes of pixels found" in refusal(written(tmp_path, content + b"!"), reader)


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (read_pfm, PFM.replace(b"Pf", b"PF")),
        (read_pfm, PFM.replace(b"3 2", b"-3 2")),
        (read_pfm, PFM.replace(b"3 2", b"0 0")),
        (read_pfm, PFM.replace(b"3 2", b"999999 999999")),
        (read_pfm, PFM.replace(b"3 2", b"9999999 2")),
        (read_pfm, PFM.replace(b"-1.0", b"nan")),
        (read_flo, b"PIEX" + FLO[4:]),
        (read_flo, FLO[:4] + struct.pack("<ii", -2, -1) + FLO[12:]),
        (read_flo, FLO[:4] + struct.pack("<ii", 0, 5) + FLO[12:]),
        (read_flo, FLO[:4] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + FLO[12:]),
    ],
)
def test_float_maps_refuse_impossible_headers(tmp_path, reader, content):
    refusal(written(tmp_path, content), reader)


def test_kitti_maps_cut_to_8_bits_are_refused(tmp_path):
    grey = written(tmp_path, png_bytes([[1, 2]], greyscale=True, bitdepth=8))
    assert "1 channels of 8 bits found, 1 of 16 bits expected" in refusal(grey, read_kitti_disparity)
    color = written(tmp_path, png_bytes([[1, 2, 3]], greyscale=False, bitdepth=8))
    assert "3 channels of 8 bits found, 3 of 16 bits expected" in refusal(color, read_kitti_flow)
    other = written(tmp_path, png_bytes([[1, 2, 3]], greyscale=False, bitdepth=16))
    assert "3 channels of 16 bits found, 1 of 16 bits expected" in refusal(other, read_kitti_disparity)


@pytest.mark.parametrize(
    "content",
    [
        png_by_hand((2, 2), 16, 0, bytes(9)),  # one byte missing
        png_by_hand((2, 2), 16, 0, bytes(11)),
        png_by_hand((2, 2), 16, 0, bytes(10), interlaced=1),
        png_by_hand((0, 2), 16, 0, bytes(10)),
        png_by_hand((2, 2), 16, 1, bytes(10)),
        png_by_hand((2, 2), 16, 0, b"\x09" * 10),  # no such filter
        png_by_hand((2, 2), 8, 3, bytes(6)),  # no palette
        png_by_hand((2**31, 2**31), 16, 6, bytes(10)),
        png_by_hand((2, 2), 16, 0, bytes(10)).replace(b"IEND", b"IENX"),
        png_by_hand((2, 2), 16, 0, bytes(10)).replace(b"IDAT", b"IDAX"),
        png_by_hand((2, 2), 16, 0, bytes(10))[:-20],
    ],
)
def test_damaged_png_is_refused(tmp_path, recwarn, content):
    refusal(written(tmp_path, content), read_kitti_disparity)
    refusal(written(tmp_path, content), read_mask_png)
    assert not recwarn.list


def test_png_bomb_is_refused_before_it_expands(tmp_path):
    honest = png_by_hand((2, 2), 16, 0, bytes(10))
    assert read_kitti_disparity(written(tmp_path, honest)).tolist() == [[0, 0], [0, 0]]
    claims = png_by_hand((8192, 8192), 16, 2, bytes(1 << 20))
    swells = png_by_hand((2, 2), 16, 0, bytes(32 << 20))
    tracemalloc.start()
    try:
        assert "too large" in refusal(written(tmp_path, claims), read_kitti_disparity)
        assert "11 bytes of pixels found, 10 expected" in refusal(written(tmp_path, swells), read_kitti_disparity)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert MAX_IMAGE_BYTES < 8192 * 8192 * 6


@pytest.mark.parametrize("count", [600, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_maps_give_maps_or_data_errors(recwarn, count):
    dice = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 65536, (6, 12))
    cases = [
        (parse_pfm, PFM),
        (parse_flo, FLO),
        (parse_kitti_disparity, png_bytes(noise.tolist(), greyscale=True, bitdepth=16)),
        (parse_kitti_flow, png_bytes(noise.tolist(), greyscale=False, bitdepth=16)),
        (parse_mask_png, png_bytes((noise % 2).tolist(), palette=[(0, 0, 0, 0), (9, 9, 9, 9)], bitdepth=1)),
    ]
    refused = 0
    for index in range(count):
        parse, content = cases[index % len(cases)]
        changed = bytearray(content)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(min(len(changed), dice.choice([12, 60, 999])))
            if dice.random() < 0.7:
                changed[at] = dice.randrange(256)
            else:
                del changed[at : at + dice.randint(1, 9)]
        if dice.random() < 0.5:
            changed = with_right_checksums(changed)
        try:
            parse(changed, "fuzzed")
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
    assert count / 3 < refused < count
    assert not recwarn.list


def with_right_checksums(content: bytearray) -> bytearray:
    """A damaged PNG whose checksums hold, so that the damage reaches the decoder."""
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return content


# --- maps that other tools wrote -----------------------------------------------------------------


@pytest.mark.realdata
def test_maps_of_other_tools_are_read():
    if "BPFN_REAL_DATA" not in os.environ:
        pytest.skip("BPFN_REAL_DATA, the folder of real samples, is not set")
    folder = Path(os.environ["BPFN_REAL_DATA"]) / "reader_samples"
    flow = read_flo(folder / "0000000-flow_01.flo")
    weights = read_pfm(folder / "0000000-occ_weights_01.pfm")
    occluded = read_mask_png(folder / "0000000-occ_01.png")
    assert flow.shape == (50, 50, 2)
    assert weights.shape == occluded.shape == (50, 50)
    assert np.isfinite(flow).all() and np.isfinite(weights).all()
    assert occluded.sum() == 88
