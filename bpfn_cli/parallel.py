# SPDX-License-Identifier: MIT
"""Worker processes: how many there are, how work is split among them, and how they end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from bpfn_cli.cores import usable_cores
from bpfn_cli.errors import DiskError, OutOfMemoryError, UsageError, printable
from bpfn_cli.progress import ProgressCallback

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`, for job arrays: every count-th item, starting with the index-th."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "index/count". Raises: UsageError."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
        shard = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise UsageError(f"--shard {printable(text)[:40]}: use I/N with I from 1 to N, such as 3/8")
        return shard

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this shard."""
        return items[self.index - 1 :: self.count]


def map_in_processes(function: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """Apply `function`, which other processes can import, to every item. The first error ends the work.

    The results keep the order of the items. Raises: OutOfMemoryError: a worker process was killed.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        yield from map(function, items)
        return
    try:
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _ignore_interrupts)
    except OSError as error:
        problem = f"worker processes need shared memory, such as /dev/shm, which fails: {printable(error)}"
        raise DiskError(f"{problem}; make it writable, or use --processes 1") from error
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool as error:
        fault = "a worker process was killed, probably because memory ran out"
        raise OutOfMemoryError(f"{fault}; repeat with fewer processes (finished work is kept)") from error
    finally:
        pool.shutdown(cancel_futures=True)


def map_in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Generator[Result, None, None]:
    """As `map_in_processes`, but in threads, and with few results in memory. threads: None: one per core, at most 8."""
    threads = threads or min(8, usable_cores())
    pool, waiting, done = ThreadPoolExecutor(threads), deque[Future[Result]](), 0
    try:
        for index in range(len(items) + 2 * threads):
            if index < len(items):
                waiting.append(pool.submit(function, items[index]))
            if waiting and index >= 2 * threads:
                result = waiting.popleft().result()
                done += 1
                if progress:
                    progress(done, len(items))
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """In a worker: the parent handles interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """In a child process: exit as soon as the parent ends, even when it is killed."""
    parent = multiprocessing.parent_process()

    def exit_after_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=exit_after_parent, daemon=True).start()
