# SPDX-License-Identifier: MIT
"""Evaluation of a network and the baselines on a dataset, on the same points and with reproducible figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.errors import DataError, NonFiniteError, ShapeError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.history import plain_steps
from bpfn_cli.metrics.classes import (
    BUCKETS,
    GROUPS,
    PARTITIONS,
    ClassSums,
    Truth,
    bucket_labels,
    bucket_normalized,
    sum_of,
)
from bpfn_cli.metrics.result import MODEL, NEAREST_NEIGHBOR, RIGID_ICP, TEACHER, ZERO_FLOW, EvaluationResult
from bpfn_cli.metrics.scene_flow import MeanMetrics, SceneFlowMetrics, scene_flow_metrics
from bpfn_cli.models import BiPointFlowNet, build_from, read_checkpoint
from bpfn_cli.models.predict import FlowPredictor
from bpfn_cli.ops import gather, knn, matrix_precision, rigid_icp
from bpfn_cli.precision import Precision
from bpfn_cli.progress import Progress, ProgressCallback
from bpfn_cli.shipped import history_of
from bpfn_cli.structures import FlowBatch

EVALUATION_SEED = 0  # for the choice of points; the same for all runs, so that they share a table
FULL = "_full"  # suffix of the rows over all points, on datasets where some are hidden in the second frame
# The same weights, with the large matrix products in less than float32.
REDUCED = {Precision.bf16: "model_bf16", Precision.float16: "model_fp16"}

Predictor = Callable[[FlowBatch], Tensor]


def zero_flow(batch: FlowBatch) -> Tensor:
    """The flow of a static world."""
    return torch.zeros_like(batch.pc1)


def nearest_neighbor_flow(batch: FlowBatch) -> Tensor:
    """The flow from each point to the nearest point of the second cloud."""
    return gather(batch.pc2, knn(batch.pc1, batch.pc2, 1)).squeeze(2) - batch.pc1


def rigid_icp_flow(batch: FlowBatch) -> Tensor:
    """The flow of a world that moves as a whole, as seen from a moving camera."""
    rotation, translation = rigid_icp(batch.pc1, batch.pc2)
    return (batch.pc1.double() @ rotation.mT + translation - batch.pc1).to(batch.pc1.dtype)


def network_flow(
    model: BiPointFlowNet, device: torch.device | str = "cpu", precision: Precision = Precision.float32
) -> Predictor:
    """The finest flow of a network, which is switched to evaluation mode."""
    model.eval()

    def predict(batch: FlowBatch) -> Tensor:
        with torch.no_grad(), matrix_precision(precision):
            return model(batch.pc1.to(device), batch.pc2.to(device)).flows[0].cpu()

    return predict


def network_flow_in_parts(model: BiPointFlowNet, device: torch.device | str, parts: int, seed: int) -> Predictor:
    """The flow of a network that sees `parts` points of each cloud at a time, as `bpfn predict` computes it.

    Raises: ShapeError: too few for the network.
    """
    if parts < model.variant.least_points:
        raise ShapeError(f"--parts {parts}: the network needs at least {model.variant.least_points}")
    predictor = FlowPredictor(model.eval(), points=parts, seed=seed, device=device)

    def predict(batch: FlowBatch) -> Tensor:
        pairs = zip(batch.pc1.numpy(), batch.pc2.numpy(), strict=True)
        return torch.stack([torch.from_numpy(predictor(pc1, pc2)) for pc1, pc2 in pairs])

    return predict


BASELINES: dict[str, Predictor] = {
    ZERO_FLOW: zero_flow,
    NEAREST_NEIGHBOR: nearest_neighbor_flow,
    RIGID_ICP: rigid_icp_flow,
}


SPEED = "speed"  # beside the errors of predictors in the sums of `BUCKET`
BUCKET = "bucket"  # beside the partitions, of speeds as well


@dataclass(frozen=True)
class SceneResult:
    """The metrics of one scene by predictor.

    by_class: sums by partition, if asked for. given: whether the motion of the sensor is known, not fitted.
    """

    name: str
    metrics: dict[str, SceneFlowMetrics]
    by_class: dict[str, ClassSums]
    given: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Means over scenes by predictor, and the scenes."""

    means: dict[str, SceneFlowMetrics]
    scenes: tuple[SceneResult, ...]

    @property
    def by_class(self) -> dict[str, ClassSums]:
        """Sums over scenes of the partitions that all of them have."""
        names = [name for name in self.scenes[0].by_class if all(name in scene.by_class for scene in self.scenes)]
        return {name: sum_of(scene.by_class[name] for scene in self.scenes) for name in names}


def evaluate_checkpoint(
    checkpoint: Path,
    dataset: SceneDataset,
    *,
    points: int,
    seed: int,
    device: torch.device,
    progress: Progress,
    teacher: BiPointFlowNet | None = None,
    precision: Precision = Precision.float32,
    parts: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> EvaluationResult:
    """Evaluate a checkpoint, the baselines and, if given, its teacher.

    Args: precision: less than float32 adds a row for the same weights. parts: points of each cloud that the network
        sees at a time; None: all. check: is called after each scene.
    Raises: CheckpointError, DataError, NonFiniteError; ShapeError: `parts` is too small.
    """
    read = read_checkpoint(checkpoint)
    if not len(dataset):
        raise DataError(f"{printable(dataset.root)}: the {dataset.split} split is empty; there is nothing to evaluate")
    network = build_from(read).to(device)
    predictors = _predictors(network, teacher, device, precision)
    if parts is not None:
        predictors[MODEL] = network_flow_in_parts(network, device, parts, seed)
    with progress.bar(f"evaluating on {dataset.kind} {dataset.split}") as bar:

        def update(done: int, total: int) -> None:
            bar(done, total)
            check()

        evaluation = evaluate(predictors, dataset, points=points, seed=seed, by_class=True, progress=update)
    which = "best" if any(key.startswith("validation_") for key in read.metadata) else "last"
    sha256 = sha256_of(checkpoint)
    weights = {
        "which": which,
        "history": plain_steps(history_of(read.metadata, sha256)),
        "path": printable(checkpoint),
        "variant": read.variant.name,
    }
    data = {"kind": dataset.kind, "split": dataset.split, "path": printable(dataset.root), "scenes": len(dataset)}
    if (region := dataset.format.region) is not None:
        data["region"] = region
    result = {
        "format": 1,
        "dataset": {**data, "sha256": dataset.identity()},
        "points": points,
        "seed": seed,
        "parts": parts,
        "checkpoint": {**weights, "sha256": sha256},
        **_rows(evaluation),
    }
    return EvaluationResult.model_validate(result, strict=False)


def evaluate(
    predictors: Mapping[str, Predictor],
    dataset: SceneDataset,
    *,
    points: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    by_class: bool = False,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Metrics of every predictor on the scenes of a dataset: all, or those of `indices`.

    Each scene is sampled to `points` points of each cloud, by a generator keyed by `seed` and the name of the scene.
    Where the flow of some points is unknown, or they are hidden in the second frame, metrics are over the others. Where
    hidden points have a known flow, those over all points are added under the name of the predictor and `_full`.

    Args: by_class: also sums by class of points.
    Raises: DataError: a scene cannot be read. NonFiniteError: a prediction is NaN or infinite; names the scene.
    """
    chosen = list(range(len(dataset)) if indices is None else indices)
    scenes: list[SceneResult] = []
    for batch in evaluation_batches(dataset, chosen, points=points, batch_size=1, seed=seed):
        scenes.append(_evaluate_scene(predictors, batch, by_class, dataset.format.has_hidden_flow))
        if progress is not None:
            progress(len(scenes), len(chosen))
    return _average(predictors, scenes)


def _predictors(
    network: BiPointFlowNet, teacher: BiPointFlowNet | None, device: torch.device, precision: Precision
) -> dict[str, Predictor]:
    predictors = {MODEL: network_flow(network, device), **BASELINES}
    if precision in REDUCED:
        predictors[REDUCED[precision]] = network_flow(network, device, precision)
    if teacher is not None:
        predictors[TEACHER] = network_flow(teacher.to(device), device)
    return predictors


def _evaluate_scene(
    predictors: Mapping[str, Predictor], batch: FlowBatch, by_class: bool, has_hidden_flow: bool
) -> SceneResult:
    masks = {"": batch.valid, FULL: None} if batch.valid is not None and has_hidden_flow else {"": batch.valid}
    metrics, flows = {}, {}
    for name, predict in predictors.items():
        try:
            flow = flows[name] = predict(batch)
            for suffix, mask in masks.items():
                metrics[f"{name}{suffix}"] = scene_flow_metrics(flow, batch.truth, batch.pc1, batch.cameras[0], mask)
        except NonFiniteError as error:
            raise NonFiniteError(f"scene {printable(batch.names[0])}: {error}; nothing was averaged") from None
    if not by_class:
        return SceneResult(batch.names[0], metrics, {})
    truth, sums = _by_class(batch, flows)
    return SceneResult(batch.names[0], metrics, sums, truth.given)


def _by_class(batch: FlowBatch, flows: Mapping[str, Tensor]) -> tuple[Truth, dict[str, ClassSums]]:
    """The sums of a scene by partition, over the points with known flow."""
    pc1, true_flow, valid, categories, ego_motion = (
        None if tensor is None else tensor[0].numpy()
        for tensor in (batch.pc1, batch.truth, batch.valid, batch.categories, batch.ego_motion)
    )
    assert pc1 is not None and true_flow is not None
    truth = Truth.of(pc1, true_flow, valid, ego_motion=ego_motion, categories=categories)
    errors = {
        name: np.linalg.norm(flow[0].numpy().astype(float) - true_flow.astype(float), axis=1)
        for name, flow in flows.items()
    }
    sums = {}
    for one in PARTITIONS.values():
        if (labels := one.labels(truth)) is not None:
            sums[one.name] = ClassSums.of(_counted(labels, valid), len(one.classes), errors)
    if (labels := bucket_labels(truth)) is not None:
        sums[BUCKET] = ClassSums.of(_counted(labels, valid), len(GROUPS) * BUCKETS, {**errors, SPEED: truth.speed})
    return truth, sums


def _counted(labels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    return labels if valid is None else np.where(valid, labels, -1)


def _average(predictors: Iterable[str], scenes: Sequence[SceneResult]) -> Evaluation:
    means = {name: MeanMetrics() for name in predictors}
    for scene in scenes:
        for name, metrics in scene.metrics.items():
            means.setdefault(name, MeanMetrics()).add(metrics)
    averages = {name: mean.result() for name, mean in means.items()}
    return Evaluation(averages, tuple(scenes))


def _rows(evaluation: Evaluation) -> dict[str, Any]:
    """The parts of the result file that are measured."""
    rows = [{"name": name, **metrics} for name, metrics in evaluation.means.items()]
    sums = evaluation.by_class
    tables = [
        {
            "partition": name,
            "classes": PARTITIONS[name].classes,
            "points": one.points,
            "epe3d": {predictor: one.epe3d(predictor) for predictor in one.errors_m},
        }
        for name, one in sums.items()
        if name in PARTITIONS
    ]
    given = {scene.given for scene in evaluation.scenes}
    how = {"ego_motion": "both" if len(given) > 1 else "given" if given == {True} else "fitted"}
    normalized = {"bucket_normalized": _bucket_normalized(sums[BUCKET])} if BUCKET in sums else {}
    return {"rows": rows, "by_class": tables, **how, **normalized, "scenes": [*map(_scene_row, evaluation.scenes)]}


def _bucket_normalized(sums: ClassSums) -> dict[str, Any]:
    counts = np.array(sums.points).reshape(-1, BUCKETS)
    names = [name for name in sums.errors_m if name != SPEED]
    found = {name: bucket_normalized(sums.errors_m[name], sums.errors_m[SPEED], sums.points) for name in names}
    return {
        "classes": list(GROUPS),
        "static_points": counts[:, 0].tolist(),
        "dynamic_points": counts[:, 1:].sum(axis=1).tolist(),
        "static": {name: one.static for name, one in found.items()},
        "dynamic": {name: one.dynamic for name, one in found.items()},
    }


def _scene_row(scene: SceneResult) -> dict[str, Any]:
    sums = {name: one for name, one in scene.by_class.items() if name in PARTITIONS}
    return {
        "name": printable(scene.name),
        **{name: metrics.epe3d for name, metrics in scene.metrics.items()},
        "class_points": {name: one.points for name, one in sums.items()},
        # Rounded to micrometres: there are many.
        "class_errors_m": {name: [round(error, 6) for error in one.errors_m[MODEL]] for name, one in sums.items()},
    }
