# SPDX-License-Identifier: MIT
"""Stop a training early, on a signal or at a time limit."""

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

# Sent by SLURM and shells: preemption or time limit; `--signal=USR1@120`; a closed terminal; Ctrl-C.
# Windows knows only some of them.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT") if hasattr(signal, name))
ECHO_SECONDS = 3.0
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Interruption:
    """A request to stop, by a signal (the second ends the process at once) or after `max_seconds` from now."""

    def __init__(self, max_seconds: float | None = None):
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.signal: int | None = None
        self._received = 0.0
        # A launcher forwards signals that the whole process group has already received.
        self._grace = ECHO_SECONDS if is_started() else 0.0
        self._is_deferred = False
        self._checked: float | None = None
        self._longest = 0.0  # seconds between two checks, saving included

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals in the block: they raise `Interrupted`, or wait for `check` inside `deferred`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Ignored signals stay ignored, as under `nohup`.
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In the block, a signal takes effect only at the next `check`."""
        self._checked = None
        with self._deferring(True):
            yield

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside `deferred`, let signals (also one that has arrived) take effect at once, for work that may hang."""
        was_deferred = self._is_deferred
        with self._deferring(False):
            if was_deferred and self.signal is not None:
                raise _by_signal(self.signal)
            yield

    @contextlib.contextmanager
    def _deferring(self, is_deferred: bool) -> Iterator[None]:
        outside, self._is_deferred = self._is_deferred, is_deferred
        try:
            yield
        finally:
            self._is_deferred = outside

    def check(self) -> None:
        """Raises: Interrupted: it is time to save and stop."""
        if (found := self.wanted()) is not None:
            raise found

    def wanted(self) -> Interrupted | None:
        """The reason to stop now; None: continue."""
        now = time.monotonic()
        if self._checked is not None:
            self._longest = max(self._longest, now - self._checked)
        self._checked = now
        if self.signal is not None:
            return _by_signal(self.signal)
        # The next check may take as long as the longest interval so far, and saving takes time too.
        if self.deadline is not None and now + 2 * self._longest > self.deadline:
            return Interrupted("--max-time reached", 0)
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
    """Seconds of `90m`, `36h`, `2d`, `9s` or SLURM's minutes, `mm:ss`, `hh:mm:ss`, `d-hh:mm:ss`. Raises: UsageError."""
    if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdecimal():
        return float(text[:-1]) * _UNITS[text[-1]]
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"--max-time {printable(text)}: write 90m, 36h, 2d, hh:mm:ss or d-hh:mm:ss")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:  # mm, mm:ss
        numbers.insert(0, 0)
    hours, minutes, seconds = [*numbers, 0, 0][:3]  # with days: hh, hh:mm, hh:mm:ss
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
