# SPDX-License-Identifier: MIT
"""All export formats of one network, compared: file size, accuracy, time and memory, on a CPU."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.choices import Calibration, Storage
from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.metrics.evaluation import Predictor, evaluate
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.models.exported import FORMATS
from bpfn_cli.models.exported.base import Clouds, Request, Runner, fast_copy
from bpfn_cli.profiling.memory import forget_peak, resident_bytes
from bpfn_cli.profiling.new_process import in_new_process
from bpfn_cli.profiling.workload import synthetic_batch
from bpfn_cli.progress import ProgressCallback


class Kind(NamedTuple):
    """A format, the type of the weights in the file, and how the ranges of inputs are found, if it computes in int8."""

    format: str
    stored: Storage
    calibration: Calibration | None = None

    @property
    def weights(self) -> str:
        """Of a row of the table."""
        return f"{self.stored} {self.calibration}" if self.calibration else self.stored


MEASURED = tuple(
    Kind(name, stored, calibration)
    for name, format in FORMATS.items()
    for stored in format.stores
    for calibration in (get_args(Calibration) if stored == "int8" and format.computes_int8 else (None,))
)


@dataclass(frozen=True)
class FormatCost:
    """What a file costs.

    Attributes:
        runtime: that ran it. epe3d_m: mean over the scenes; None: no scenes. times_ms: each pass over one pair.
        peak_memory_mb: of a separate process that loads the file and runs two passes, above what its libraries take.
    """

    format: str
    stored: str
    runtime: str
    device: str
    bytes: int
    epe3d_m: float | None
    median_ms: float
    p90_ms: float
    times_ms: list[float]
    peak_memory_mb: float


def measure_formats(
    model: BiPointFlowNet,
    *,
    points: int,
    rounds: int,
    dataset: SceneDataset | None = None,
    scenes: Sequence[Clouds] = (),
    progress: ProgressCallback | None = None,
) -> list[FormatCost]:
    """Export a network to each format that can hold it, and measure the files; passes of all of them take turns.

    Args: dataset: to measure EPE3D on. scenes: to calibrate int8 with.
    Raises: UsageError: an extra is missing. OutOfMemoryError.
    """
    model = fast_copy(model)
    kinds = [kind for kind in MEASURED if FORMATS[kind.format].can_hold(model)]
    batch, tick = synthetic_batch(points, 1), _Ticker(progress, 2 * len(kinds) + rounds + 1 + (dataset is not None))
    with tempfile.TemporaryDirectory() as folder:
        files: dict[Kind, Path] = {}
        for kind in kinds:
            format = FORMATS[kind.format]
            files[kind] = path = Path(folder) / f"{kind.weights}{format.suffix}"
            calibrated = {"scenes": scenes, "calibration": kind.calibration} if kind.calibration else {}
            path.write_bytes(format.write(model, Request(points, kind.stored, **calibrated)))  # type: ignore[arg-type]
            tick()
        memory = {}
        for kind, path in files.items():
            memory[kind] = _peak_mb(kind.format, path, points)
            tick()
        runners = {kind: FORMATS[kind.format].read(path.read_bytes(), path.name) for kind, path in files.items()}
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
    times: dict[Kind, list[float]] = {kind: [] for kind in runners}
    for _ in range(rounds + 1):  # the first warms up
        for kind, runner in runners.items():
            times[kind].append(_milliseconds(runner, batch.pc1, batch.pc2))
        tick()
    errors: dict[str, float] = {}
    if dataset is not None:
        predictors = {f"{kind.format} {kind.weights}": _predictor(runner) for kind, runner in runners.items()}
        found = evaluate(predictors, dataset, points=points)
        errors = {name: metrics.epe3d for name, metrics in found.means.items()}
        tick()
    return [
        FormatCost(
            format=kind.format,
            stored=kind.weights,
            runtime={"onnx": "onnxruntime", "torch": "torch"}.get(kind.format, "bpfn"),
            device="cpu",
            bytes=sizes[kind],
            epe3d_m=errors.get(f"{kind.format} {kind.weights}"),
            median_ms=median(times[kind][1:]),
            p90_ms=float(np.quantile(times[kind][1:], 0.9)),
            times_ms=times[kind][1:],
            peak_memory_mb=memory[kind],
        )
        for kind in runners
    ]


class _Ticker:
    def __init__(self, progress: ProgressCallback | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _predictor(runner: Runner) -> Predictor:
    def predict(batch: Any) -> Tensor:
        with torch.no_grad():
            return runner(batch.pc1, batch.pc2)

    return predict


def _milliseconds(runner: Runner, pc1: Tensor, pc2: Tensor) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        runner(pc1, pc2)
    return 1e3 * (time.perf_counter() - start)


def _peak_mb(name: str, path: Path, points: int) -> float:
    too_large = f"{name}, {points} points: out of memory; try fewer --points"
    return in_new_process(_peak_bytes, name, path, points, too_large=too_large) / 1e6


def _peak_bytes(name: str, path: Path, points: int) -> int:
    batch, content = synthetic_batch(points, 1), path.read_bytes()
    if name == "onnx":
        import onnxruntime  # noqa: F401
    forget_peak()
    start = resident_bytes(peak=False)
    runner = FORMATS[name].read(content, path.name)
    for _ in range(2):
        _milliseconds(runner, batch.pc1, batch.pc2)
    return resident_bytes(peak=True) - start
