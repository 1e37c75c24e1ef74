# SPDX-License-Identifier: MIT
"""A few reads tell two datasets of equal names and sizes apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bpfn_cli.data import contents
from bpfn_cli.data.contents import BLOCK_BYTES, contents_sha256, fingerprint
from bpfn_cli.errors import DataError


def write(root: Path, files: dict[str, bytes]) -> dict[str, int]:
    for name, content in files.items():
        (root / name).write_bytes(content)
    return {name: len(content) for name, content in files.items()}


def test_contents_by_hand(tmp_path: Path) -> None:
    sizes = write(tmp_path, {"a": b"one"})
    expected = hashlib.sha256(fingerprint(sizes).encode() + hashlib.sha256(b"one").digest() + b"more").hexdigest()
    assert contents_sha256(tmp_path, sizes, "more") == expected


@pytest.mark.parametrize("place", [0, 1, BLOCK_BYTES - 1, 3 * BLOCK_BYTES, 6 * BLOCK_BYTES - 1])
def test_small_files_are_read_to_the_last_byte(tmp_path: Path, place: int) -> None:
    content = bytearray(6 * BLOCK_BYTES)
    sizes = write(tmp_path, {"a": bytes(content), "b": b""})
    before = contents_sha256(tmp_path, sizes)
    content[place] = 1
    write(tmp_path, {"a": bytes(content)})
    assert contents_sha256(tmp_path, sizes) != before


def test_of_large_files_first_last_and_blocks_between_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "BLOCKS", 3)
    content = bytearray(101 * BLOCK_BYTES)
    sizes = write(tmp_path, {"a": bytes(content)})
    before = contents_sha256(tmp_path, sizes)
    for place, is_seen in ((0, True), (10 * BLOCK_BYTES, False), (50 * BLOCK_BYTES, True), (-1, True)):
        content[place] = 1
        write(tmp_path, {"a": bytes(content)})
        assert (contents_sha256(tmp_path, sizes) != before) is is_seen
        content[place] = 0


def test_of_many_files_the_same_ones_are_read_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "FILES", 2)
    sizes = write(tmp_path, dict.fromkeys("abcdef", b"0"))
    before = contents_sha256(tmp_path, dict(reversed(sizes.items())))
    seen = []
    for name in sizes:
        write(tmp_path, {name: b"1"})
        seen += [name] * (contents_sha256(tmp_path, sizes) != before)
        write(tmp_path, {name: b"0"})
    assert len(seen) == 2 and contents_sha256(tmp_path, sizes) == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such file"):
        contents_sha256(tmp_path, {"gone": 1})
