# SPDX-License-Identifier: MIT
"""Flow for every point of clouds of any size, predicted in parts of the size the network was trained with."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.frames import INTERNAL, axes_of
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.parts import cloud_key, deal
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.progress import ProgressCallback
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import EncodedCloud, FlowPyramid

KEPT_PARTS = 64  # encoded parts of a cloud kept for the next pair: a few megabytes each

_PartKey = tuple[str, int, int]  # hash of the cloud, points per part, number of the part


class FlowNetwork(Protocol):
    """A `BiPointFlowNet`, or an exported one (`OnnxNetwork`), which shares no clouds."""

    @property
    def variant(self) -> Variant:
        """Its sizes."""

    def __call__(self, pc1: Tensor, pc2: Tensor) -> FlowPyramid:
        """The flow from `pc1` to `pc2`, (1, N, 3) metres."""


def predict_flow(
    model: FlowNetwork,
    pc1: np.ndarray,
    pc2: np.ndarray,
    *,
    points: int,
    frame: str = INTERNAL,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.float32,
    progress: ProgressCallback | None = None,
) -> np.ndarray:
    """Predict the flow of every point of `pc1`; arguments and result as of `FlowPredictor`."""
    predictor = FlowPredictor(model, points=points, frame=frame, seed=seed, device=device, precision=precision)
    return predictor(pc1, pc2, progress=progress)


class Estimate(NamedTuple):
    """A predicted flow.

    Attributes: flow: (N, 3) float32 metres. parts: how many parts the clouds were split into; 1: not split.
        spread_m: how much the predictions of a point from several splits deviate from their mean, in metres: root mean
        square over its predictions, median over the points. None: one split.
    """

    flow: np.ndarray
    parts: int
    spread_m: float | None


class FlowPredictor:
    """Predicts the flow of pairs of clouds, running the network on `points` points of each cloud at a time.

    Both clouds are split at random into parts of `points` points; the last is filled with points of the others. The
    parts of a cloud depend on its content and `seed` alone. So a cloud that is the target of one pair and the source
    of the next one is encoded only once.

    Args: frame: of the clouds, as `axes_of` takes it. average: number of splits; the mean of their flows is returned.
    """

    def __init__(
        self,
        model: FlowNetwork,
        *,
        points: int,
        frame: str = INTERNAL,
        average: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Precision = Precision.float32,
    ):
        self.model, self.points, self.seed, self.device, self.precision = model, points, seed, device, precision
        self.frame, self.average, self._axes = frame, average, axes_of(frame)
        self._kept: dict[_PartKey, EncodedCloud] = {}

    def __call__(
        self, pc1: np.ndarray, pc2: np.ndarray, *, keep: bool = False, progress: ProgressCallback | None = None
    ) -> np.ndarray:
        """The flow of every point of `pc1`, (N, 3) float32 metres; arguments and errors as of `estimate`."""
        return self.estimate(pc1, pc2, keep=keep, progress=progress).flow

    def estimate(
        self, pc1: np.ndarray, pc2: np.ndarray, *, keep: bool = False, progress: ProgressCallback | None = None
    ) -> Estimate:
        """Predict the flow of every point of `pc1`.

        Args: pc1, pc2: (N, 3), (M, 3) float32 metres. keep: `pc2` is the first cloud of the next call.
        Raises: ShapeError: a cloud has fewer points than the network needs. NonFiniteError: the flow is not finite.
        """
        size = _checked_size(self.model.variant.least_points, self.points, pc1, pc2)
        source, target = (_PartedCloud(cloud @ self._axes.T, size, self.seed) for cloud in (pc1, pc2))
        kept, self._kept = self._kept, {}
        splits = 1 if size == len(pc1) == len(pc2) else self.average
        parts, mean = -(-len(pc1) * splits // size), _MeanFlow(len(pc1))
        for part in range(parts):
            clouds = source.next_part(self.device), target.next_part(self.device)
            shared = kept.pop(clouds[0].key, None)
            with torch.no_grad(), matrix_precision(self.precision):
                estimated = self._estimate(*clouds, shared, keep and part < KEPT_PARTS)
            mean.add(clouds[0].rows, estimated.flows[0][0].cpu().numpy() @ self._axes)
            if progress is not None:
                progress(part + 1, parts)
        return Estimate(_checked_flow(mean.flow()), -(-len(pc1) // size), mean.spread() if splits > 1 else None)

    def _estimate(self, source: _Part, target: _Part, shared: EncodedCloud | None, keep: bool) -> FlowPyramid:
        model = self.model
        if not isinstance(model, BiPointFlowNet) or not model.shares_clouds or (shared is None and not keep):
            return model(source.points, target.points)
        encoded = model.encode(target.points)
        if keep:
            self._kept[target.key] = encoded
        return model.estimate(shared or model.encode(source.points), encoded)


class _Part(NamedTuple):
    """Some `rows` of a cloud, and their `points` (1, N, 3)."""

    key: _PartKey
    rows: np.ndarray
    points: Tensor


class _PartedCloud:
    """A cloud in the internal frame, dealt in parts."""

    def __init__(self, cloud: np.ndarray, size: int, seed: int):
        self.cloud, self.size, self.key = cloud, size, cloud_key(cloud)
        self.parts = enumerate(deal(len(cloud), size, keyed_generator(seed, self.key)))

    def next_part(self, device: torch.device | str) -> _Part:
        number, rows = next(self.parts)
        return _Part((self.key, self.size, number), rows, torch.from_numpy(self.cloud[rows])[None].to(device))


class _MeanFlow:
    """The mean flow of each of `count` points over the parts that contain it."""

    def __init__(self, count: int):
        self._sum, self._squares, self._times = np.zeros((count, 3)), np.zeros(count), np.zeros(count)

    def add(self, rows: np.ndarray, flow: np.ndarray) -> None:
        self._sum[rows] += flow  # no part holds a row twice
        self._squares[rows] += np.square(flow, dtype=np.float64).sum(axis=1)
        self._times[rows] += 1

    def flow(self) -> np.ndarray:
        return (self._sum / self._times[:, None]).astype(np.float32)

    def spread(self) -> float:
        """As `Estimate.spread_m`."""
        mean = self._sum / self._times[:, None]
        variance = self._squares / self._times - np.square(mean).sum(axis=1)
        return float(np.median(np.sqrt(variance.clip(0))))


def _checked_size(least: int, points: int, pc1: np.ndarray, pc2: np.ndarray) -> int:
    for name, cloud in (("pc1", pc1), ("pc2", pc2)):
        if len(cloud) < least:
            raise ShapeError(f"{name} has {len(cloud)} points, the network needs at least {least}; use denser clouds")
    points = min(points, len(pc1), len(pc2))
    if points < least:
        raise ShapeError(f"--points {points}: the network needs at least {least}")
    return points


def _checked_flow(flow: np.ndarray) -> np.ndarray:
    if bad := int((~np.isfinite(flow)).any(axis=1).sum()):
        raise NonFiniteError(f"the flow is NaN or infinite at {bad} of {len(flow)} points; it was not written")
    return flow
