# SPDX-License-Identifier: MIT
"""`.npy` and `.npz` files from any source: they cannot run code, exhaust memory or hide bytes.

`numpy.load` follows pickles, accepts trailing bytes and trusts the header. Here every header is compared with the bytes
that are present before memory is allocated, and a zip bomb is refused before it expands.
"""

import ast
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import MAX_FILE_BYTES, open_regular, read_file

MAX_MEMBERS = 1024
MAX_UNQUESTIONED_BYTES = 64 << 20  # archives that expand beyond this must not exceed the ratio MAX_PACKING
MAX_PACKING = 200

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096
_MAX_PREFIX_BYTES = len(_MAGIC) + 6 + _MAX_HEADER_BYTES
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 40
_HEADER_CHARACTERS = re.compile(r"[\w\s{}()\[\],:'\"<>=|]*", re.ASCII)
_CAUSES_WARNING = re.compile(r"\d[A-Za-z_]")  # Python prints a warning when it evaluates "1if"
_KINDS = ("f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")
_DTYPES = {f"{order}{kind}" for order in "<>" for kind in _KINDS} | {"|b1", "|i1", "|u1"}
_TABLE_DTYPES = {*_DTYPES, "<f2", ">f2"}
_SKIPPED_DTYPE = re.compile(r"[<>|][SUV][1-9][0-9]{0,3}")  # text and padding in a table
_MAX_FIELDS = 256

# What the standard library raises for damaged files, found by mutation.
DAMAGE = (zlib.error, struct.error, EOFError, LookupError, OverflowError, ValueError)
ZIP_FAULTS = (*DAMAGE, zipfile.BadZipFile, OSError, RuntimeError)


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int  # where the data begin, in bytes

    @property
    def total_bytes(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def check_size(self, size: int, name: str) -> None:
        if size != self.total_bytes:
            fault = "truncated" if size < self.total_bytes else "has trailing bytes"
            raise DataError(f"{name}: {fault}: {size} bytes found, {self.total_bytes} expected; write it again")


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file: float, integer or bool; native byte order, C order, writable.

    Raises: DataError: not a `.npy` file of numbers, truncated, or with trailing bytes. DiskError: no permission.
    """
    return parse_npy(read_file(path), printable(path))


def npy_shape(path: Path) -> tuple[int, ...]:
    """The shape of a complete `.npy` file, from its header and size. Raises: as `read_npy`."""
    with open_regular(path) as (stream, size):
        header = _parse_header(stream.read(_MAX_PREFIX_BYTES), printable(path))
    header.check_size(size, printable(path))
    return header.shape


def parse_npy(content: bytearray, name: str, tables: bool = False) -> np.ndarray:
    """As `read_npy`, from the bytes of a file; errors start with `name`. tables: also structured arrays and float16."""
    header = _parse_header(content, name, tables)
    header.check_size(len(content), name)
    if header.dtype == np.bool_:  # bytes other than 0 and 1 are not a valid bool in memory
        flat = np.frombuffer(content, np.uint8, offset=header.offset) != 0
    else:
        flat = np.frombuffer(content, header.dtype, offset=header.offset)
    array = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return np.require(array, dtype=header.dtype.newbyteorder("="), requirements=["C", "A", "W"])


def _parse_header(content: bytes | bytearray, name: str, tables: bool = False) -> _Header:
    if not content.startswith(_MAGIC):
        raise DataError(f"{name}: {_guess_content(content)}, not a .npy file; write it with numpy.save")
    if len(content) < 12:
        raise DataError(f"{name}: truncated: {len(content)} bytes found, a .npy header needs more; write it again")
    version = content[len(_MAGIC)]
    if version not in {1, 2, 3}:
        raise DataError(f"{name}: unknown .npy version {version} (1 to 3 are supported); write it with numpy.save")
    start = 10 if version == 1 else 12
    length = int.from_bytes(content[8:start], "little")
    if length > _MAX_HEADER_BYTES:
        raise DataError(f"{name}: .npy header of {length} bytes, at most {_MAX_HEADER_BYTES} expected")
    if len(content) < start + length:
        raise DataError(f"{name}: truncated: {len(content)} bytes found, {start + length} expected; write it again")
    fields = _header_fields(bytes(content[start : start + length]), name)
    dtype = _allowed_table(fields["descr"], name) if tables else _allowed_dtype(fields["descr"], name)
    shape = _allowed_shape(fields["shape"], name)
    if not isinstance(fields["fortran_order"], bool):
        raise DataError(f"{name}: damaged .npy header: fortran_order is not True or False")
    return _Header(dtype, shape, fields["fortran_order"], start + length)


def _guess_content(content: bytes | bytearray) -> str:
    if content.startswith(b"PK"):
        return "a zip archive (perhaps an .npz with the wrong ending)"
    if content.startswith((b"\x80", b"(", b"c")):
        return "a Python pickle, which could run code and is never loaded"
    if content.lstrip().startswith(b"<"):
        return "a web page or XML text"
    return "something else" if content else "an empty file"


def _header_fields(text: bytes, name: str) -> dict[str, object]:
    try:
        decoded = text.decode("ascii")
        if not _HEADER_CHARACTERS.fullmatch(decoded) or _CAUSES_WARNING.search(decoded):
            raise ValueError("characters that no header needs")
        fields = ast.literal_eval(decoded.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{name}: damaged .npy header; write the file again") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise DataError(f"{name}: damaged .npy header: descr, fortran_order and shape expected")
    return fields


def _allowed_dtype(descr: object, name: str) -> np.dtype:
    if isinstance(descr, str) and "O" in descr:
        raise DataError(f"{name}: holds Python objects, which could run code and are never loaded; save plain float32")
    if not isinstance(descr, str) or descr not in _DTYPES:
        found = printable(descr)[:60]
        raise DataError(f"{name}: values of type {found}; float32 or float64 (or plain integers) expected")
    return np.dtype(descr)


def _allowed_table(descr: object, name: str) -> np.dtype:
    """As `_allowed_dtype`, or float16, or named fields of these types, of text and of padding."""
    if isinstance(descr, str) and descr in _TABLE_DTYPES:
        return np.dtype(descr)
    if not isinstance(descr, list):
        return _allowed_dtype(descr, name)
    fields: list[tuple[Any, ...]] = []
    for index, entry in enumerate(descr):
        label, kind, *shape = entry if isinstance(entry, tuple) and len(entry) in (2, 3) else (None, None)
        known = isinstance(kind, str) and (kind in _TABLE_DTYPES or _SKIPPED_DTYPE.fullmatch(kind))
        if not isinstance(label, str) or not known:
            raise DataError(f"{name}: field {printable(entry)[:60]} is not plain numbers; save plain float32")
        fields.append((label or f"padding {index}", kind, *(_allowed_shape(one, name) for one in shape)))
    try:
        dtype = np.dtype(fields[:_MAX_FIELDS])
    except ValueError as error:
        raise DataError(f"{name}: damaged .npy header: two fields of one name, or too large ones") from error
    if not dtype.itemsize or len(fields) > _MAX_FIELDS:
        raise DataError(f"{name}: damaged .npy header: no fields, or more than {_MAX_FIELDS}")
    return dtype


def _allowed_shape(shape: object, name: str) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise DataError(f"{name}: damaged .npy header: shape is not a tuple of sizes")
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(length, 1) for length in shape) > _MAX_ELEMENTS:
        raise DataError(f"{name}: the .npy header claims shape {str(shape)[:60]}, more than any file holds")
    return shape


def npz_names(path: Path) -> tuple[str, ...]:
    """Names of the arrays in an `.npz` file, in its order. Raises: as `read_npz`."""
    with open_regular(path) as (stream, _), _archive(stream, printable(path)) as archive:
        return tuple(_members(archive, printable(path)))


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file; others are not read.

    Raises: DataError: not an archive of plain arrays, damaged, a name missing, or a zip bomb. DiskError: no permission.
    """
    return parse_npz(read_file(path), printable(path), lambda _: names)


def parse_npz(
    content: bytearray, name: str, choose: Callable[[tuple[str, ...]], Sequence[str]], tables: bool = False
) -> dict[str, np.ndarray]:
    """As `read_npz`, from the bytes of a file. choose: gets the names of all arrays and returns those to read.

    tables: also structured arrays and float16.
    """
    with _archive(io.BytesIO(content), name) as archive:
        members = _members(archive, name)
        names = choose(tuple(members))
        if missing := [name for name in names if name not in members]:
            found = printable(", ".join(members))[:200] or "nothing"
            raise DataError(f"{name}: no array {', '.join(missing)}; it holds {found}")
        check_expansion(
            sum(members[one].compress_size for one in names), sum(members[one].file_size for one in names), name
        )
        return {one: _read_member(archive, members[one], name, tables) for one in names}


def check_expansion(packed: int, expanded: int, name: str) -> None:
    """Raises: DataError: `packed` bytes would expand to more than any file should."""
    if expanded > MAX_FILE_BYTES or (expanded > MAX_UNQUESTIONED_BYTES and expanded > MAX_PACKING * packed):
        raise DataError(f"{name}: {packed} bytes would expand to {expanded}; refused as a zip bomb")


def _archive(stream: IO[bytes], name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except ZIP_FAULTS as error:
        raise DataError(f"{name}: not an .npz archive, or damaged; write it with numpy.savez") from error


def _members(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        raise DataError(f"{name}: {len(entries)} members, at most {MAX_MEMBERS} are read")
    if len({entry.filename for entry in entries}) != len(entries):
        raise DataError(f"{name}: two members with the same name; write it with numpy.savez")
    return {entry.filename.removesuffix(".npy"): entry for entry in entries if entry.filename.endswith(".npy")}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: str, tables: bool) -> np.ndarray:
    name = f"{file}: {printable(member.filename)}"
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or member.flag_bits & 1:
        raise DataError(f"{name}: encrypted, or unusual compression; write it with numpy.savez")
    try:
        with archive.open(member) as stream:
            prefix = stream.read(_MAX_PREFIX_BYTES)
            implied = _parse_header(prefix, name, tables).total_bytes
            if member.file_size != implied:
                raise DataError(f"{name}: {member.file_size} bytes declared, {implied} expected; write it again")
            content = bytearray(prefix) + stream.read()
    except ZIP_FAULTS as error:
        raise DataError(f"{name}: damaged archive member; write the file again") from error
    return parse_npy(content, name, tables)
