# SPDX-License-Identifier: MIT
"""How long work tells that it is alive; the command line decides what that looks like."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

SECONDS_BETWEEN_NOTES = 60.0


class Bar(Protocol):
    """One stage of work."""

    def __call__(self, done: int, total: int, figures: str = "") -> None:
        """`done` of `total` steps are finished; `figures` are worth a glance."""


class Progress(Protocol):
    """Lines and bars."""

    def line(self, text: str) -> None:
        """Say one thing."""

    def bar(self, what: str, samples: int | None = None) -> AbstractContextManager[Bar]:
        """Begin a stage of work. samples: of a step, where their number a second is worth knowing."""


class Written:
    """Progress that is also written, the bars once a minute.

    Args: note: writes a line.
    """

    def __init__(self, progress: Progress, note: Callable[[str], None]):
        self.progress, self.note = progress, note

    def line(self, text: str) -> None:
        self.note(text)
        self.progress.line(text)

    @contextlib.contextmanager
    def bar(self, what: str, samples: int | None = None) -> Iterator[Bar]:
        """See `Progress`."""
        written = time.monotonic()
        with self.progress.bar(what, samples) as shown:

            def update(done: int, total: int, figures: str = "") -> None:
                nonlocal written
                if time.monotonic() - written >= SECONDS_BETWEEN_NOTES:
                    written = time.monotonic()
                    self.note(f"{what}: {done}/{total}{', ' if figures else ''}{figures}")
                shown(done, total, figures)

            yield update
