# SPDX-License-Identifier: MIT
"""Read regular files only: a FIFO, device or folder is refused, and never waited for."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.files import explain

MAX_FILE_BYTES = 2 << 30

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def read_file(path: Path) -> bytearray:
    """The bytes of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
        DataError: missing, not a regular file, too large, or shrinking while it is read.
        DiskError: no permission, or an input/output error.
    """
    with open_regular(path) as (stream, size):
        content = bytearray(size)
        if stream.readinto(content) != size:
            raise DataError(f"{printable(path)}: became shorter while it was read; repeat when it is complete")
        return content


@contextlib.contextmanager
def open_regular(path: Path, largest: int = MAX_FILE_BYTES) -> Iterator[tuple[io.BufferedReader, int]]:
    """A regular file of at most `largest` bytes, and its size. Raises: as `read_file`."""
    try:
        _refuse_special(path, path.stat(), largest)  # before opening: opening a device may have an effect
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            _refuse_special(path, status, largest)
            yield stream, status.st_size
    except OSError as error:
        if error.errno in _MISSING:
            raise DataError(f"{printable(path)}: no such file; check the path") from error
        raise DiskError(f"{printable(path)}: {explain(error)}") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise DataError(f"{printable(path)}: not a valid file name") from error


def _refuse_special(path: Path, status: os.stat_result, largest: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{printable(path)}: is a folder; a file is needed")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{printable(path)}: is a pipe, socket or device; a regular file is needed")
    if status.st_size > largest:
        raise DataError(f"{printable(path)}: {status.st_size} bytes, more than the limit of {largest}; split it")
