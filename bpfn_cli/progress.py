# SPDX-License-Identifier: MIT
"""Progress of long work. The command line decides how it is shown."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

SECONDS_BETWEEN_NOTES = 60.0

ProgressCallback = Callable[[int, int], None]  # called with the numbers of steps done and steps in total
OnProgress = ProgressCallback | None


class Bar(Protocol):
    def __call__(self, done: int, total: int, figures: str = "") -> None:
        """Report that `done` of `total` steps of a stage are finished; `figures` are shown beside."""


class Progress(Protocol):
    def line(self, text: str) -> None:
        """Print a line."""

    def bar(self, what: str, samples: int | None = None) -> AbstractContextManager[Bar]:
        """Start a stage of work. samples: number of samples in a step, to show samples per second."""


class LoggedProgress:
    """Progress that is also logged by `note`, which writes a line; bars at most once a minute."""

    def __init__(self, progress: Progress, note: Callable[[str], None]):
        self.progress, self.note = progress, note

    def line(self, text: str) -> None:
        self.note(text)
        self.progress.line(text)

    @contextlib.contextmanager
    def bar(self, what: str, samples: int | None = None) -> Iterator[Bar]:
        logged = time.monotonic()
        with self.progress.bar(what, samples) as shown:

            def update(done: int, total: int, figures: str = "") -> None:
                nonlocal logged
                if time.monotonic() - logged >= SECONDS_BETWEEN_NOTES:
                    logged = time.monotonic()
                    self.note(f"{what}: {done}/{total}{', ' if figures else ''}{figures}")
                shown(done, total, figures)

            yield update


def duration(seconds: float) -> str:
    """Such as 4.5 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


class NoProgress:
    """Progress that nobody sees."""

    def line(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, what: str, samples: int | None = None) -> Iterator[Bar]:
        yield lambda done, total, figures="": None
