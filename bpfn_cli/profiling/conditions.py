# SPDX-License-Identifier: MIT
"""Other conditions to measure under: a busy machine, and a process that has just started."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from bpfn_cli.profiling.new_process import in_new_process
from bpfn_cli.profiling.workload import Case, Workload
from bpfn_cli.progress import ProgressCallback

T = TypeVar("T")

LATER_PASSES = 5

_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


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
    imports, wholes, firsts, laters = [], [], [], []
    for number in range(processes):
        imports.append(_timed(_import_torch)[0])
        wholes.append(_timed(lambda: in_new_process(_seconds_of_passes, case, 0, keep_freed))[0])
        seconds = in_new_process(_seconds_of_passes, case, LATER_PASSES, keep_freed)
        firsts.append(seconds[0])
        laters.append(median(seconds[1:]))
        if progress is not None:
            progress(number + 1, processes)
    imported, whole, first, later = map(median, (imports, wholes, firsts, laters))
    names = case.variant.name, case.points, case.batch, case.device
    return FirstPass(*names, imported, whole, first, later, whole / (imported + later))


def _seconds_of_passes(case: Case, later: int, keep_freed: bool) -> list[float]:
    from bpfn_cli.device import keep_freed_memory

    if keep_freed:
        keep_freed_memory()
    work = Workload(case)
    return [_timed(work.run)[0] for _ in range(1 + later)]


def _import_torch() -> None:
    subprocess.run([sys.executable, "-c", "import torch"], check=True)


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer
