# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from test_new_process import lack_memory
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


def test_memory_of_each_pass_is_measured_in_a_new_process() -> None:
    peaks = memory.peak_memories_mb(CASE, plain=False, keep_freed=False)
    assert len(peaks) == memory.CPU_PASSES
    assert all(0.1 < peak < 500 for peak in peaks)


def test_lack_of_memory_names_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_peaks_of_passes", lack_memory)
    with pytest.raises(OutOfMemoryError, match=f"tiny, {LEAST} points, batch 1, cpu: out of memory"):
        memory.peak_memories_mb(CASE, plain=True, keep_freed=False)
