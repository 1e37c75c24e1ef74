# SPDX-License-Identifier: MIT
"""Other conditions to measure under: a busy machine, and a process that has just started."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from pydantic import TypeAdapter

from bpfn_cli.profiling.workload import Case, Workload
from bpfn_cli.progress import ProgressCallback

LATER_PASSES = 5

_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
_FIRST = "import sys; sys.path[:] = {path!r}; from bpfn_cli.profiling.conditions import answer; answer()"


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Meanwhile, keep `count` cores busy with other processes, which also end when this one is killed."""
    processes = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class FirstPass:
    """Seconds, medians over new processes of each kind, which take turns.

    Attributes:
        import_torch_s: a whole process that does nothing but `import torch`.
        process_s: a whole process that loads bpfn, builds the network and does one pass.
        first_s, later_s: the first pass of a process, and the median of LATER_PASSES later ones.
        times_least: `process_s` as a multiple of `import_torch_s` plus `later_s`.
    """

    variant: str
    points: int
    batch: int
    device: str
    import_torch_s: float
    process_s: float
    first_s: float
    later_s: float
    times_least: float


def measure_first_pass(
    case: Case, *, processes: int, keep_freed: bool, progress: ProgressCallback | None = None
) -> FirstPass:
    """Measure the first pass of new processes.

    Args: processes: of each kind. keep_freed: with `keep_freed_memory`, as our commands run.
    """
    imports, wholes, firsts, laters, child = [], [], [], [], _FIRST.format(path=sys.path)
    for number in range(processes):
        imports.append(_seconds_of("import torch", "")[0])
        wholes.append(_seconds_of(child, _request(case, 0, keep_freed))[0])
        first, *later = json.loads(_seconds_of(child, _request(case, LATER_PASSES, keep_freed))[1])
        firsts.append(first)
        laters.append(median(later))
        if progress is not None:
            progress(number + 1, processes)
    imported, whole, first, later = map(median, (imports, wholes, firsts, laters))
    names = case.variant.name, case.points, case.batch, case.device
    return FirstPass(*names, imported, whole, first, later, whole / (imported + later))


def answer() -> None:
    """In a new process: read the request from stdin, print the seconds of each pass."""
    from bpfn_cli.device import keep_freed_memory

    request, later, keep_freed = json.load(sys.stdin)
    if keep_freed:
        keep_freed_memory()
    work = Workload(TypeAdapter(Case).validate_python(request))
    seconds = []
    for _ in range(1 + later):
        start = time.perf_counter()
        work.run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


def _request(case: Case, later: int, keep_freed: bool) -> str:
    return json.dumps([TypeAdapter(Case).dump_python(case), later, keep_freed])


def _seconds_of(code: str, request: str) -> tuple[float, str]:
    """Seconds that a Python process takes, and what it prints."""
    start = time.perf_counter()
    child = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"measuring the first pass failed:\n{child.stderr}")
    return time.perf_counter() - start, child.stdout
