# SPDX-License-Identifier: MIT
"""`.npz` archives of plain arrays; a zip bomb is refused before it expands."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import MAX_PREFIX_BYTES, parse_header, parse_npy
from bpfn_cli.data.files.regular import MAX_FILE_BYTES, read_file
from bpfn_cli.errors import DataError, printable

MAX_MEMBERS = 1024
MAX_UNQUESTIONED_BYTES = 64 << 20  # archives that expand beyond this must not exceed the ratio MAX_PACKING
MAX_PACKING = 200

# What the standard library raises for damaged archives, found by mutation.
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def npz_names(path: Path) -> tuple[str, ...]:
    """Names of the arrays in an `.npz` file, in its order. Raises: as `read_npz`."""
    with _open_npz(path) as archive:
        return tuple(_members(archive, path))


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file; others are not read.

    Raises:
        DataError: not an archive of plain arrays, damaged, a name missing, or a zip bomb.
        DiskError: no permission.
    """
    with _open_npz(path) as archive:
        members = _members(archive, path)
        missing = [name for name in names if name not in members]
        if missing:
            found = printable(", ".join(members))[:200] or "nothing"
            raise DataError(f"{printable(path)}: no array {', '.join(missing)}; it holds {found}")
        wanted = {name: members[name] for name in names}
        _refuse_bomb(list(wanted.values()), path)
        return {name: _read_member(archive, member, path) for name, member in wanted.items()}


def _open_npz(path: Path) -> zipfile.ZipFile:
    content = read_file(path)
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except ZIP_FAULTS as error:
        raise DataError(f"{printable(path)}: not an .npz archive, or damaged; write it with numpy.savez") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        raise DataError(f"{printable(path)}: {len(entries)} members, at most {MAX_MEMBERS} are read")
    if len({entry.filename for entry in entries}) != len(entries):
        raise DataError(f"{printable(path)}: two members with the same name; write it with numpy.savez")
    return {entry.filename.removesuffix(".npy"): entry for entry in entries if entry.filename.endswith(".npy")}


def _refuse_bomb(members: list[zipfile.ZipInfo], path: Path) -> None:
    packed, expanded = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if expanded > MAX_FILE_BYTES or (expanded > MAX_UNQUESTIONED_BYTES and expanded > MAX_PACKING * packed):
        raise DataError(f"{printable(path)}: {packed} bytes would expand to {expanded}; refused as a zip bomb")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    name = f"{printable(path)}: {printable(member.filename)}"
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or member.flag_bits & 1:
        raise DataError(f"{name}: encrypted, or unusual compression; write it with numpy.savez")
    try:
        with archive.open(member) as stream:
            prefix = stream.read(MAX_PREFIX_BYTES)
            implied = parse_header(prefix, name).total_bytes
            if member.file_size != implied:
                raise DataError(f"{name}: {member.file_size} bytes declared, {implied} expected; write it again")
            content = bytearray(prefix) + stream.read()
    except ZIP_FAULTS as error:
        raise DataError(f"{name}: damaged archive member; write the file again") from error
    return parse_npy(content, name)
