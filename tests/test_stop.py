# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import pickle
import signal
import time

import pytest

from bpfn_cli import stop as module
from bpfn_cli.errors import BpfnError, Interrupted, UsageError
from bpfn_cli.stop import Interruption, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90m", 5400),
        ("1.5h", 5400),
        ("2d", 172800),
        ("90", 5400),  # from here on in the formats of SLURM
        ("90:30", 5430),
        ("23:30:00", 84600),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:05", 131405),
    ],
)
def test_parse_duration_by_hand(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "1:2:3:4", "5x", "1e3", "\x1b[31m", "s", "1-", "nan"])
def test_parse_duration_rejects_other_texts(text: str) -> None:
    with pytest.raises(UsageError, match="write 90m, 36h"):
        parse_duration(text)


def test_first_signal_waits_inside_deferred_and_is_raised_outside() -> None:
    stop = Interruption()
    with stop.listening(), stop.deferred():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        with pytest.raises(Interrupted, match="stopped by SIGUSR1"):
            stop.check()
    stop = Interruption()
    with pytest.raises(Interrupted) as raised, stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert raised.value.exit_code == 130


def test_earlier_signal_is_raised_on_entering_immediate() -> None:
    stop = Interruption()
    with stop.listening(), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        with pytest.raises(Interrupted), stop.immediate():
            raise AssertionError("not reached")


def test_listening_restores_the_handlers() -> None:
    before = [signal.getsignal(number) for number in module.SIGNALS]
    with Interruption().listening():
        assert [signal.getsignal(number) for number in module.SIGNALS] != before
    assert [signal.getsignal(number) for number in module.SIGNALS] == before


def test_time_limit_is_reached_twice_the_longest_interval_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 13.0, 40.0, 77.0, 94.5, 95.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    stop = Interruption(max_seconds=150)  # at 0
    with stop.deferred():
        stop.check()  # at 10
        stop.check()  # at 13
        stop.check()  # at 40: 27 s between two checks
        assert (found := stop.wanted()) is not None  # at 77: 37 s, and 77 + 2 * 37 = 151
    assert (found.reason, found.exit_code) == ("--max-time reached", 0)


def test_interrupted_survives_pickling() -> None:
    error = Interrupted("stopped by SIGTERM", 143).resumed_by("bpfn resume a")
    error.is_shared = True
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.exit_code, again.is_shared) == (
        "stopped by SIGTERM; resume with: bpfn resume a",
        143,
        True,
    )
    assert not BpfnError("x").is_shared


def test_signal_repeated_by_a_launcher_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    stop = Interruption()
    with stop.listening(), stop.deferred():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert stop.wanted() is not None  # and still here
