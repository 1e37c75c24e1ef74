# SPDX-License-Identifier: MIT
"""The memory one pass needs beyond what was in use before it, with weights and clouds loaded and code warm.

On a CPU it is the peak of the resident set, in a separate process: freed memory stays with a process, so the peak of
one that did other work before is meaningless. On CUDA the allocator keeps the count.
"""

import contextlib
import ctypes
import gc
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bpfn_cli.device import keep_freed_memory
from bpfn_cli.errors import OutOfMemoryError
from bpfn_cli.profiling.new_process import in_new_process
from bpfn_cli.profiling.workload import Case, Workload

METHOD = {
    "cpu": "peak resident set of a separate process, above its start, median of the passes",
    "cuda": "torch.cuda.max_memory_allocated, above the start",
}
CPU_PASSES = 3  # the C library does not always reuse the same freed memory: single passes differ by up to a third


def peak_memories_mb(case: Case, *, plain: bool, keep_freed: bool) -> list[float]:
    """Peak memory of one pass of `case`, in megabytes (10^6 bytes); on a CPU of each of CPU_PASSES passes.

    Args: plain: of `ReferenceNetwork`. keep_freed: with `keep_freed_memory`, as our commands run.
    Raises: OutOfMemoryError: it does not fit.
    """
    if torch.device(case.device).type == "cuda":
        return [_peak_on_cuda(case, plain) / 1e6]
    too_large = f"{case}: out of memory; try smaller --points or --batch"
    peaks = in_new_process(_peaks_of_passes, case, plain, keep_freed, too_large=too_large)
    return [peak / 1e6 for peak in peaks]


def _peaks_of_passes(case: Case, plain: bool, keep_freed: bool) -> list[int]:
    _warm_up(case, plain)
    _return_freed_memory()
    if keep_freed:
        keep_freed_memory()
    work = Workload(case, plain=plain)
    return [_peak_of_pass(work) for _ in range(CPU_PASSES)]


def _warm_up(case: Case, plain: bool) -> None:  # loads code and starts threads
    Workload(replace(case, points=case.variant.least_points, batch=1), plain=plain).run()
    gc.collect()


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
    """Reset the peak of this process's resident set, if the system supports it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(*, peak: bool) -> int:
    """Resident set of this process, now or at its peak; always the peak where the system reports nothing else."""
    if sys.platform == "linux":
        # Not getrusage, whose peak is inherited from the parent.
        key = "VmHWM:" if peak else "VmRSS:"
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_on_cuda(case: Case, plain: bool) -> int:
    try:
        with torch.cuda.device(case.device):
            _warm_up(case, plain)
            work = Workload(case, plain=plain)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
            work.run()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - start
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{case}: out of GPU memory; try smaller --points or --batch") from error
