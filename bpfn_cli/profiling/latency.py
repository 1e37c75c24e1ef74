# SPDX-License-Identifier: MIT
"""How long a pass takes, as a whole and by stage, against the plain path and against the machine's matrix products.

Rounds are interleaved (fast path, plain path, matrix products, and again), so that what else the machine does
falls on all of them alike.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bpfn_cli
from bpfn_cli.errors import OutOfMemoryError
from bpfn_cli.models.stages import watch_stages
from bpfn_cli.ops import plain_path
from bpfn_cli.ops.products import multiply
from bpfn_cli.precision import Precision
from bpfn_cli.profiling.flops import count_matrix_flops
from bpfn_cli.profiling.memory import METHOD, peak_memories_mb
from bpfn_cli.profiling.workload import Case, Workload

MOST_PLAIN_POINTS = 2**15  # the plain path compares each point with each: beyond this, minutes a pass
GEMM_SIZE = 2048
FAST, PLAIN = False, True  # as `plain_path` takes them
STAGES = ("geometry", "encoder", "level3", "level2", "level1", "level0", "backward", "other")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PathLatency:
    """One path.

    Attributes:
        times_ms: each pass, in order. peak_memories_mb: the passes that memory was measured in; empty if not asked.
    """

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
        plain: None where not measured; `plain_skipped` then says why, if it was asked for.
        stages_ms: medians of the fast path, which sum to about `fast.median_ms`. `geometry`: sampling, neighbors and
            warping, wherever they are done; `level3` .. `level0`: the rest of each level; `other`: checks and loss.
        stage_times_ms: each pass, in order.
        gemm_gflops: rate of float32 matrix products of GEMM_SIZE as the fast path takes them, median of
            `gemm_times_ms`, between the rounds; `torch_gemm_gflops`: of `torch.mm`, likewise.
        matrix_gflop: matrix products of one pass on the fast path.
        floor_ms: these at the higher of the two rates, and the geometry as it was measured. None: not in float32.
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
    progress: Progress | None = None,
) -> Latency:
    """Measure a case.

    Args:
        plain: the plain path too, up to MOST_PLAIN_POINTS.
        memory: peak memory too, in processes of their own on a CPU.
        keep_freed: whether this process has called `keep_freed_memory`, so that those processes do too.
        progress: told after each step: the memory of each path, warming up, each round.
    Raises: OutOfMemoryError: the fast path does not fit in memory.
    """
    paths, skipped = _paths(case, plain)
    tick = _ticker(progress, total=len(paths) * memory + 1 + rounds)
    peaks: dict[bool, list[float]] = {path: [] for path in paths}
    for path in paths if memory else ():
        try:
            peaks[path] = peak_memories_mb(case, plain=path, keep_freed=keep_freed)
        except OutOfMemoryError:
            if path == FAST:
                raise
            del peaks[path]
            skipped = "out of memory"
        tick()
    passes, gemm_times = _measure_rounds(case, tuple(peaks), rounds, tick)
    stage_times = {name: [each[name] for each in passes[FAST]] for name in STAGES if name in passes[FAST][0]}
    stages = {name: statistics.median(times) for name, times in stage_times.items()}
    gemm, torch_gemm = (2 * GEMM_SIZE**3 / statistics.median(times) / 1e6 for times in gemm_times)
    matrix_gflop = count_matrix_flops(case) / 1e9
    is_single = case.precision is Precision.float32
    return Latency(
        variant=case.variant.name,
        points=case.points,
        batch=case.batch,
        device=case.device,
        training=case.training,
        precision=case.precision.value,
        fast=_summary(passes[FAST], case.batch, peaks[FAST]),
        plain=_summary(passes[PLAIN], case.batch, peaks[PLAIN]) if PLAIN in passes else None,
        plain_skipped=skipped,
        stages_ms=stages,
        stage_times_ms=stage_times,
        gemm_gflops=gemm,
        gemm_times_ms=gemm_times[0],
        torch_gemm_gflops=torch_gemm,
        torch_gemm_times_ms=gemm_times[1],
        matrix_gflop=matrix_gflop,
        floor_ms=1e3 * matrix_gflop / max(gemm, torch_gemm) + stages["geometry"] if is_single else None,
        memory_method=METHOD[torch.device(case.device).type] if memory else None,
    )


def _paths(case: Case, plain: bool) -> tuple[tuple[bool, ...], str | None]:
    """The paths to measure, and why the plain one is not among them though asked for."""
    if not plain:
        return (FAST,), None
    if case.points > MOST_PLAIN_POINTS:
        return (FAST,), f"more than {MOST_PLAIN_POINTS} points, each compared with each"
    return (FAST, PLAIN), None


def _measure_rounds(
    case: Case, paths: Sequence[bool], rounds: int, tick: Callable[[], None]
) -> tuple[dict[bool, list[dict[str, float]]], list[list[float]]]:
    """Milliseconds by stage of each pass of each path, and of each matrix product by ours and torch's; after one of
    each."""
    work, gemms = Workload(case), [_Gemm(case.device, product) for product in (multiply, torch.mm)]
    passes: dict[bool, list[dict[str, float]]] = {path: [] for path in paths}
    gemm_times: list[list[float]] = [[] for _ in gemms]
    for _ in range(rounds + 1):
        for path in paths:
            passes[path].append(_timed(work, path, case.device))
        for gemm, times in zip(gemms, gemm_times, strict=True):
            times.append(gemm.milliseconds())
        tick()
    return {path: each[1:] for path, each in passes.items()}, [times[1:] for times in gemm_times]


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    done = itertools.count(1)

    def tick() -> None:
        if progress is not None:
            progress(next(done), total)

    return tick


def _summary(passes: Sequence[dict[str, float]], batch: int, peaks: list[float]) -> PathLatency:
    times = [sum(stages.values()) for stages in passes]
    median = statistics.median(times)
    return PathLatency(
        times_ms=times,
        median_ms=median,
        p90_ms=float(np.quantile(times, 0.9)),
        pairs_per_s=1e3 * batch / median,
        peak_memory_mb=statistics.median(peaks) if peaks else None,
        peak_memories_mb=peaks,
    )


def _timed(work: Workload, plain: bool, device: str) -> dict[str, float]:
    """Milliseconds of one pass by stage; their sum is the whole."""
    cuda = torch.device(device).type == "cuda"
    with plain_path(plain), torch.cuda.device(device) if cuda else nullcontext():
        clock = _Clock(cuda)
        with watch_stages(clock.stage):
            work.run()
        return clock.stop()


class _Clock:
    """Milliseconds by stage, each without the stages inside it. On CUDA the GPU itself keeps the time."""

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

    def stop(self) -> dict[str, float]:
        self._mark()
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            milliseconds = start.elapsed_time(end) if self._cuda else 1e3 * (end - start)
            found[name] = found.get(name, 0.0) + milliseconds
        return found

    def _mark(self) -> None:
        """From now on the time belongs to the innermost open stage."""
        if self._cuda:
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((self._open[-1], now))


class _Gemm:
    """The yardstick: a product of two square float32 matrices."""

    def __init__(self, device: str, product: Callable[[Tensor, Tensor], Tensor]):
        self._left, self._right = torch.rand(2, GEMM_SIZE, GEMM_SIZE, device=device).unbind()
        self._product = product
        self._cuda = torch.device(device).type == "cuda"
        self._repeats = 20 if self._cuda else 1  # where one takes too short a time to be measured

    def milliseconds(self) -> float:
        """Of one product."""
        self._wait()
        start = time.perf_counter()
        for _ in range(self._repeats):
            self._product(self._left, self._right)
        self._wait()
        return 1e3 * (time.perf_counter() - start) / self._repeats

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._left.device)


def describe_machine() -> dict[str, Any]:
    """What measured times depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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
