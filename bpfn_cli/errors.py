# SPDX-License-Identifier: MIT
"""Mistakes a user can fix. Each is one line: the file or key, what is wrong, what to do."""

from __future__ import annotations

from typing import Any


class BpfnError(Exception):
    """Base of every error that is shown as one line, without a traceback."""

    exit_code = 1
    is_shared = False  # by all processes of a training, so that the main one alone tells it


class UsageError(BpfnError):
    """A command line or a recipe that cannot be carried out."""

    exit_code = 2


class DataError(BpfnError):
    """A data file that is missing, damaged or not what it should be."""

    exit_code = 3


class ShapeError(DataError):
    """Points whose shape, number or values no point operation can work on."""


class CheckpointError(BpfnError):
    """Weights that are damaged, unsafe or of another architecture."""

    exit_code = 4


class DiskError(BpfnError):
    """A file or folder that cannot be written: full disk, permission, wrong kind of path."""

    exit_code = 5


class BusyError(BpfnError):
    """Another process works on the same folder."""

    exit_code = 6


class NonFiniteError(BpfnError):
    """Training or prediction produced NaN or infinity."""

    exit_code = 7


class OutOfMemoryError(BpfnError):
    """The work does not fit in memory."""

    exit_code = 8


class Interrupted(BpfnError):
    """Work that was stopped before its end, by a signal or a limit of time; what it had done is saved."""

    def __init__(self, reason: str, exit_code: int, command: str = ""):
        super().__init__(f"{reason}; to go on: {command}" if command else reason)
        self.reason, self.exit_code, self.command = reason, exit_code, command

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.exit_code, self.command), {"is_shared": self.is_shared}

    def going_on_by(self, command: str) -> Interrupted:
        """The same with the command that goes on with the work."""
        again = Interrupted(self.reason, self.exit_code, command)
        again.is_shared = self.is_shared
        return again


def means_out_of_memory(message: str) -> bool:
    """Whether an error of torch, or of a process, says that memory has run out."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "MemoryError")
    return any(phrase in message for phrase in phrases)


def printable(text: object) -> str:
    """`text` with control characters escaped, so that a hostile file name cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
