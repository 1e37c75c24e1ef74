# SPDX-License-Identifier: MIT
"""The memory one pass needs beyond what was in use before it, with weights and clouds loaded and code warm.

On a CPU it is the peak of the resident set, in a separate process: freed memory stays with a process, so the peak of
one that did other work before is meaningless. On CUDA the allocator keeps the count.
"""

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
from bpfn_cli.profiling.workload import Case, Workload

METHOD = {
    "cpu": "peak resident set of a separate process, above its start, median of the passes",
    "cuda": "torch.cuda.max_memory_allocated, above the start",
}
CPU_PASSES = 3  # the C library does not always reuse the same freed memory: single passes differ by up to a third

_CHILD = "import sys; sys.path[:] = {path!r}; from bpfn_cli.profiling.memory import answer; answer()"


def peak_memories_mb(case: Case, *, plain: bool, keep_freed: bool) -> list[float]:
    """Peak memory of one pass of `case`, in megabytes (10^6 bytes); on a CPU of each of CPU_PASSES passes.

    Args: plain: of `ReferenceNetwork`. keep_freed: with `keep_freed_memory`, as our commands run.
    Raises: OutOfMemoryError: it does not fit.
    """
    if torch.device(case.device).type == "cuda":
        return [_peak_on_cuda(case, plain) / 1e6]
    child = subprocess.run(
        [sys.executable, "-c", _CHILD.format(path=sys.path)],
        input=json.dumps([TypeAdapter(Case).dump_python(case), plain, keep_freed]),
        capture_output=True,
        text=True,
        start_new_session=True,  # Ctrl-C then reaches only this process, which ends the child
        check=False,
    )
    if child.returncode == 0:
        return [peak / 1e6 for peak in json.loads(child.stdout)]
    if child.returncode == -signal.SIGKILL or means_out_of_memory(child.stderr):
        raise OutOfMemoryError(f"{case}: out of memory; try smaller --points or --batch")
    raise RuntimeError(f"measuring memory failed:\n{child.stderr}")


def answer() -> None:
    """In the separate process: read the request from stdin, print the peak bytes of each pass."""
    request, plain, keep_freed = json.load(sys.stdin)
    case = TypeAdapter(Case).validate_python(request)
    _warm_up(case, plain)
    _return_freed_memory()
    if keep_freed:
        keep_freed_memory()
    work = Workload(case, plain=plain)
    print(json.dumps([_peak_of_pass(work) for _ in range(CPU_PASSES)]))


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
