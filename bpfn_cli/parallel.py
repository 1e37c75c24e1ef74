# SPDX-License-Identifier: MIT
"""Worker processes: how many, how work is shared among them, how they end with their parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bpfn_cli.errors import OutOfMemoryError

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
