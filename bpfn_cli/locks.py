# SPDX-License-Identifier: MIT
"""Locks of folders and files. The system frees them when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from bpfn_cli.errors import BusyError, printable
from bpfn_cli.files import disk_errors


@contextlib.contextmanager
def only_writer(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of an existing folder; the system frees it when this process ends, however it ends.

    Args: shared: with others that share it, but with nobody who does not.

    Raises: BusyError: another process holds it.
    """
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with _held(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, folder):
        yield


@contextlib.contextmanager
def only_holder(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be: for what is no folder, and for network file systems, which
    lock only what is opened for writing. The file says who holds it, to people and to those who come too late.

    Raises: BusyError: another process holds it; says which.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with _held(descriptor, fcntl.LOCK_EX, path, f"process {os.getpid()} on {socket.gethostname()}"):
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file. Nothing is written, so that other people's folders can be asked."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it may not be asked
    try:
        _lock(descriptor, fcntl.LOCK_SH)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, operation: int) -> None:
    """Raises: BlockingIOError: another process holds it, and not just to see whether it is free."""
    for attempt in range(3):
        try:
            return fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == 2:
                raise
            time.sleep(0.1)


_descriptors: set[int] = set()  # of the locks this process holds


def _let_go() -> None:
    """In a forked process: a lock is its parent's alone, and free as soon as that one ends."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def _held(descriptor: int, operation: int, path: Path, holder: str = "") -> Iterator[None]:
    _descriptors.add(descriptor)
    try:
        try:
            _lock(descriptor, operation)
        except BlockingIOError as error:
            other = printable(os.pread(descriptor, 200, 0).decode(errors="replace").strip()) if holder else ""
            raise BusyError(
                f"{printable(path)}: {other or 'another process'} writes there; wait for it to end, then repeat"
            ) from error
        except OSError:
            pass  # a file system without locks; every file is whole and the same whoever writes it
        if holder:
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{holder}\n".encode(), 0)
        yield
    finally:
        if descriptor in _descriptors:
            _descriptors.remove(descriptor)
            os.close(descriptor)
