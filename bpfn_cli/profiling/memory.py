# SPDX-License-Identifier: MIT
"""The memory one pass needs above what was there before it: weights and clouds loaded, code warm.

On a CPU it is the peak of the resident set, in a process of its own: the peak of a process that did other work before
says nothing, since freed memory stays with it. On CUDA the allocator keeps the count.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from bpfn_cli.device import keep_freed_memory
from bpfn_cli.errors import OutOfMemoryError, means_out_of_memory
from bpfn_cli.ops import plain_path
from bpfn_cli.profiling.workload import Case, Workload

METHOD = {
    "cpu": "peak resident set of a process of its own, above its start, median of the passes",
    "cuda": "torch.cuda.max_memory_allocated, above the start",
}
CPU_PASSES = 3  # the C library does not always reuse the same freed memory: single passes differ by up to a third

_CHILD = "import sys; sys.path[:] = {path!r}; from bpfn_cli.profiling.memory import answer; answer()"


def peak_memories_mb(case: Case, *, plain: bool, keep_freed: bool) -> list[float]:
    """Megabytes (10^6 bytes) that one pass of `case` takes at its peak; on a CPU those of CPU_PASSES passes.

    Args:
        keep_freed: with `keep_freed_memory`, as our commands run; False: with the system's allocator as it is.
    Raises: OutOfMemoryError: it does not fit.
    """
    if torch.device(case.device).type == "cuda":
        return [_peak_on_cuda(case, plain) / 1e6]
    asked = json.dumps([TypeAdapter(Case).dump_python(case), plain, keep_freed])
    # In a session of its own, an interrupt from the keyboard goes to this process alone, which then ends the other.
    child = subprocess.run(
        [sys.executable, "-c", _CHILD.format(path=sys.path)],
        input=asked,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    if child.returncode == 0:
        return [peak / 1e6 for peak in json.loads(child.stdout)]
    if child.returncode == -signal.SIGKILL or means_out_of_memory(child.stderr):
        raise OutOfMemoryError(f"{case}: out of memory; try smaller --points or --batch")
    raise RuntimeError(f"measuring memory failed:\n{child.stderr}")


def answer() -> None:
    """In the process of its own: read what to do from stdin, print the bytes of each pass."""
    asked, plain, keep_freed = json.load(sys.stdin)
    case = TypeAdapter(Case).validate_python(asked)
    least = case.variant.least_points
    with plain_path(plain):
        Workload(replace(case, points=least, batch=1)).run()  # loads code, starts threads
        gc.collect()
        _return_freed_memory()
        if keep_freed:
            keep_freed_memory()
        work = Workload(case)
        peaks = [_peak_of_pass(work) for _ in range(CPU_PASSES)]
    print(json.dumps(peaks))


def _peak_of_pass(work: Workload) -> int:
    work.model.zero_grad(set_to_none=True)
    _return_freed_memory()
    start = resident_bytes(peak=False)
    forget_peak()
    work.run()
    return resident_bytes(peak=True) - start


def _return_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_peak() -> None:
    """Let the peak of this process's resident set begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(*, peak: bool) -> int:
    """Of this process. Where the system tells only the peak, that of before stands for the start."""
    if sys.platform == "linux":
        # Not getrusage: its peak is inherited from the parent.
        key = "VmHWM:" if peak else "VmRSS:"
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_on_cuda(case: Case, plain: bool) -> int:
    try:
        with plain_path(plain), torch.cuda.device(case.device):
            Workload(replace(case, points=case.variant.least_points, batch=1)).run()
            work = Workload(case)
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
            work.run()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - start
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{case}: out of GPU memory; try smaller --points or --batch") from error
