# SPDX-License-Identifier: MIT
"""Prediction of one pair: points are prepared, the network runs, and its flow gets one row for each row of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bpfn_cli.choices import Invalid
from bpfn_cli.data.clouds.cloud import Cloud
from bpfn_cli.data.clouds.pairs import Clouds
from bpfn_cli.data.files.points import MAX_COORDINATE_M
from bpfn_cli.data.ground import ground_rows
from bpfn_cli.errors import DataError
from bpfn_cli.frames import axes_of
from bpfn_cli.metrics.classes import PARTITIONS, ClassSums
from bpfn_cli.metrics.result import MODEL, ZERO_FLOW
from bpfn_cli.metrics.scene_flow import SceneFlowMetrics, scene_flow_metrics
from bpfn_cli.models.predict import Estimate, FlowPredictor
from bpfn_cli.prediction import checks
from bpfn_cli.prediction.motion import estimate_pose, sensor_flow, with_origin
from bpfn_cli.progress import ProgressCallback

GROUND = "on the ground"


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done beside running the network.

    Attributes: center: subtract an origin near the first cloud from both. remove_ground: leave it out. invalid: the
        flow of rows that are left out. estimate_pose: take out the sensor's motion as estimated from the flow.
    """

    center: bool = False
    remove_ground: bool = False
    invalid: Invalid = "zero"
    estimate_pose: bool = False


@dataclass(frozen=True)
class FlowFigures:
    """A predicted flow in figures.

    Attributes:
        points: its rows. mean_flow_m, median_flow_m: over the rows with a prediction.
        metrics: against the true flow, if that is known; over `measured` rows.
        true_flow_m: the mean length of the true flow there, which is the EPE3D of zero flow.
        by_motion: errors of the flow and of zero flow over dynamic and static rows, if the file tells them apart.
        holds: how the first and the second cloud were read, such as "5 columns of float32".
        left_out: of both clouds: why rows are left out -> how many.
        nearest_m: median distance from the first cloud to the second, before and after the flow.
        parts, spread_m: as in `Estimate`.
        origin: what was subtracted from both clouds, if anything.
        pose: (4, 4) the motion of the sensor, if known. residual_m: mean length of the flow without it.
        notes: what a user should know, one sentence each.
    """

    points: int
    mean_flow_m: float
    median_flow_m: float
    metrics: SceneFlowMetrics | None = None
    measured: int = 0
    true_flow_m: float | None = None
    by_motion: ClassSums | None = None
    holds: tuple[str, str] = ("", "")
    left_out: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    nearest_m: tuple[float, float] = (0.0, 0.0)
    parts: int = 1
    spread_m: float | None = None
    origin: list[float] | None = None
    pose: list[list[float]] | None = None
    residual_m: float | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        holds, left_out = (dict(zip(("pc1", "pc2"), both, strict=True)) for both in (self.holds, self.left_out))
        nearest = dict(zip(("before", "after"), self.nearest_m, strict=True))
        metrics = None if self.metrics is None else dict(self.metrics)
        known = {"metrics": metrics, "by_motion": motion_errors(self.by_motion), "nearest_m": nearest}
        return {**vars(self), **known, "holds": holds, "left_out": left_out}


@dataclass(frozen=True)
class Prediction:
    """The flow of a pair, (N, 3) float32 metres in the axes of the file; residual: without the sensor's motion."""

    flow: np.ndarray
    figures: FlowFigures
    residual: np.ndarray | None = None
    pose: np.ndarray | None = None


def predict_pair(
    predictor: FlowPredictor,
    clouds: Clouds,
    treatment: Treatment,
    *,
    pose: np.ndarray | None = None,
    keep: bool = False,
    progress: ProgressCallback | None = None,
) -> Prediction:
    """Predict the flow of every row of the first cloud that is a point.

    Args: pose: (4, 4) of the sensor, in the axes of the file. keep: as of `FlowPredictor.estimate`.
    Raises: DataError: points beyond 10 km. ShapeError: too few points. NonFiniteError: the flow is not finite.
    """
    origin = _origin_of(clouds.first) if treatment.center else None
    axes = axes_of(predictor.frame)
    first, second = (_prepare(cloud, origin, axes, treatment.remove_ground) for cloud in clouds[:2])
    estimate = predictor.estimate(first.points, second.points, keep=keep and origin is None, progress=progress)
    shift = np.zeros(3) if origin is None else origin
    if treatment.estimate_pose:
        pose = with_origin(estimate_pose(first.points, estimate.flow), -shift)
    centered = None if pose is None else with_origin(pose, shift)
    static = None if centered is None else sensor_flow(first.points, centered)
    moved = [first.points, first.points + estimate.flow]
    if centered is not None and not treatment.estimate_pose:
        moved += [first.points + sensor_flow(first.points, one) for one in (centered, np.linalg.inv(centered))]
    before_m, after_m, *pose_m = checks.nearest_m(second.points, *moved)
    notes = [
        *_notes_of(clouds),
        *first.notes,
        *second.notes,
        *checks.notes_on_cloud(first.points, clouds.first.name),
        *checks.notes_on_cloud(second.points, clouds.second.name),
        *checks.notes_on_frame(first.points, predictor.frame, clouds.first.name),
        *checks.notes_on_viewpoints(clouds.first.viewpoint, clouds.second.viewpoint),
        *checks.notes_on_fit(before_m, after_m),
        *_notes_on_parts(estimate, len(first.points), len(second.points)),
        *(checks.notes_on_pose(*pose_m) if pose_m else ()),
    ]
    residual = None if static is None else (estimate.flow - static).astype(np.float32)
    full = _all_rows(estimate.flow, first.rows, treatment.invalid)
    measured = np.zeros_like(first.rows) if clouds.known is None else first.rows & clouds.known
    true_flow_m = None
    if clouds.truth is not None and measured.any():
        true_flow_m = float(np.linalg.norm(clouds.truth[measured], axis=1).mean())
        notes += checks.notes_on_truth(clouds.truth[measured])
    lengths = np.linalg.norm(estimate.flow, axis=1)
    figures = FlowFigures(
        points=len(clouds.first.points),
        mean_flow_m=float(lengths.mean()),
        median_flow_m=float(np.median(lengths)),
        metrics=_measure(clouds, measured, full),
        measured=int(measured.sum()),
        true_flow_m=true_flow_m,
        by_motion=_by_motion(clouds, measured, full),
        holds=(clouds.first.holds, clouds.second.holds),
        left_out=(first.left_out, second.left_out),
        nearest_m=(before_m, after_m),
        parts=estimate.parts,
        spread_m=estimate.spread_m,
        origin=None if origin is None else origin.tolist(),
        pose=None if pose is None else pose.tolist(),
        residual_m=None if residual is None else float(np.linalg.norm(residual, axis=1).mean()),
        notes=tuple(notes),
    )
    return Prediction(full, figures, _all_rows(residual, first.rows, treatment.invalid), pose)


@dataclass(frozen=True)
class _Prepared:
    """The points that the network sees: (M, 3) float32, in the axes of the file. rows: (N,) bool, which they are."""

    points: np.ndarray
    rows: np.ndarray
    left_out: dict[str, int]
    notes: Sequence[str]


def _origin_of(cloud: Cloud) -> np.ndarray:
    """(3,) whole metres, in the middle of a cloud."""
    return np.rint(np.median(cloud.points[cloud.valid].astype(np.float64), axis=0)) + 0.0


def _prepare(cloud: Cloud, origin: np.ndarray | None, axes: np.ndarray, remove_ground: bool) -> _Prepared:
    rows, left_out, notes = cloud.valid, dict(cloud.left_out), []
    points = cloud.points[rows]
    if origin is not None:
        largest = np.abs(points).max()
        if points.dtype == np.float32 and largest > MAX_COORDINATE_M:
            step = float(np.spacing(np.float32(largest)))
            notes.append(f"{cloud.name}: coordinates in float32 have steps of {step:.2g} m there; save them as float64")
        points = points - origin
    if not np.abs(points).max() <= MAX_COORDINATE_M:
        _refuse_far(points, rows, cloud.name, origin is not None)
    points = np.ascontiguousarray(points, np.float32)
    if remove_ground:
        ground = ground_rows(points @ axes.T)
        if ground is None or not ground.any():
            notes.append(f"{cloud.name}: no ground plane found; nothing removed")
        else:
            rows, left_out[GROUND] = rows.copy(), int(ground.sum())
            rows[rows] = ~ground
            points = points[~ground]
    return _Prepared(points, rows, left_out, notes)


def _refuse_far(points: np.ndarray, rows: np.ndarray, name: str, centered: bool) -> None:
    far = (np.abs(points) > MAX_COORDINATE_M).any(axis=1)
    first = int(np.flatnonzero(rows)[np.argmax(far)])
    fault = f"{far.sum():,} of {len(rows):,} rows are beyond {MAX_COORDINATE_M:.0f} m, the first is row {first}"
    advice = "are the coordinates in metres?" if centered else "use --center for map coordinates, or check the unit"
    raise DataError(f"{name}: {fault}; {advice}")


def _notes_of(clouds: Clouds) -> list[str]:
    return [f"{cloud.name}: {note}" for cloud in clouds[:2] for note in cloud.notes]


def _notes_on_parts(estimate: Estimate, count: int, count2: int) -> list[str]:
    """That the network saw random points. Args: count, count2: points of both clouds."""
    if estimate.spread_m is not None:
        return []
    if estimate.parts > 1:
        split = f"the cloud is split into {estimate.parts} parts at random"
    elif count < count2:
        split = f"{count:,} of {count2:,} points of the second cloud are used, drawn at random"
    else:
        return []
    return [f"{split}, so the flow varies with --seed; --average 4 reduces this and reports the spread"]


def _measure(clouds: Clouds, measured: np.ndarray, flow: np.ndarray) -> SceneFlowMetrics | None:
    """Metrics over the rows `measured`; None: no true flow, or no such row."""
    if clouds.truth is None or not measured.any():
        return None
    return scene_flow_metrics(flow, clouds.truth, clouds.first.points, mask=measured)


def _by_motion(clouds: Clouds, measured: np.ndarray, flow: np.ndarray) -> ClassSums | None:
    if clouds.truth is None or clouds.dynamic is None or not measured.any():
        return None
    truth = clouds.truth[measured].astype(float)
    errors = {MODEL: np.linalg.norm(flow[measured] - truth, axis=1), ZERO_FLOW: np.linalg.norm(truth, axis=1)}
    return ClassSums.of(np.where(clouds.dynamic[measured], 0, 1), 2, errors)


def motion_errors(sums: ClassSums | None) -> dict[str, dict[str, float | None]] | None:
    """For dynamic and static rows: their number, and EPE3D of the flow and of zero flow in metres."""
    if sums is None:
        return None
    columns = zip(PARTITIONS["motion"].classes, sums.points, sums.epe3d(MODEL), sums.epe3d(ZERO_FLOW), strict=True)
    return {name: {"points": points, "epe3d": error, "zero_flow": zero} for name, points, error, zero in columns}


def _all_rows(flow: np.ndarray | None, rows: np.ndarray, invalid: Invalid) -> Any:
    """(N, 3) float32 with the flow in its rows, and zero or NaN elsewhere; None of None."""
    if flow is None:
        return None
    full = np.full((len(rows), 3), np.nan if invalid == "nan" else 0, np.float32)
    full[rows] = flow
    return full
