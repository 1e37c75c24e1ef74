# SPDX-License-Identifier: MIT
"""NumPy files from anywhere, read so that no file can run code, exhaust memory, hang or pass for another.

`numpy.load` follows pickles, accepts trailing bytes, expands archives and believes its header; the readers
here compare every header with the bytes that are really there before they allocate.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.files import explain, write_atomic

MAX_COORDINATE_M = 1e4  # beyond it float32 is coarser than a millimetre
MAX_FILE_BYTES = 2 << 30
MAX_MEMBERS = 1024
MAX_UNQUESTIONED_BYTES = 64 << 20  # archives expanding beyond this must not be packed tighter than MAX_PACKING
MAX_PACKING = 200

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096
_MAX_PREFIX_BYTES = len(_MAGIC) + 6 + _MAX_HEADER_BYTES
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 40
_HEADER_CHARACTERS = re.compile(r"[\w\s{}()\[\],:'\"<>=|]*", re.ASCII)
_WARNED_OF = re.compile(r"\d[A-Za-z_]")  # Python prints a warning where it evaluates "1if"
_KINDS = ("f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")
_DTYPES = {f"{order}{kind}" for order in "<>" for kind in _KINDS} | {"|b1", "|i1", "|u1"}
_PATH_IS_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


# --- files ----------------------------------------------------------------------------------------


def read_file(path: Path) -> bytearray:
    """The bytes of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
        DataError: missing, a folder, FIFO or device (never waited for), too large, or shrinking meanwhile.
        DiskError: not permitted, or an input/output error.
    """
    with open_regular(path) as (stream, size):
        content = bytearray(size)
        if stream.readinto(content) != size:
            raise DataError(f"{printable(path)}: became shorter while it was read; repeat when it is complete")
        return content


@contextlib.contextmanager
def open_regular(path: Path, largest: int = MAX_FILE_BYTES) -> Iterator[tuple[io.BufferedReader, int]]:
    """A regular file and its size. Raises: as `read_file`; DataError: it has more than `largest` bytes."""
    try:
        _refuse_special(path, path.stat(), largest)  # before opening: opening a device may already do something
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            _refuse_special(path, status, largest)
            yield stream, status.st_size
    except OSError as error:
        if error.errno in _PATH_IS_MISSING:
            raise DataError(f"{printable(path)}: no such file; check the path") from error
        raise DiskError(f"{printable(path)}: {explain(error)}") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise DataError(f"{printable(path)}: not a possible file name") from error


def _refuse_special(path: Path, status: os.stat_result, largest: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{printable(path)}: is a folder where a file is needed")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{printable(path)}: is a pipe, socket or device where a regular file is needed")
    if status.st_size > largest:
        raise DataError(f"{printable(path)}: {status.st_size} bytes, more than the {largest} that are read; cut it")


# --- .npy -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int  # of the data, bytes

    @property
    def total_bytes(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file: float, integer or bool; native byte order, C order, writable.

    Raises:
        DataError: not a plain `.npy` file, truncated, with trailing bytes, or of Python objects.
        DiskError: not permitted.
    """
    return parse_npy(read_file(path), printable(path))


def npy_shape(path: Path) -> tuple[int, ...]:
    """The shape of a whole `.npy` file, from its header and size alone. Raises: as `read_npy`."""
    with open_regular(path) as (stream, size):
        header = _parse_header(stream.read(_MAX_PREFIX_BYTES), printable(path))
    _check_size(size, header, printable(path))
    return header.shape


def parse_npy(content: bytearray, name: str) -> np.ndarray:
    """As `read_npy`, from the bytes of a file; `name` stands at the head of errors."""
    header = _parse_header(content, name)
    _check_size(len(content), header, name)
    if header.dtype == np.bool_:  # bytes other than 0 and 1 are no valid bool in memory
        flat = np.frombuffer(content, np.uint8, offset=header.offset) != 0
    else:
        flat = np.frombuffer(content, header.dtype, offset=header.offset)
    array = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return np.require(array, dtype=header.dtype.newbyteorder("="), requirements=["C", "A", "W"])


def _check_size(size: int, header: _Header, name: str) -> None:
    if size != header.total_bytes:
        fault = "truncated" if size < header.total_bytes else "has trailing bytes"
        raise DataError(f"{name}: {fault}: {size} bytes found, {header.total_bytes} expected; write it again")


def _parse_header(content: bytes | bytearray, name: str) -> _Header:
    if not content.startswith(_MAGIC):
        raise DataError(f"{name}: {_what_it_is(content)}, not a .npy file; write it with numpy.save")
    if len(content) < 12:
        raise DataError(f"{name}: truncated: {len(content)} bytes found, a .npy header needs more; write it again")
    version = content[len(_MAGIC)]
    if version not in {1, 2, 3}:
        raise DataError(f"{name}: .npy version {version} is unknown (1 to 3 are read); write it with numpy.save")
    start = 10 if version == 1 else 12
    length = int.from_bytes(content[8:start], "little")
    if length > _MAX_HEADER_BYTES:
        raise DataError(f"{name}: .npy header of {length} bytes, at most {_MAX_HEADER_BYTES} expected")
    if len(content) < start + length:
        raise DataError(f"{name}: truncated: {len(content)} bytes found, {start + length} expected; write it again")
    fields = _header_fields(bytes(content[start : start + length]), name)
    dtype, shape = _allowed_dtype(fields["descr"], name), _allowed_shape(fields["shape"], name)
    if not isinstance(fields["fortran_order"], bool):
        raise DataError(f"{name}: damaged .npy header: fortran_order is not True or False")
    return _Header(dtype, shape, fields["fortran_order"], start + length)


def _what_it_is(content: bytes | bytearray) -> str:
    if not content:
        return "an empty file"
    if content.startswith(b"PK"):
        return "a zip archive (perhaps an .npz under the wrong name)"
    if content[0] == 0x80 or content.startswith((b"(", b"c")):
        return "a Python pickle, which could run code and is never loaded"
    if content.lstrip().startswith(b"<"):
        return "a web page or XML text"
    return "something else"


def _header_fields(text: bytes, name: str) -> dict[str, object]:
    try:
        decoded = text.decode("ascii")
        if not _HEADER_CHARACTERS.fullmatch(decoded) or _WARNED_OF.search(decoded):
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


def _allowed_shape(shape: object, name: str) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise DataError(f"{name}: damaged .npy header: shape is not a tuple of sizes")
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(length, 1) for length in shape) > _MAX_ELEMENTS:
        raise DataError(f"{name}: the .npy header claims shape {str(shape)[:60]}, more than any file holds")
    return shape


# --- .npz -----------------------------------------------------------------------------------------


def npz_names(path: Path) -> tuple[str, ...]:
    """The names of the arrays in an `.npz` file, in its order. Raises: as `read_npz`."""
    with _open_npz(path) as archive:
        return tuple(_members(archive, path))


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file; others are not looked at.

    Raises:
        DataError: not an archive of plain arrays, damaged, a name missing, or a zip bomb.
        DiskError: not permitted.
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
        raise DataError(
            f"{printable(path)}: not an .npz archive, or a damaged one; write it with numpy.savez"
        ) from error


# What the standard library raises for damaged archives, found by mutation.
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        raise DataError(f"{printable(path)}: {len(entries)} members, at most {MAX_MEMBERS} are read")
    members = {entry.filename.removesuffix(".npy"): entry for entry in entries if entry.filename.endswith(".npy")}
    if len({entry.filename for entry in entries}) != len(entries):
        raise DataError(f"{printable(path)}: two members of the same name; write it with numpy.savez")
    return members


def _refuse_bomb(members: list[zipfile.ZipInfo], path: Path) -> None:
    packed, expanded = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if expanded > MAX_FILE_BYTES or (expanded > MAX_UNQUESTIONED_BYTES and expanded > MAX_PACKING * packed):
        raise DataError(f"{printable(path)}: {packed} bytes would expand to {expanded}; refused as a zip bomb")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    name = f"{printable(path)}: {printable(member.filename)}"
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or member.flag_bits & 1:
        raise DataError(f"{name}: encrypted or of an unusual compression; write it with numpy.savez")
    try:
        with archive.open(member) as stream:
            prefix = stream.read(_MAX_PREFIX_BYTES)
            implied = _parse_header(prefix, name).total_bytes
            if member.file_size != implied:
                raise DataError(f"{name}: {member.file_size} bytes declared, {implied} expected; write it again")
            content = bytearray(prefix)
            content += stream.read()
    except ZIP_FAULTS as error:
        raise DataError(f"{name}: damaged archive member; write the file again") from error
    return parse_npy(content, name)


# --- points ---------------------------------------------------------------------------------------


def read_points(path: Path) -> np.ndarray:
    """(N, 3) float32 metres from a `.npy` file. Raises: as `read_npy` and `check_points`."""
    return check_points(read_npy(path), path)


def check_points(points: np.ndarray, path: Path, what: str = "points") -> np.ndarray:
    """`points` as (N, 3) float32, C order, once it is known that every later step can work on them.

    Args:
        points: whatever was read.
        path, what: named in errors.

    Raises: DataError: not (N, 3) of float, empty, not finite, or a coordinate beyond `MAX_COORDINATE_M`.
    """
    name = f"{printable(path)}: {what}"
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind != "f":
        raise DataError(f"{name}: {points.dtype} of shape {points.shape} found, float32 of shape (N, 3) expected")
    if len(points) == 0:
        raise DataError(f"{name}: empty, at least one row expected")
    if np.abs(points).max() <= MAX_COORDINATE_M:  # false for NaN, too; what follows is slower
        return np.ascontiguousarray(points, dtype=np.float32)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        bad, first = int((~finite).sum()), int(np.argmin(finite))
        raise DataError(
            f"{name}: {bad} of {len(points)} rows hold NaN or infinity, the first is row {first}; drop them"
        )
    near = (np.abs(points) <= MAX_COORDINATE_M).all(axis=1)
    if not near.all():
        bad, first = int((~near).sum()), int(np.argmin(near))
        raise DataError(
            f"{name}: {bad} of {len(points)} rows lie beyond {MAX_COORDINATE_M:.0f} m, "
            f"the first is row {first}; subtract an origin near the sensor"
        )
    return np.ascontiguousarray(points, dtype=np.float32)


def write_points(path: Path, points: np.ndarray) -> None:
    """Write (N, 3) metres as a float32 `.npy` file, atomically.

    Raises: DataError: as `check_points`. DiskError: as `files.write_atomic`.
    """
    buffer = io.BytesIO()
    np.save(buffer, check_points(points, path), allow_pickle=False)
    write_atomic(path, buffer.getvalue())
