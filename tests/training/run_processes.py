# SPDX-License-Identifier: MIT
"""Trainings of the smallest networks in processes of their own, which tests can kill and signal.

Processes are forked from a server that has imported everything and computed nothing, so that one costs no second.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from faults import Fault
from small_runs import NAME, add_small_variants, newest_number, resume_run, train_run

from bpfn_cli.cli import main as command
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs.record import RECORD_FILE

# The server is a Python of its own, which must find this module to have it ready.
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*sys.path, os.environ.get("PYTHONPATH", "")]))
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["run_processes"])


def start_or_resume(data: Path, runs: Path, recipe: Recipe, more: dict[str, Any]) -> None:
    """What a job script does that is run repeatedly."""
    if (runs / NAME / RECORD_FILE).is_file():
        resume_run(runs)
    else:
        train_run(data, runs, recipe, **more)


def run_as_command(
    data: Path, runs: Path, recipe: Recipe, more: dict[str, Any], before: Callable[[], None] | None
) -> None:
    """Behave like the command line: signals, one line on stderr, an exit code."""
    torch.set_num_threads(1)
    add_small_variants()
    if before is not None:
        before()
    sys.stderr = (runs.parent / "stderr").open("w")
    signal.signal(signal.SIGTERM, command._terminate)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def app(*_: Any, **__: Any) -> None:
        start_or_resume(data, runs, recipe, more)

    command.app = app  # type: ignore[assignment]
    code = command.run([])
    sys.stderr.flush()
    sys.exit(code)


def start_process(
    data: Path, runs: Path, recipe: Recipe, before: Callable[[], None] | None = None, **more: Any
) -> ForkServerProcess:
    """Start or resume the run in a process group of its own.

    Args: before: called first, to plant a fault; must be picklable.
    """
    runs.mkdir(parents=True, exist_ok=True)
    process = SERVER.Process(target=_in_own_group, args=(data, runs, recipe, more, before))
    process.start()
    return process


def _in_own_group(*arguments: Any) -> None:
    os.setpgid(0, 0)
    run_as_command(*arguments)


def finish_in_process(data: Path, runs: Path, recipe: Recipe, **more: Any) -> tuple[int, str]:
    """Start or resume the run; returns its exit code and its last line on stderr."""
    process = start_process(data, runs, recipe, **more)
    process.join(120)
    assert process.exitcode is not None, "still running"
    return process.exitcode, last_error_line(runs)


def start_with_fault(
    data: Path, runs: Path, recipe: Recipe, fault: str, *, wait_for_fault: bool = False
) -> tuple[ForkServerProcess, Path]:
    """A training that meets a fault of `faults` after its first checkpoint, and the file whose removal ends the fault.

    Args: wait_for_fault: until the fault has happened, where it reports that.
    """
    switch = runs.parent / fault
    process = start_process(data, runs, recipe, Fault(fault, switch))
    wait_until(has_checkpoint(runs))
    switch.touch()
    if wait_for_fault:
        wait_until(switch.with_suffix(".begun").exists)
    return process, switch


def last_error_line(runs: Path) -> str:
    """The last line on stderr."""
    lines = (runs.parent / "stderr").read_text().splitlines()
    return lines[-1] if lines else ""


def signal_group(process: ForkServerProcess, number: int) -> None:
    """Send a signal to a process and its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, number)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll a condition. Raises: AssertionError: it stays false for `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def has_checkpoint(runs: Path, number: int = 1) -> Callable[[], bool]:
    """A condition: there is a checkpoint of at least so many batches."""
    return lambda: newest_number(runs) >= number
