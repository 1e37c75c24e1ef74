# SPDX-License-Identifier: MIT
"""Measure a network and the two baselines on a dataset: same points, same metrics, the same figures twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.errors import NonFiniteError, printable
from bpfn_cli.metrics.scene_flow import MeanMetrics, SceneFlowMetrics, scene_flow_metrics
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.ops import gather, knn, matrix_precision, moving_points
from bpfn_cli.precision import Precision
from bpfn_cli.structures import FlowBatch

MODEL, TEACHER, ZERO_FLOW, NEAREST_NEIGHBOR = "model", "teacher", "zero_flow", "nearest_neighbor"
FULL = "_full"  # ends the names of rows over all points, where some are hidden in the second frame
# The same weights, the large matrix products in less than float32.
REDUCED = {Precision.bf16: "model_bf16", Precision.float16: "model_fp16"}

Predictor = Callable[[FlowBatch], Tensor]


def zero_flow(batch: FlowBatch) -> Tensor:
    """The flow of a world that stands still."""
    return torch.zeros_like(batch.pc1)


def nearest_neighbor_flow(batch: FlowBatch) -> Tensor:
    """From each point to the nearest one of the second cloud."""
    nearest = knn(batch.pc1, batch.pc2, 1)
    return gather(batch.pc2, nearest).squeeze(2) - batch.pc1


def network_flow(
    model: BiPointFlowNet, device: torch.device | str = "cpu", precision: Precision = Precision.float32
) -> Predictor:
    """The finest flow of a network, which is put in evaluation mode."""
    model.eval()

    def predict(batch: FlowBatch) -> Tensor:
        with torch.no_grad(), matrix_precision(precision):
            return model(batch.pc1.to(device), batch.pc2.to(device)).flows[0].cpu()

    return predict


BASELINES: dict[str, Predictor] = {ZERO_FLOW: zero_flow, NEAREST_NEIGHBOR: nearest_neighbor_flow}


@dataclass(frozen=True)
class SceneResult:
    """One scene's metrics by predictor."""

    name: str
    metrics: dict[str, SceneFlowMetrics]


@dataclass(frozen=True)
class MotionErrors:
    """Mean EPE3D in metres of the points that move by themselves, and of those that the camera's motion explains.

    Each is a mean over the scenes that have such points; None: no scene has.
    """

    dynamic: float | None
    static: float | None


@dataclass(frozen=True)
class Evaluation:
    """Means over scenes by predictor, and what they are means of; EPE3D of moving and still points apart."""

    means: dict[str, SceneFlowMetrics]
    scenes: tuple[SceneResult, ...]
    by_motion: dict[str, MotionErrors] = field(default_factory=dict)


def evaluate(
    predictors: dict[str, Predictor],
    dataset: SceneDataset,
    *,
    points: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    by_motion: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Metrics of every predictor on the scenes of a dataset (all, or those of `indices`).

    With `by_motion`, EPE3D of moving and of still points too, for which a rigid motion is fitted to each scene.
    Each scene is sampled to `points` points of each cloud by a generator keyed by `seed` and its name.
    Where some points are hidden in the second frame, metrics are over the others; those over all points stand beside
    them, under the name of the predictor and `_full`.
    Raises: DataError: a scene cannot be read. NonFiniteError: a prediction is NaN; names the scene.
    """
    chosen = range(len(dataset)) if indices is None else indices
    means = {name: MeanMetrics() for name in predictors}
    errors_by_motion: dict[str, list[list[float]]] = {name: [[], []] for name in predictors if by_motion}
    scenes = []
    batches = evaluation_batches(dataset, list(chosen), points=points, batch_size=1, seed=seed)
    for done, batch in enumerate(batches, start=1):
        result = {}
        moving = moving_points(batch.pc1, batch.flow, batch.valid) if by_motion else None
        for name, predict in predictors.items():
            try:
                flow = predict(batch)
                result[name] = _measure(flow, batch)
                if moving is not None:
                    for errors, wanted in zip(errors_by_motion[name], (moving, ~moving), strict=True):
                        errors.extend(_mean_error(flow, batch, wanted))
                if batch.valid is not None:
                    result[f"{name}{FULL}"] = _measure(flow, replace(batch, valid=None))
            except NonFiniteError as error:
                raise NonFiniteError(f"scene {printable(batch.names[0])}: {error}; nothing was averaged") from None
        for name, metrics in result.items():
            means.setdefault(name, MeanMetrics()).add(metrics)
        scenes.append(SceneResult(batch.names[0], result))
        if progress is not None:
            progress(done, len(chosen))
    return Evaluation(
        {name: mean.result() for name, mean in means.items()},
        tuple(scenes),
        {name: MotionErrors(*map(_mean, errors)) for name, errors in errors_by_motion.items()},
    )


def _measure(flow: Tensor, batch: FlowBatch) -> SceneFlowMetrics:
    mask = None if batch.valid is None else batch.valid[0]
    return scene_flow_metrics(flow[0], batch.flow[0], batch.pc1[0], batch.cameras[0], mask)


def _mean_error(flow: Tensor, batch: FlowBatch, wanted: Tensor) -> list[float]:
    """The mean end-point error of the wanted points of a scene; empty where there are none."""
    chosen = wanted if batch.valid is None else wanted & batch.valid
    errors = torch.linalg.vector_norm(flow[chosen].double() - batch.flow[chosen].double(), dim=-1)
    return [float(errors.mean())] if len(errors) else []


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def motion_rows(by_motion: dict[str, MotionErrors]) -> list[dict[str, str | float | None]]:
    """Rows for a result file: `name`, and EPE3D of moving and of still points."""
    return [
        {"name": name, "epe3d_dynamic": errors.dynamic, "epe3d_static": errors.static}
        for name, errors in by_motion.items()
    ]


def evaluation_rows(means: dict[str, SceneFlowMetrics]) -> list[dict[str, str | float | None]]:
    """Rows for a result file: `name` and the six metrics."""
    return [{"name": name, **metrics} for name, metrics in means.items()]


def relative_gain(epe3d: Mapping[str, float]) -> float:
    """By how much, as a fraction, the model's EPE3D is below that of the better baseline; NaN if that is 0."""
    best = min(epe3d[name] for name in BASELINES)
    return 1 - epe3d[MODEL] / best if best else float("nan")
