# SPDX-License-Identifier: MIT
"""From depth and optical flow in pixels to points in metres."""

from collections.abc import Iterable

import numpy as np

from bpfn_cli.errors import DataError
from bpfn_cli.structures import Camera


def back_project(u: np.ndarray, v: np.ndarray, depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Points of pixels (u right, v down) at `depth` = z, the inverse of the projection in `structures.Camera`.

    The depth is z, not z + tz: only then do KITTI's point counts after the cuts equal the published ones.

    Args: u, v, depth: (N,), pixels and metres.
    Returns: (N, 3) float32 metres, x left, y up, z forward.
    """
    x = (u * (depth + camera.tz) - camera.cx * depth - camera.tx) / camera.focal
    y = (v * (depth + camera.tz) - camera.cy * depth - camera.ty) / camera.focal
    return np.stack([x, y, depth], axis=1).astype(np.float32)


def back_project_pair(
    camera: Camera, kept: np.ndarray, flow: np.ndarray, depth1: np.ndarray, depth2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the kept pixels of frame 1, in frame 1 and in frame 2: as `back_project`; rows correspond.

    kept: (H, W) bool. flow: (H, W, 2) pixels. depth1, depth2: (H, W) metres, both in the pixel grid of frame 1.
    """
    v, u = (index.astype(np.float64) for index in np.nonzero(kept))
    with np.errstate(over="ignore", invalid="ignore"):  # points of damaged maps are rejected later
        moved = flow[kept].astype(np.float64)
        pc1 = back_project(u, v, depth1[kept], camera)
        pc2 = back_project(u + moved[:, 0], v + moved[:, 1], depth2[kept], camera)
    return pc1, pc2


def check_same_size(label: str, maps: Iterable[np.ndarray]) -> None:
    """Raises: DataError: maps of one frame, (H, W), that differ in size."""
    sizes = sorted({(array.shape[1], array.shape[0]) for array in maps})
    if len(sizes) > 1:
        found = " and ".join(f"{width} x {height}" for width, height in sizes)
        raise DataError(f"{label}: the maps of this scene differ in size ({found}); download them again")
