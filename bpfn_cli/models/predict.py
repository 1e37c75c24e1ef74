# SPDX-License-Identifier: MIT
"""Flow for every point of clouds of any size, predicted in parts of the size the network was trained with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.parts import cloud_key, deal
from bpfn_cli.ops import matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.progress import ProgressCallback
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import EncodedCloud, FlowPyramid

# Each row is an axis of the internal frame (x left, y up, z forward), in coordinates of the named frame.
FRAMES: dict[str, np.ndarray] = {
    "internal": np.eye(3),
    "lidar": np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]),  # x forward, y left, z up
    "camera": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),  # x right, y down, z forward
    "flyingthings3d": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]]),  # x right, y up, z backward
}

KEPT_PARTS = 64  # encoded parts of a cloud kept for the next pair: a few megabytes each

_PartKey = tuple[str, int, int]  # hash of the cloud, points per part, number of the part


def predict_flow(
    model: BiPointFlowNet,
    pc1: np.ndarray,
    pc2: np.ndarray,
    *,
    points: int,
    frame: str = "internal",
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = Precision.float32,
    progress: ProgressCallback | None = None,
) -> np.ndarray:
    """Predict the flow of every point of `pc1`; arguments and result as of `FlowPredictor`."""
    predictor = FlowPredictor(model, points=points, frame=frame, seed=seed, device=device, precision=precision)
    return predictor(pc1, pc2, progress=progress)


class FlowPredictor:
    """Predicts the flow of pairs of clouds, running the network on `points` points of each cloud at a time.

    Both clouds are split at random into parts of `points` points; the last is filled with points of the others. The
    parts of a cloud depend on its content and `seed` alone. So a cloud that is the target of one pair and the source
    of the next one is encoded only once.

    Args: frame: of the clouds, one of `FRAMES`.
    """

    def __init__(
        self,
        model: BiPointFlowNet,
        *,
        points: int,
        frame: str = "internal",
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Precision = Precision.float32,
    ):
        self.model, self.points, self.seed, self.device, self.precision = model, points, seed, device, precision
        self._axes = FRAMES[frame].astype(np.float32)
        self._kept: dict[_PartKey, EncodedCloud] = {}

    def __call__(
        self, pc1: np.ndarray, pc2: np.ndarray, *, keep: bool = False, progress: ProgressCallback | None = None
    ) -> np.ndarray:
        """The flow of every point of `pc1`.

        Args: pc1, pc2: (N, 3), (M, 3) float32 metres. keep: `pc2` is the first cloud of the next call.
        Returns: (N, 3) float32 metres.
        Raises: ShapeError: a cloud has fewer points than the network needs. NonFiniteError: the flow is not finite.
        """
        size = _checked_size(self.model.variant.least_points, self.points, pc1, pc2)
        source, target = (_PartedCloud(cloud @ self._axes.T, size, self.seed) for cloud in (pc1, pc2))
        kept, self._kept = self._kept, {}
        flow, parts = np.empty_like(pc1), -(-len(pc1) // size)
        for part in range(parts):
            clouds = source.next_part(self.device), target.next_part(self.device)
            shared = kept.pop(clouds[0].key, None)
            with torch.no_grad(), matrix_precision(self.precision):
                estimated = self._estimate(*clouds, shared, keep and part < KEPT_PARTS)
            flow[clouds[0].rows] = estimated.flows[0][0].cpu().numpy() @ self._axes
            if progress is not None:
                progress(part + 1, parts)
        return _checked_flow(flow)

    def _estimate(self, source: _Part, target: _Part, shared: EncodedCloud | None, keep: bool) -> FlowPyramid:
        if not self.model.shares_clouds or (shared is None and not keep):
            return self.model(source.points, target.points)
        encoded = self.model.encode(target.points)
        if keep:
            self._kept[target.key] = encoded
        return self.model.estimate(shared or self.model.encode(source.points), encoded)


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
