# SPDX-License-Identifier: MIT
"""How long work tells that it is alive; the command line decides what that looks like."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Bar(Protocol):
    """One stage of work."""

    def __call__(self, done: int, total: int, figures: str = "") -> None:
        """`done` of `total` steps are finished; `figures` are worth a glance."""


class Progress(Protocol):
    """Lines and bars."""

    def line(self, text: str) -> None:
        """Say one thing."""

    def bar(self, what: str) -> AbstractContextManager[Bar]:
        """Begin a stage of work."""
