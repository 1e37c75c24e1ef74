# SPDX-License-Identifier: MIT
"""The ground of a cloud: a plane, fitted by random samples (RANSAC: Fischler and Bolles, 1981)."""

import numpy as np

from bpfn_cli.data.augment import even_rows
from bpfn_cli.rng import keyed_generator

SAMPLES = 200  # of three points
MOST_POINTS = 8192  # that the samples are compared with
NEAR_M = 0.15  # distance from the plane of the points that support it
REMOVED_M = 0.3  # height above the plane below which points are ground; 1.65 m below KITTI's camera, this is its -1.4 m
MOST_TILT_DEGREES = 15.0
LEAST_SHARE = 0.1  # of the points support the plane; or else there is no ground
MOST_BELOW = 0.05  # of the points may be further below it; or else it is a roof or a table
# Points per height within PEAK_M of the plane, over those between ABOVE_M: at least LEAST_PEAK. It is 5.5 in a sweep of
# Argoverse 2, and at most 2.5 in KITTI scenes whose ground was cut off, where the lowest points are no plane.
PEAK_M, ABOVE_M, LEAST_PEAK = 0.1, (0.2, 0.5), 3.0


def ground_rows(cloud: np.ndarray) -> np.ndarray | None:
    """(N,) bool, the points on or below the ground; None: no plane is the ground.

    Args: cloud: (N, 3) metres, x left, y up, z forward. The answer is a function of the cloud alone.
    """
    points = cloud[even_rows(len(cloud), MOST_POINTS)].astype(np.float64)
    if len(points) < 3:
        return None
    generator = keyed_generator("ground", len(points))
    low = points[points[:, 1] <= np.median(points[:, 1])]
    corners = low[generator.integers(len(low), size=(SAMPLES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals *= (np.sign(normals[:, 1]) / np.maximum(lengths, 1e-12))[:, None]
    level = normals[:, 1] >= np.cos(np.deg2rad(MOST_TILT_DEGREES))
    if not level.any():
        return None
    normals, origins = normals[level], corners[level, 0]
    heights = points @ normals.T - (normals * origins).sum(axis=1)
    support = (np.abs(heights) < NEAR_M).sum(axis=0) * ((heights < -REMOVED_M).mean(axis=0) <= MOST_BELOW)
    best = int(np.argmax(support))
    if support[best] < LEAST_SHARE * len(points):
        return None
    normal, offset = _fit(points[np.abs(heights[:, best]) < NEAR_M])
    if not _is_peak(points @ normal - offset):
        return None
    return cloud @ normal - offset < REMOVED_M


def _is_peak(heights: np.ndarray) -> bool:
    """Whether many more points are near the plane than above it."""
    near = (np.abs(heights) < PEAK_M).sum() / (2 * PEAK_M)
    above = ((heights >= ABOVE_M[0]) & (heights < ABOVE_M[1])).sum() / (ABOVE_M[1] - ABOVE_M[0])
    return bool(near >= LEAST_PEAK * above)


def _fit(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Normal, upward, and offset of the plane with the least squares of distances."""
    center = points.mean(axis=0)
    normal = np.linalg.svd(points - center, full_matrices=False)[2][2]
    normal = normal * (1 if normal[1] >= 0 else -1)
    return normal, float(normal @ center)
