# SPDX-License-Identifier: MIT
"""The rigid motion of a scene, and the points that move relative to it."""

import torch
from torch import Tensor

ROUNDS = 5  # of reweighting, which removes the influence of moving objects
MOVING_M = 0.05  # a point that deviates by more from the rigid motion, in metres, counts as moving


def rigid_motion(points: Tensor, flow: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fit the rotation and translation from `points` to `points + flow` by least squares.

    Args: points, flow: (B, N, 3) metres. weights: (B, N), not negative; None: all equal.
    Returns: (B, 3, 3) and (B, 1, 3), to be applied as `points @ rotation.mT + translation`.
    Source: Kabsch, Acta Crystallographica A32, 1976.
    """
    weights = torch.ones_like(points[..., 0]) if weights is None else weights
    share = (weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12))[..., None]
    moved = points + flow
    center, target = (share * points).sum(1, keepdim=True), (share * moved).sum(1, keepdim=True)
    covariance = (share * (points - center)).mT @ (moved - target)
    u, _, vt = torch.linalg.svd(covariance)
    signs = torch.ones_like(center)  # the last axis is mirrored if the best orthogonal map is a reflection
    signs[..., 2] = torch.sign(torch.linalg.det(vt.mT @ u.mT))[:, None]
    rotation = (vt.mT * signs) @ u.mT
    return rotation, target - center @ rotation.mT


def motion_residual(points: Tensor, flow: Tensor, valid: Tensor | None = None) -> Tensor:
    """Distance by which each point deviates from the scene's own (the camera's) rigid motion: (B, N) metres.

    The motion is fitted by iteratively reweighted least squares. The Geman-McClure weights come from the previous
    round's residuals; their scale halves in each round, down to `MOVING_M`. Computed in float64, without gradients.

    Args: points, flow: (B, N, 3) metres. valid: (B, N) bool, the points to fit to; None: all.
    """
    with torch.no_grad():
        start, motion = points.double(), flow.double()
        counted = torch.ones_like(start[..., 0]) if valid is None else valid.double()
        weights = counted
        for left in reversed(range(ROUNDS + 1)):
            rotation, translation = rigid_motion(start, motion, weights)
            residual = torch.linalg.vector_norm(start + motion - start @ rotation.mT - translation, dim=-1)
            scale = MOVING_M * 2.0**left
            weights = counted * (scale**2 / (scale**2 + residual.square())).square()
        return residual.to(points.dtype)


def moving_points(points: Tensor, flow: Tensor, valid: Tensor | None = None, threshold_m: float = MOVING_M) -> Tensor:
    """(B, N) bool: the points that deviate from the scene's rigid motion by more than `threshold_m`."""
    return motion_residual(points, flow, valid) > threshold_m
