# SPDX-License-Identifier: MIT
"""The six scene-flow metrics: means over the points of a scene, then over scenes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.structures import Camera


@dataclass(frozen=True)
class SceneFlowMetrics(Mapping[str, "float | None"]):
    """The six metrics, as attributes and as a mapping: means and shares of the points. Those in 2D need a camera.

    Attributes: epe3d, epe2d: end-point error, metres and pixels. acc3d_strict, acc3d_relax (Acc3DS, Acc3DR): error
        below 0.05 m or 5 %, below 0.1 m or 10 %. outliers3d: above 0.3 m or 10 %. acc2d: below 3 px or 5 %.
    """

    epe3d: float
    acc3d_strict: float
    acc3d_relax: float
    outliers3d: float
    epe2d: float | None = None
    acc2d: float | None = None

    def __getitem__(self, name: str) -> float | None:
        return vars(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))


METRIC_NAMES: tuple[str, ...] = tuple(f.name for f in fields(SceneFlowMetrics))


def scene_flow_metrics(
    pred: ArrayLike, gt: ArrayLike, pc1: ArrayLike, camera: Camera | None = None, mask: ArrayLike | None = None
) -> SceneFlowMetrics:
    """The metrics of one scene, or their mean over the scenes of a batch.

    Args:
        pred, gt, pc1: (N, 3) or (B, N, 3) metres, x left, y up, z forward; flow at `pc1`; arrays or tensors.
        camera: for the 2D metrics. mask: (N,) or (B, N) bool, True at the points to measure; None: all.
    Raises: ShapeError: shapes differ, or a scene has no point to measure.
        NonFiniteError: `pred` or `gt` is NaN or infinite at a point to measure.
    Source: HPLFlowNet, CVPR 2019; FlowNet3D, CVPR 2019.
    """
    pred, gt, pc1 = _array(pred), _array(gt), _array(pc1)
    if not pred.shape == gt.shape == pc1.shape or pred.ndim not in (2, 3) or pred.shape[-1] != 3:
        shapes = f"{pred.shape}, {gt.shape}, {pc1.shape}"
        raise ShapeError(f"metrics need three arrays of one shape (N, 3) or (B, N, 3), got {shapes}")
    counts = np.ones(pred.shape[:-1], bool) if mask is None else _array(mask).astype(bool)
    if counts.shape != pred.shape[:-1]:
        raise ShapeError(f"mask of shape {counts.shape} for points of shape {pred.shape}")
    if pred.ndim == 2:
        return _one_scene(pred[counts], gt[counts], pc1[counts], camera)
    mean = MeanMetrics()
    for scene, counted in enumerate(counts):
        mean.add(_one_scene(pred[scene][counted], gt[scene][counted], pc1[scene][counted], camera))
    return mean.result()


def project(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Project points (N, 3) in metres to pixels (N, 2)."""
    depth = points[:, 2] + camera.tz
    u = (points[:, 0] * camera.focal + camera.cx * points[:, 2] + camera.tx) / depth
    v = (points[:, 1] * camera.focal + camera.cy * points[:, 2] + camera.ty) / depth
    return np.stack([u, v], axis=1)


class MeanMetrics:
    """Mean of metrics over scenes: sums, divided once."""

    def __init__(self) -> None:
        self.sums = np.zeros(len(METRIC_NAMES))
        self.counts = np.zeros(len(METRIC_NAMES), int)

    def add(self, scene: SceneFlowMetrics) -> None:
        self.sums += [value or 0.0 for value in scene.values()]
        self.counts += [value is not None for value in scene.values()]

    def result(self) -> SceneFlowMetrics:
        """The mean. Raises: ShapeError: no scene was added, or only some scenes have a camera."""
        scenes = self.counts[0]
        if not scenes:
            raise ShapeError("no scene to average metrics over")
        if not {0, scenes}.issuperset(self.counts):
            raise ShapeError("some scenes have a camera and others do not; evaluate them separately")
        means = (float(total / scenes) if count else None for total, count in zip(self.sums, self.counts, strict=True))
        return SceneFlowMetrics(*means)  # type: ignore[arg-type]


def _one_scene(pred: np.ndarray, gt: np.ndarray, pc1: np.ndarray, camera: Camera | None) -> SceneFlowMetrics:
    if not len(pred):
        raise ShapeError("a scene has no point to measure")
    for name, values in (("prediction", pred), ("true flow", gt)):
        if bad := (~np.isfinite(values)).any(axis=1).sum():
            raise NonFiniteError(f"the {name} is NaN or infinite at {bad} of {len(values)} points")
    error = np.linalg.norm(pred - gt, axis=1)
    relative = error / (np.linalg.norm(gt, axis=1) + 1e-4)
    in_3d = (
        error.mean(),
        ((error < 0.05) | (relative < 0.05)).mean(),
        ((error < 0.1) | (relative < 0.1)).mean(),
        ((error > 0.3) | (relative > 0.1)).mean(),
    )
    return SceneFlowMetrics(*map(float, in_3d), *(_in_2d(pred, gt, pc1, camera) if camera else (None, None)))


def _in_2d(pred: np.ndarray, gt: np.ndarray, pc1: np.ndarray, camera: Camera) -> tuple[float, float]:
    start, true_end, end = (project(points, camera) for points in (pc1, pc1 + gt, pc1 + pred))
    error = np.linalg.norm(end - true_end, axis=1)
    relative = error / (np.linalg.norm(true_end - start, axis=1) + 1e-5)
    return float(error.mean()), float(((error < 3) | (relative < 0.05)).mean())


def _array(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    return array if array.dtype == bool else array.astype(np.float64)
