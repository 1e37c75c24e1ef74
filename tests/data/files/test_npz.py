# SPDX-License-Identifier: MIT
from __future__ import annotations

import random
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from npy_files import POINTS, Canary, mutated, npy, npz, refusal, written

from bpfn_cli.data.files import npy as npz_files
from bpfn_cli.data.files.npy import npz_names, read_npz
from bpfn_cli.errors import DataError


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
