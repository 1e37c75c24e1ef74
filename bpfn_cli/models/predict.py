# SPDX-License-Identifier: MIT
"""Flow for every point of clouds of any size, predicted in parts of the size the network was trained with."""

import numpy as np
import torch

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.ops import matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.progress import ProgressCallback

# Each row is an axis of the internal frame (x left, y up, z forward), in coordinates of the named frame.
FRAMES: dict[str, np.ndarray] = {
    "internal": np.eye(3),
    "lidar": np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]),  # x forward, y left, z up
    "camera": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),  # x right, y down, z forward
    "flyingthings3d": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]]),  # x right, y up, z backward
}


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
    """Predict the flow of every point of `pc1`, running the network on `points` points of each cloud at a time.

    Both clouds are split at random into parts of `points` points; the last is filled with points of the others. A
    random part keeps the extent of the cloud, as a spatial one would not.

    Args: pc1, pc2: (N, 3), (M, 3) float32 metres, in `frame`, one of `FRAMES`.
    Returns: (N, 3) float32 metres, in `frame`.
    Raises: ShapeError: a cloud has fewer points than the network needs. NonFiniteError: the flow is not finite.
    """
    points = _checked_points(model.variant.least_points, points, pc1, pc2)
    axes = FRAMES[frame].astype(np.float32)
    generator = np.random.default_rng(seed)
    parts = -(-len(pc1) // points)
    rows1, rows2 = _deal(len(pc1), parts, points, generator), _deal(len(pc2), parts, points, generator)
    flow = np.empty_like(pc1)
    for part in range(parts):
        clouds = (pc1[rows1[part]] @ axes.T, pc2[rows2[part]] @ axes.T)
        tensors = (torch.from_numpy(np.ascontiguousarray(cloud))[None].to(device) for cloud in clouds)
        with torch.no_grad(), matrix_precision(precision):
            flow[rows1[part]] = model(*tensors).flows[0][0].cpu().numpy() @ axes
        if progress is not None:
            progress(part + 1, parts)
    if bad := int((~np.isfinite(flow)).any(axis=1).sum()):
        raise NonFiniteError(f"the flow is NaN or infinite at {bad} of {len(flow)} points; nothing was written")
    return flow


def _checked_points(least: int, points: int, pc1: np.ndarray, pc2: np.ndarray) -> int:
    for name, cloud in (("pc1", pc1), ("pc2", pc2)):
        if len(cloud) < least:
            raise ShapeError(f"{name} has {len(cloud)} points, the network needs at least {least}; use denser clouds")
    points = min(points, len(pc1), len(pc2))
    if points < least:
        raise ShapeError(f"--points {points}: the network needs at least {least}")
    return points


def _deal(count: int, parts: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """(parts, size) indices below `count`: each once as far as they fit, then random ones again."""
    order = generator.permutation(count)
    missing = parts * size - count
    if missing > 0:
        order = np.concatenate([order, *(generator.permutation(count) for _ in range(-(-missing // count)))])
    dealt = order[: parts * size].reshape(parts, size)
    return _without_repeats(dealt, count, generator)


def _without_repeats(dealt: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Replace the repeated rows of each part by rows it does not contain."""
    for part in dealt:
        _, first = np.unique(part, return_index=True)
        repeated = np.setdiff1d(np.arange(len(part)), first)
        if len(repeated):
            others = np.setdiff1d(np.arange(count), part)
            part[repeated] = generator.choice(others, len(repeated), replace=False)
    return dealt
