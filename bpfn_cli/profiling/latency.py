# SPDX-License-Identifier: MIT
"""How long a pass takes, in total and by stage, compared with the plain path and the machine's matrix products.

Rounds are interleaved (fast path, plain path, matrix products, and again), so other load on the machine affects all
of them alike.
"""

import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bpfn_cli
from bpfn_cli.cores import usable_cores
from bpfn_cli.errors import OutOfMemoryError
from bpfn_cli.models.reference import MOST_PLAIN_POINTS
from bpfn_cli.models.stages import watch_stages
from bpfn_cli.ops.products import multiply
from bpfn_cli.precision import Precision
from bpfn_cli.profiling.flops import count_matrix_flops
from bpfn_cli.profiling.memory import METHOD, peak_memories_mb
from bpfn_cli.profiling.workload import Case, Workload
from bpfn_cli.progress import ProgressCallback

GEMM_SIZE = 2048
STAGES = ("geometry", "encoder", "level3", "level2", "level1", "level0", "backward", "other")

StageTimes = dict[str, float]  # milliseconds by stage


@dataclass(frozen=True)
class PathLatency:
    """One path; `times_ms`: each pass, in order; `peak_memories_mb`: the passes that measured memory, if any."""

    times_ms: list[float]
    median_ms: float
    p90_ms: float
    pairs_per_s: float
    peak_memory_mb: float | None
    peak_memories_mb: list[float]


@dataclass(frozen=True)
class Latency:
    """What one case takes.

    Attributes:
        plain: None if not measured; `plain_skipped` then says why, if it was requested.
        stages_ms: medians of the fast path, which sum to about `fast.median_ms`. `geometry`: all sampling, neighbor
            search and warping; `level3` .. `level0`: the rest of each level; `other`: checks and loss.
        stage_times_ms: each pass, in order.
        gemm_gflops: rate of float32 matrix products of GEMM_SIZE as the fast path computes them, from the median of
            `gemm_times_ms`, measured between the rounds; `torch_gemm_gflops`: the same for `torch.mm`.
        matrix_gflop: matrix products of one pass on the fast path.
        floor_ms: time of these at the higher of the two rates, plus the measured geometry. None: not in float32.
    """

    variant: str
    points: int
    batch: int
    device: str
    training: bool
    precision: str
    fast: PathLatency
    plain: PathLatency | None
    plain_skipped: str | None
    stages_ms: dict[str, float]
    stage_times_ms: dict[str, list[float]]
    gemm_gflops: float
    gemm_times_ms: list[float]
    torch_gemm_gflops: float
    torch_gemm_times_ms: list[float]
    matrix_gflop: float
    floor_ms: float | None
    memory_method: str | None


def measure_latency(
    case: Case,
    *,
    rounds: int = 10,
    plain: bool = True,
    memory: bool = True,
    keep_freed: bool = False,
    progress: ProgressCallback | None = None,
) -> Latency:
    """Measure a case.

    Args:
        plain: measure the plain path too, up to MOST_PLAIN_POINTS.
        memory: measure peak memory too, on a CPU in separate processes.
        keep_freed: whether this process has called `keep_freed_memory`; those processes then do the same.
        progress: called after each step: the memory of each path, the warm-up, each round.
    Raises: OutOfMemoryError: the fast path does not fit in memory.
    """
    skipped = None
    if plain and case.points > MOST_PLAIN_POINTS:
        plain, skipped = False, f"more than {MOST_PLAIN_POINTS} points, each compared with each"
    tick = _ticker(progress, total=(1 + plain) * memory + 1 + rounds)
    peaks: dict[bool, list[float]] = {path: [] for path in (False, True)[: 1 + plain]}
    if memory:
        peaks = _measure_memory(case, tuple(peaks), keep_freed, tick)
        skipped = "out of memory" if plain and True not in peaks else skipped
    passes, gemms = _measure_rounds(case, tuple(peaks), rounds, tick)
    summaries = [_summary(passes[path], case.batch, peaks[path]) for path in peaks]
    method = METHOD[torch.device(case.device).type] if memory else None
    return _latency(case, summaries, passes[False], gemms, plain_skipped=skipped, memory_method=method)


def _measure_memory(
    case: Case, paths: Sequence[bool], keep_freed: bool, tick: Callable[[], None]
) -> dict[bool, list[float]]:
    """Peaks in megabytes by path; without the plain path if that does not fit."""
    peaks = {}
    for path in paths:
        try:
            peaks[path] = peak_memories_mb(case, plain=path, keep_freed=keep_freed)
        except OutOfMemoryError:
            if not path:
                raise
        tick()
    return peaks


def _latency(
    case: Case, paths: list[PathLatency], passes: list[StageTimes], gemms: list[list[float]], **others: str | None
) -> Latency:
    stage_times = {name: [each[name] for each in passes] for name in STAGES if name in passes[0]}
    stages = {name: median(times) for name, times in stage_times.items()}
    gemm, torch_gemm = (2 * GEMM_SIZE**3 / median(times) / 1e6 for times in gemms)
    matrix_gflop = count_matrix_flops(case) / 1e9
    floor = 1e3 * matrix_gflop / max(gemm, torch_gemm) + stages["geometry"]
    return Latency(
        variant=case.variant.name,
        points=case.points,
        batch=case.batch,
        device=case.device,
        training=case.training,
        precision=case.precision.value,
        fast=paths[0],
        plain=paths[1] if len(paths) > 1 else None,
        stages_ms=stages,
        stage_times_ms=stage_times,
        gemm_gflops=gemm,
        gemm_times_ms=gemms[0],
        torch_gemm_gflops=torch_gemm,
        torch_gemm_times_ms=gemms[1],
        matrix_gflop=matrix_gflop,
        floor_ms=floor if case.precision is Precision.float32 else None,
        **others,
    )


def _measure_rounds(
    case: Case, paths: Sequence[bool], rounds: int, tick: Callable[[], None]
) -> tuple[dict[bool, list[StageTimes]], list[list[float]]]:
    """Time each pass of each path by stage, and each matrix product by ours and by torch; the first round warms up."""
    works = {path: Workload(case, plain=path) for path in paths}
    factors = torch.rand(2, GEMM_SIZE, GEMM_SIZE, device=case.device).unbind()
    passes: dict[bool, list[StageTimes]] = {path: [] for path in paths}
    products: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (lambda left, right: multiply(left, right.t()), torch.mm)
    gemms: list[list[float]] = [[] for _ in products]
    for _ in range(rounds + 1):
        for path, work in works.items():
            passes[path].append(_time_pass(work, case.device))
        for product, times in zip(products, gemms, strict=True):
            times.append(_time_product(product, *factors))
        tick()
    return {path: each[1:] for path, each in passes.items()}, [times[1:] for times in gemms]


def _ticker(progress: ProgressCallback | None, total: int) -> Callable[[], None]:
    done = itertools.count(1)
    return lambda: None if progress is None else progress(next(done), total)


def _summary(passes: Sequence[StageTimes], batch: int, peaks: list[float]) -> PathLatency:
    times = [sum(stages.values()) for stages in passes]
    p90, peak = float(np.quantile(times, 0.9)), median(peaks) if peaks else None
    return PathLatency(times, median(times), p90, 1e3 * batch / median(times), peak, peaks)


def _time_pass(work: Workload, device: str) -> StageTimes:
    """Milliseconds of one pass by stage, which sum to the whole."""
    cuda = torch.device(device).type == "cuda"
    with torch.cuda.device(device) if cuda else nullcontext():
        clock = _Clock(cuda)
        with watch_stages(clock.stage):
            work.run()
        return clock.stop()


class _Clock:
    """Milliseconds by stage, excluding the stages inside it. On CUDA the GPU itself measures."""

    def __init__(self, cuda: bool):
        self._cuda = cuda
        self._open = ["other"]
        if cuda:
            torch.cuda.synchronize()
        self._marks: list[tuple[str, Any]] = []
        self._mark()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._open.append(name)
        self._mark()
        yield
        self._open.pop()
        self._mark()

    def stop(self) -> StageTimes:
        self._mark()
        if self._cuda:
            torch.cuda.synchronize()
        found: StageTimes = {}
        for (name, start), (_, end) in itertools.pairwise(self._marks):
            milliseconds = start.elapsed_time(end) if self._cuda else 1e3 * (end - start)
            found[name] = found.get(name, 0.0) + milliseconds
        return found

    def _mark(self) -> None:
        """From now on, count time for the innermost open stage."""
        if self._cuda:
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((self._open[-1], now))


def _time_product(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    """Milliseconds of one product of two square float32 matrices."""
    repeats = 20 if left.is_cuda else 1  # one alone is too short to measure
    wait = (lambda: torch.cuda.synchronize(left.device)) if left.is_cuda else (lambda: None)
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        product(left, right)
    wait()
    return 1e3 * (time.perf_counter() - start) / repeats


def describe_machine() -> dict[str, Any]:
    """What measured times depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bpfn": bpfn_cli.__version__,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
