# SPDX-License-Identifier: MIT
"""Output: lines and progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from bpfn_cli.errors import printable
from bpfn_cli.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from bpfn_cli.progress import Bar

SECONDS_BETWEEN_LINES = 10.0  # off a terminal, to keep a job log alive
WIDTH_OFF_TERMINAL = 120


class ConsoleProgress:
    """Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

    def line(self, text: str) -> None:
        say(text)

    @contextlib.contextmanager
    def bar(self, what: str, samples: int | None = None) -> Iterator[Bar]:
        pace = _Pace(samples)
        with _rich_bar(what) if sys.stderr.isatty() else contextlib.nullcontext(_plain_bar(what, pace)) as show:

            def update(done: int, total: int, figures: str = "") -> None:
                pace.update(done)
                show(done, total, f"{pace}{', ' if figures else ''}{figures}")

            yield update


def say(text: str) -> None:
    """Print a line on stderr. A closed stream or a full disk does not end the work."""
    with contextlib.suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


def echo(text: object) -> None:
    """Print a result on stdout, line by line; what is no printable character, as in the name of a file, is escaped."""
    for line in str(text).split("\n"):
        print(printable(line), flush=True)


def finish(written: object, *command: object) -> None:
    """Print the last lines of a command: what it wrote, and the words of the next command, if there is one."""
    say(f"written: {written}")
    if command:
        say_next(*command)


def say_next(*command: object) -> None:
    """Print the words of a command to type next, quoted where they need it."""
    say(f"next: {shlex.join(map(str, command))}")


def print_json(value: Any) -> None:
    """Print a result on stdout."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    print(json.dumps(plain, indent=2, default=str))


def console() -> Console:
    """The console for tables, on stdout."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL, highlight=False)


@contextlib.contextmanager
def _rich_bar(what: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[figures]}"
    # Off a terminal, stdout is a file or a pipe, which must get what is printed meanwhile.
    progress = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
    with contextlib.suppress(OSError):  # of a terminal that was closed; it must not end the work
        progress.start()
    try:
        task = progress.add_task(what, total=None, figures="")
        yield lambda done, total, figures="": progress.update(task, completed=done, total=total, figures=figures)
    finally:
        with contextlib.suppress(OSError):
            progress.stop()


def _plain_bar(what: str, pace: _Pace) -> Bar:
    last = time.monotonic()

    def show(done: int, total: int, figures: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done >= total:
            last = now
            say(f"{what}: {done}/{total}, {duration(pace.seconds_for(total - done))} left, {figures}")

    return show


class _Pace:
    """The speed of the work done in this process, in steps or, if `samples` per step is given, in samples."""

    def __init__(self, samples: int | None):
        self.samples = samples
        self.started, self.first, self.done = time.monotonic(), -1, 0

    def update(self, done: int) -> None:
        if self.first < 0:
            self.first = done - 1
        self.done = done - self.first

    def seconds_for(self, steps: int) -> float:
        return (time.monotonic() - self.started) / max(self.done, 1) * steps

    def __str__(self) -> str:
        per_second = self.done / max(time.monotonic() - self.started, 1e-9)
        unit, per_second = ("", per_second) if self.samples is None else (" samples", per_second * self.samples)
        if per_second < 1:
            return f"{60 * per_second:.3g}{unit}/min"
        return f"{per_second:,.0f}{unit}/s" if per_second >= 100 else f"{per_second:.3g}{unit}/s"
