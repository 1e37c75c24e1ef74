# SPDX-License-Identifier: MIT
"""Locks on folders and files. The system releases them when the process ends, however it ends.

Without `fcntl`, as on Windows, nothing is locked, and a warning says so.
"""

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpfn_cli.errors import BpfnWarning, BusyError, printable
from bpfn_cli.files import disk_errors

try:
    import fcntl as _fcntl
except ImportError:
    fcntl: Any = None
else:
    fcntl = _fcntl

_ADVICE = "do not run two commands on one folder"

_descriptors: set[int] = set()  # of the locks held by this process


@contextlib.contextmanager
def only_writer(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock an existing folder; if `shared`, together with others. Raises: BusyError: another process holds it."""
    if _warn_without_locks():  # nor can Windows open a folder
        yield
        return
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with _locked(descriptor, folder, shared=shared):
        yield


@contextlib.contextmanager
def only_holder(path: Path) -> Iterator[None]:
    """Lock a file, which is created if necessary and names the process that holds it.

    Works on network file systems, which lock only files that are open for writing.

    Raises: BusyError: another process holds it; names the process.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _warn_without_locks()
    with _locked(descriptor, path, holder=f"process {os.getpid()} on {socket.gethostname()}"):
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file. Writes nothing, so it also works in folders of other users."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown, so be careful
    try:
        _lock(descriptor, shared=True)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def describe() -> str:
    """Whether this system has locks, and if not, what to do."""
    return f"none, so {_ADVICE}" if fcntl is None else "yes"


def _warn_without_locks() -> bool:
    """Warn if this system has no locks, and return whether it has none."""
    if fcntl is None:
        warnings.warn(f"this system has no file locks: {_ADVICE} at the same time", BpfnWarning, stacklevel=4)
    return fcntl is None


def _lock(descriptor: int, *, shared: bool) -> None:
    """Without locks, nothing. Raises: BlockingIOError: another process holds it, for longer than `is_held` does."""
    if fcntl is None:
        return
    for attempt in range(3):
        try:
            return fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == 2:
                raise
            time.sleep(0.1)


def _release_all() -> None:
    """In a forked process: the locks belong to its parent alone, and are free as soon as the parent ends."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)


@contextlib.contextmanager
def _locked(descriptor: int, path: Path, *, shared: bool = False, holder: str = "") -> Iterator[None]:
    _descriptors.add(descriptor)
    try:
        try:
            _lock(descriptor, shared=shared)
        except BlockingIOError as error:
            other = printable(os.pread(descriptor, 200, 0).decode(errors="replace").strip()) if holder else ""
            fault = f"in use by {other or 'another process'}"
            raise BusyError(f"{printable(path)}: {fault}; wait for it to end, then repeat") from error
        except OSError:
            pass  # a file system without locks; every file is written atomically, so nothing is damaged
        if holder:
            with contextlib.suppress(OSError):  # a full disk does not affect the lock
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, f"{holder}\n".encode())
        yield
    finally:
        if descriptor in _descriptors:
            _descriptors.remove(descriptor)
            os.close(descriptor)
