# SPDX-License-Identifier: MIT
"""Writing files so that a kill or a full disk leaves the old content or the new one, never a half."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bpfn_cli.errors import DiskError, UsageError, printable

TEMPORARY_PREFIX = ".bpfn-tmp-"


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Raises: as `atomic_stream`."""
    with atomic_stream(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces `path` in one step: temporary file beside it, fsync, rename, fsync folder.

    Raises: DiskError: the folder cannot be written or the disk is full; `path` is then as it was, as after any
        error inside the block.
    """
    with disk_errors(path):
        temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def is_temporary(entry: os.DirEntry[str]) -> bool:
    """Whether a killed `write_atomic` left this."""
    return entry.name.startswith(TEMPORARY_PREFIX) and not entry.is_dir(follow_symlinks=False)


def remove_temporaries(folder: Path, seconds: float = 0) -> None:
    """Remove what killed writers left in an existing folder; not in the folders inside it.

    Args: seconds: how long ago at least; else nobody may be writing there.
    """
    with disk_errors(folder):
        for entry in filter(is_temporary, list(os.scandir(folder))):
            with contextlib.suppress(FileNotFoundError):  # its writer has just ended
                if not seconds or time.time() - entry.stat(follow_symlinks=False).st_mtime >= seconds:
                    Path(entry.path).unlink()


def claim_output(path: Path, *, force: bool, inputs: Iterable[Path | None] = ()) -> None:
    """Make sure, before the work, that a result can be written to `path`; its folder is made.

    Raises: DiskError: `path` exists and not `force`, or its folder cannot be written. UsageError: it is an input.
    """
    if any(source is not None and path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise UsageError(f"--out {printable(path)}: is what is read; choose another")
    if path.is_dir():
        raise DiskError(f"{printable(path)}: is a folder; give the file to write")
    if os.path.lexists(path) and not force:
        raise DiskError(f"{printable(path)}: exists; choose another --out, or --force to replace it")
    make_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def make_folder(path: Path) -> Path:
    """Create `path` and its parents; return it. Raises: DiskError: it is a file, or not permitted."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write", str(path))
    return path


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link to `target` in one step. A convenience: a file system without links is no error."""
    temporary = link.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        temporary.symlink_to(target)
        temporary.replace(link)


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals about `path` into a one-line DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{printable(error.filename or path)}: {explain(error)}") from error


def explain(error: OSError) -> str:
    """What to do about an error of the file system, in half a line."""
    advice = {
        errno.ENOSPC: "no space left on the disk (or no inodes: `df -i`); free some, then repeat the command",
        errno.EDQUOT: "disk quota reached; free some space, then repeat the command",
        errno.EACCES: "no permission; choose another path or change its mode",
        errno.EPERM: "no permission; choose another path or change its mode",
        errno.EROFS: "read-only file system; choose another path",
        errno.EEXIST: "is a file where a folder is needed; choose another path",
        errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
        errno.EISDIR: "is a folder where a file is needed; choose another path",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    return advice.get(error.errno or 0, error.strerror or str(error))
