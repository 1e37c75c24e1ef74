# SPDX-License-Identifier: MIT
"""What a person sees: lines and progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from bpfn_cli.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from bpfn_cli.training.progress import Bar

SECONDS_BETWEEN_LINES = 10.0  # off a terminal, so that a job log is alive
WIDTH_OFF_TERMINAL = 120


class ConsoleProgress:
    """Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

    def line(self, text: str) -> None:
        say(text)

    @contextlib.contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        with _rich_bar(what) if sys.stderr.isatty() else _plain_bar(what) as update:
            yield update


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def finish(written: object, next_command: str) -> None:
    """The last lines of a command: what was written, and what is worth typing next."""
    say(f"written: {written}")
    say(f"next: {next_command}")


def print_json(value: Any) -> None:
    """A result for a machine: JSON alone on stdout."""
    print(
        json.dumps(
            asdict(value) if is_dataclass(value) and not isinstance(value, type) else value, indent=2, default=str
        )
    )


def console() -> Console:
    """Where tables are printed: stdout."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL, highlight=False)


def default_processes() -> int:
    """One process for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _rich_bar(what: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None, figures="")
        started = time.monotonic()

        def update(done: int, total: int, figures: str = "") -> None:
            rate = _rate(done, time.monotonic() - started)
            progress.update(task, completed=done, total=total, figures=f"{rate}{', ' if figures else ''}{figures}")

        yield update


@contextlib.contextmanager
def _plain_bar(what: str) -> Iterator[Bar]:
    started = last = time.monotonic()

    def update(done: int, total: int, figures: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        left = (now - started) / max(done, 1) * (total - done)
        rate = _rate(done, now - started)
        say(f"{what}: {done}/{total}, {left:.0f} s left, {rate}{', ' if figures else ''}{figures}")

    yield update


def _rate(done: int, seconds: float) -> str:
    """Such as 12/s; slow things by the minute."""
    per_second = done / max(seconds, 1e-9)
    if per_second < 1:
        return f"{60 * per_second:.3g}/min"
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.3g}/s"
