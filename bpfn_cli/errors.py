# SPDX-License-Identifier: MIT
"""Errors that a user can fix. Each is one line: the file or key, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class BpfnError(Exception):
    """Base of every error that is shown as one line, without a traceback."""

    exit_code = 1
    is_shared = False  # raised in all processes of a training; only the main one reports it


class UsageError(BpfnError):
    """A command line or recipe that is not valid."""

    exit_code = 2


class DataError(BpfnError):
    """A data file that is missing, damaged or of the wrong kind."""

    exit_code = 3


class ShapeError(DataError):
    """Points whose shape, number or values no operation accepts."""


class CheckpointError(BpfnError):
    """Weights that are damaged, unsafe or for another architecture."""

    exit_code = 4


class DiskError(BpfnError):
    """A file or folder that cannot be written: full disk, permission, wrong kind of path."""

    exit_code = 5


class BusyError(BpfnError):
    """Another process is working on the same folder."""

    exit_code = 6


class NonFiniteError(BpfnError):
    """Training or prediction produced NaN or infinity."""

    exit_code = 7


class OutOfMemoryError(BpfnError):
    """The work does not fit in memory."""

    exit_code = 8


class BpfnWarning(UserWarning):
    """What a user must know and no result says; shown as one line."""


class Interrupted(BpfnError):
    """Work that a signal or a time limit stopped; what was done is saved."""

    def __init__(self, reason: str, exit_code: int, command: str = ""):
        super().__init__(f"{reason}; resume with: {command}" if command else reason)
        self.reason, self.exit_code, self.command = reason, exit_code, command

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.exit_code, self.command), {"is_shared": self.is_shared}

    def resumed_by(self, command: str) -> Interrupted:
        """The same error with the command that resumes the work."""
        again = Interrupted(self.reason, self.exit_code, command)
        again.is_shared = self.is_shared
        return again


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`, did you mean NAME?` with the nearest known name after `prefix`, or nothing where none is near."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {prefix}{near[0]}?" if near else ""


def means_out_of_memory(message: str) -> bool:
    """Whether the message of an error from torch or a process says that memory ran out."""
    phrases = [
        *("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "MemoryError"),
        *("Failed to allocate memory", "bad allocation", "bad_alloc"),  # of onnxruntime
    ]
    return any(phrase in message for phrase in phrases)


def printable(text: object) -> str:
    """`text` with control characters escaped, so that a hostile file name cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
