# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_world import LEAST, TINY, tiny_network

from bpfn_cli.errors import OutOfMemoryError
from bpfn_cli.profiling import memory
from bpfn_cli.profiling.workload import Case

CASE = Case(TINY, LEAST)


class Allocation:
    """A pass that needs a known number of bytes."""

    model = tiny_network()

    def __init__(self, size: int):
        self.size = size

    def run(self) -> None:
        torch.ones(self.size, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be reset")
def test_peak_is_that_of_the_pass_alone() -> None:
    script = (  # in a process that does nothing else, as the command measures
        "from test_memory import Allocation; from bpfn_cli.profiling import memory; Allocation(1_000_000).run();"
        "print(*(memory._peak_of_pass(Allocation(size)) for size in (300_000_000, 100_000_000)))"
    )  # the second after a higher one
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert [int(peak) / 1e6 for peak in answer.stdout.split()] == pytest.approx([300, 100], abs=3)


def test_other_process_answers_with_the_bytes_of_each_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def ask(command: list[str], *, input: str, **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(input)
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        memory.answer()
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out)

    monkeypatch.setattr(subprocess, "run", ask)
    peaks = memory.peak_memories_mb(CASE, plain=False, keep_freed=False)
    assert len(peaks) == memory.CPU_PASSES
    assert all(0.1 < peak < 500 for peak in peaks)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "fault",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",  # what the system does when memory ends
        pytest.param("import torch; torch.empty(2**50)", marks=pytest.mark.slow),
        "raise MemoryError",
    ],
)
def test_lack_of_memory_is_reported_in_one_line(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CHILD", fault)
    with pytest.raises(OutOfMemoryError, match=f"tiny, {LEAST} points, batch 1, cpu: out of memory"):
        memory.peak_memories_mb(CASE, plain=True, keep_freed=False)


def test_any_other_error_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CHILD", "raise ValueError('a bug')")
    with pytest.raises(RuntimeError, match="a bug"):
        memory.peak_memories_mb(CASE, plain=True, keep_freed=False)
