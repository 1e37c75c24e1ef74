# SPDX-License-Identifier: MIT
"""Reading of regular files only (a FIFO, device or folder is refused, and never waited for), and atomic writes: a kill
or a full disk leaves the old content or the new content, never part of it."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bpfn_cli.errors import DataError, DiskError, UsageError, printable

TEMPORARY_PREFIX = ".bpfn-tmp-"
MAX_FILE_BYTES = 2 << 30
SECONDS_TO_WRITE = 600.0  # a writer that has not written for so long was killed
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
# Windows has only the last, and opens files as text without it.
_READ = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_ADVICE = {
    errno.ENOSPC: "no space left on the disk (or no inodes: `df -i`); free some, then repeat the command",
    errno.EDQUOT: "disk quota reached; free some space, then repeat the command",
    errno.EACCES: "no permission; choose another path or change its mode",
    errno.EPERM: "no permission; choose another path or change its mode",
    errno.EROFS: "read-only file system; choose another path",
    errno.EEXIST: "is a file; a folder is needed; choose another path",
    errno.ENOTDIR: "a parent is a file, not a folder; choose another path",
    errno.EISDIR: "is a folder; a file is needed; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def expanded(given: Path | str) -> Path:
    """`given` with `~` and `$NAME` replaced, as a shell does, unless it exists as it is.

    Raises: UsageError: no home folder, or no variable of this name.
    """
    text = str(given)
    if ("~" not in text and "$" not in text) or os.path.lexists(text):
        return Path(given)
    found = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111  (keeps `~name` of an unknown user)
    if found == "~" or found.startswith("~/"):
        raise UsageError(f"{printable(text)}: this user has no home folder; write the whole path")
    if unset := _VARIABLE.search(found):
        raise UsageError(f"{printable(text)}: the environment variable {unset[1]} is not set; write the whole path")
    return Path(found)


def read_file(path: Path) -> bytearray:
    """The bytes of a regular file of at most `MAX_FILE_BYTES`.

    Raises: DataError: missing, not a regular file, too large, or shrinking. DiskError: any other fault of the system.
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
        _regular_size(path, path.stat(), largest)  # before opening: opening a device may have an effect
        descriptor = os.open(path, _READ)
        with os.fdopen(descriptor, "rb") as stream:
            yield stream, _regular_size(path, os.fstat(descriptor), largest)
    except OSError as error:
        if error.errno in _MISSING:
            raise DataError(f"{printable(path)}: no such file; check the path") from error
        raise DiskError(f"{printable(path)}: {explain(error)}") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise DataError(f"{printable(path)}: not a valid file name") from error


def _regular_size(path: Path, status: os.stat_result, largest: int) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{printable(path)}: is a folder; a file is needed")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{printable(path)}: is a pipe, socket or device; a regular file is needed")
    if status.st_size > largest:
        raise DataError(f"{printable(path)}: {status.st_size} bytes, more than the limit of {largest}; split it")
    return status.st_size


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the content of `path` in one step. Raises: as `atomic_stream`."""
    with atomic_stream(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces `path` in one step: temporary file, fsync, rename, fsync of the folder.

    After any error inside the block, `path` is unchanged. Raises: DiskError: no permission, or the disk is full.
    """
    with disk_errors(path):
        temporary = _temporary(path.parent)
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


def _temporary(folder: Path) -> Path:
    return folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def is_temporary(entry: os.DirEntry[str]) -> bool:
    """Whether an entry was left by a killed `write_atomic`."""
    return entry.name.startswith(TEMPORARY_PREFIX) and not entry.is_dir(follow_symlinks=False)


def remove_temporaries(folder: Path, seconds: float = 0) -> None:
    """Remove the files that killed writers left in `folder`, if older than `seconds`; 0 only if nobody writes there."""
    with disk_errors(folder):
        for entry in filter(is_temporary, list(os.scandir(folder))):
            with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                if not seconds or time.time() - entry.stat(follow_symlinks=False).st_mtime >= seconds:
                    Path(entry.path).unlink()


def claim_output(path: Path, *, force: bool, inputs: Iterable[Path | None] = ()) -> None:
    """Check before the work that a result can be written to `path`, and create its folder.

    Raises: DiskError: `path` exists without `force`, or its folder cannot be written. UsageError: it is an input.
    """
    if any(source is not None and path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise UsageError(f"--out {printable(path)}: is also an input; choose another")
    if path.is_dir():
        raise DiskError(f"{printable(path)}: is a folder; give a file name")
    if os.path.lexists(path) and not force:
        raise DiskError(f"{printable(path)}: exists; choose another --out, or --force to overwrite it")
    _swept(path.parent)


def claim_outputs(
    folder: Path, names: Iterable[str], *, force: bool, inputs: Iterable[Path], flag: str = "--out"
) -> list[Path]:
    """Check before the work that files of these names can be written to `folder`, create it, and return their paths.

    Args: flag: the option that names the folder.
    Raises: DiskError: one exists without `force`, or `folder` cannot be written. UsageError: it or one is an input.
    """
    paths, sources = [folder / name for name in names], {os.path.realpath(path) for path in inputs}
    if taken := [path for path in (folder, *paths) if os.path.realpath(path) in sources]:
        raise UsageError(f"{flag} {printable(folder)}: {printable(taken[0])} is also an input; choose another")
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and (not force or any(path.is_dir() for path in existing)):
        how_many = f"{len(existing)} of {len(paths)} outputs do"
        advice = f"choose another {flag}, or --force to overwrite files"
        raise DiskError(f"{printable(existing[0])}: exists ({how_many}); {advice}")
    _swept(folder)
    return paths


def _swept(folder: Path) -> None:
    """Create a folder for a result, and remove what writers left there that were killed a while ago."""
    make_folder(folder)
    with contextlib.suppress(DiskError):
        remove_temporaries(folder, SECONDS_TO_WRITE)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises: ValueError: NaN or infinity, which are not JSON."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def make_folder(path: Path) -> Path:
    """Create `path` and its parents, and return it. Raises: DiskError: it is a file, or no permission."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write", str(path))
    return path


@contextlib.contextmanager
def made_folder(*paths: Path | None) -> Iterator[None]:
    """Create `paths` for the block, None left out; if it fails, remove what was created and is empty."""
    wanted = [path for path in paths if path is not None]
    missing = [folder for path in wanted for folder in (path, *path.parents) if not folder.exists()]
    try:
        for path in wanted:
            make_folder(path)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link to `target` in one step. A convenience: a file system without links is no error."""
    temporary = _temporary(link.parent)
    with contextlib.suppress(OSError):
        temporary.symlink_to(target)
        temporary.replace(link)


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system about `path` into a one-line DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{printable(error.filename or path)}: {explain(error)}") from error


def explain(error: OSError) -> str:
    """What an error of the file system means, and what to do about it."""
    return _ADVICE.get(error.errno or 0, error.strerror or str(error))
