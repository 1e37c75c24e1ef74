# SPDX-License-Identifier: MIT
"""When a training is to stop before its end: a signal has come, or its time is up."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from bpfn_cli.errors import Interrupted, UsageError, printable
from bpfn_cli.launch import is_started

# What SLURM and shells send: preemption, the end of a limit; `--signal=USR1@120`; a lost terminal; Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
SECONDS_OF_AN_ECHO = 3.0
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Interruption:
    """Asked for by the first signal; a second one ends the process at once.

    Args: max_seconds: after which a job should have ended, counted from now; None: no limit.
    """

    def __init__(self, max_seconds: float | None = None):
        now = time.monotonic()
        self.deadline = None if max_seconds is None else now + max_seconds
        self.signal: int | None = None
        self._received = 0.0
        # A launcher hands on what the whole group has been sent already.
        self._grace = SECONDS_OF_AN_ECHO if is_started() else 0.0
        self._is_deferred = False
        self._checked: float | None = None
        self._longest = 0.0  # seconds between two checks, with what was saved between them

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """In the block a signal raises `Interrupted`, or waits for `check` inside `deferred`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as `nohup` wants it
        before = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In the block a signal is only remembered, until `check` is called."""
        outside, self._is_deferred, self._checked = self._is_deferred, True, None
        try:
            yield
        finally:
            self._is_deferred = outside

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """In the block, inside `deferred`, a signal is not waited with: for what may hang.

        Raises: Interrupted: also for one that has come before.
        """
        outside, self._is_deferred = self._is_deferred, False
        try:
            if outside and self.signal is not None:
                raise _by_signal(self.signal)
            yield
        finally:
            self._is_deferred = outside

    def check(self) -> None:
        """Raises: Interrupted: it is time to save and stop."""
        found = self.wanted()
        if found is not None:
            raise found

    def wanted(self) -> Interrupted | None:
        """Why to stop now; None: go on."""
        now = time.monotonic()
        if self._checked is not None:
            self._longest = max(self._longest, now - self._checked)
        self._checked = now
        if self.signal is not None:
            return _by_signal(self.signal)
        # The next check may be as far away as the farthest until now, and saving takes its time too.
        if self.deadline is not None and now + 2 * self._longest > self.deadline:
            return Interrupted("its --max-time is up", 0)
        return None

    def _receive(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.signal is not None:
            if now - self._received < self._grace:
                return
            os._exit(128 + number)
        self.signal, self._received = number, now
        if not self._is_deferred:
            raise _by_signal(number)


def _by_signal(number: int) -> Interrupted:
    code = 130 if number == signal.SIGINT else 143
    return Interrupted(f"stopped by {signal.Signals(number).name}", code)


def parse_duration(text: str) -> float:
    """Seconds of `90m`, `36h`, `2d`, `7200s`, or as SLURM writes it: minutes, `mm:ss`, `hh:mm:ss`, `d-hh:mm:ss`.

    Raises: UsageError.
    """
    if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdecimal():
        return float(text[:-1]) * _UNITS[text[-1]]
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"--max-time {printable(text)}: write 90m, 36h, 2d, hh:mm:ss or d-hh:mm:ss")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # d-hh, d-hh:mm, d-hh:mm:ss
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(numbers) == 1:
        return numbers[0] * 60
    if len(numbers) == 2:
        return numbers[0] * 60 + numbers[1]
    return numbers[0] * 3600 + numbers[1] * 60 + numbers[2]
