# SPDX-License-Identifier: MIT
import subprocess
import sys

import pytest
import torch

from bpfn_cli.device import resolve_device
from bpfn_cli.errors import UsageError

PAGE_FAULTS = """
import resource, sys, torch
from bpfn_cli.device import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else True
def fill(times):
    for _ in range(times):
        torch.ones(16_000_000)  # 64 MB: beyond what glibc keeps by itself
fill(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill(5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before if kept else "not glibc")
"""


@pytest.mark.parametrize("name", ["gpu", "mps", "cpu:x", "cuda:99", "\x1b"])
def test_missing_device_is_rejected(name: str) -> None:
    with pytest.raises(UsageError, match="--device "):
        resolve_device(name)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.slow
def test_memory_of_freed_tensors_costs_no_page_faults_again() -> None:
    def page_faults(mode: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", PAGE_FAULTS, mode], capture_output=True, text=True, check=True
        ).stdout.strip()

    kept = page_faults("kept")
    if kept == "not glibc":
        pytest.skip("mallopt is glibc's")
    assert int(kept) < int(page_faults("default")) / 10
