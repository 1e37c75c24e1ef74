# SPDX-License-Identifier: MIT
"""Work shared out to processes, and folders that one process writes at a time."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from bpfn_cli.errors import BusyError, OutOfMemoryError, printable
from bpfn_cli.files import disk_errors

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(function: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """`function` of every item, in order, whatever the number of processes. An error ends the work.

    Args:
        function: of the top level of a module, so that other processes can find it.

    Raises: OutOfMemoryError: a worker process was killed.
    """
    if min(processes, len(items)) <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(items)), context, _follow_parent)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "a worker process was killed, for want of memory perhaps; repeat with fewer processes "
            "(what is finished is kept)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a worker: leave interrupts to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """In a child process: end as soon as its parent ends, even when that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


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
