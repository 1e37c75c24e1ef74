# SPDX-License-Identifier: MIT
"""The rigid motion of a scene, and the points that move relative to it."""

import torch
from torch import Tensor

from bpfn_cli.ops.interpolation import gather
from bpfn_cli.ops.neighbors import knn

ROUNDS = 5  # of reweighting, which removes the influence of moving objects
MOVING_M = 0.05  # a point that deviates by more from the rigid motion, in metres, counts as moving

# Of `shared_motion`: fits to four points each, compared on at most so many points, evenly spaced.
SHARED_DRAWS = 256
SHARED_POINTS = 2048

# Of `rigid_icp`, in metres where it is a length; the best by EPE3D on 58 KITTI scenes.
ICP_POINTS = 1024  # of the first cloud, at least, if it has as many: a regular subset
ICP_ROUNDS = 20  # at most; it ends when no point moves by more than ICP_STEP_M
ICP_STEP_M = 1e-4
ICP_STARTS_M = (0.0, -1.0, -2.0)  # along z: a vehicle at rest, and driving forward, which moves the scene backward
ICP_SCALES_M, ICP_DECAY = (2.0, 0.1), 0.8  # the scale of the weights, from the first to the second, by this factor
ICP_CHOICE_M = 0.2  # scale of the error by which the best of the starts is chosen


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

    Arguments as of `scene_motion`.
    """
    return scene_motion(points, flow, valid)[2].to(points.dtype)


def scene_motion(points: Tensor, flow: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The scene's own (the camera's) rigid motion, and the distance by which each point deviates from it.

    The motion is fitted by iteratively reweighted least squares. The Geman-McClure weights come from the previous
    round's residuals; their scale halves in each round, down to `MOVING_M`. Computed in float64, without gradients.

    Args: points, flow: (B, N, 3) metres. valid: (B, N) bool, the points to fit to; None: all.
    Returns: (B, 3, 3), (B, 1, 3), as of `rigid_motion`, and (B, N) metres; float64.
    """
    with torch.no_grad():
        start, motion = points.double(), flow.double()
        counted = torch.ones_like(start[..., 0]) if valid is None else valid.double()
        return _reweighted(start, motion, counted, counted, ROUNDS)


def shared_motion(points: Tensor, flow: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The rigid motion that most points share, and the distance by which each point deviates from it.

    Where large moving objects hold many of the points, `scene_motion` may end between the motions. Here, it competes
    with the best of many fits to four random points (fixed seed), refined in the same way; the motion with which more
    points agree is taken. Without gradients; slower than `scene_motion`.

    Args: points, flow: (N, 3) metres. valid: (N,) bool, the points to fit to, one at least; None: all.
    Returns: (3, 3), (1, 3), as of `rigid_motion`, and (N,) metres; float64.
    Source: RANSAC, Fischler and Bolles, CACM 1981.
    """
    with torch.no_grad():
        start, motion = points.double(), flow.double()
        counted = torch.ones_like(start[:, 0]) if valid is None else valid.double()
        rows = counted.nonzero()[:, 0]
        rows = rows[:: -(-len(rows) // SHARED_POINTS)]
        drawn = rows[torch.randint(len(rows), (SHARED_DRAWS, 4), generator=torch.Generator().manual_seed(0))]
        residuals = _residual(start[rows], motion[rows], *rigid_motion(start[drawn], motion[drawn]))
        chosen = drawn[_agreement(residuals, MOVING_M).sum(dim=1).argmax()]
        start, motion, counted = start[None], motion[None], counted[None]
        rough = _residual(start, motion, *rigid_motion(start[:, chosen], motion[:, chosen]))
        rounds = 2  # from four times the scale, as the four points have errors
        refined = _reweighted(start, motion, counted, counted * _agreement(rough, MOVING_M * 2.0**rounds), rounds)
        found = [torch.cat(pair) for pair in zip(scene_motion(start, motion, counted), refined, strict=True)]
        best = (counted * _agreement(found[2], MOVING_M)).sum(dim=1).argmax()
        return found[0][best], found[1][best], found[2][best]


def _reweighted(
    start: Tensor, motion: Tensor, counted: Tensor, weights: Tensor, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `scene_motion`, from `weights` on."""
    for left in reversed(range(rounds + 1)):
        rotation, translation = rigid_motion(start, motion, weights)
        residual = _residual(start, motion, rotation, translation)
        weights = counted * _agreement(residual, MOVING_M * 2.0**left)
    return rotation, translation, residual


def _residual(start: Tensor, motion: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    return torch.linalg.vector_norm(start + motion - start @ rotation.mT - translation, dim=-1)


def _agreement(residual: Tensor, scale_m: float) -> Tensor:
    """Geman-McClure weights, 1 without a residual."""
    return (scale_m**2 / (scale_m**2 + residual.square())).square()


def moving_points(points: Tensor, flow: Tensor, valid: Tensor | None = None, threshold_m: float = MOVING_M) -> Tensor:
    """(B, N) bool: the points that deviate from the scene's rigid motion by more than `threshold_m`."""
    return motion_residual(points, flow, valid) > threshold_m


def rigid_icp(pc1: Tensor, pc2: Tensor) -> tuple[Tensor, Tensor]:
    """Register `pc1` to `pc2` as a whole by point-to-point ICP: the motion of the scene as seen from a moving camera.

    ICP finds the local optimum next to its start, so it starts at several translations and the fit with the lowest
    Geman-McClure error is returned. Its pairs are weighted as in `motion_residual`. Computed in float64, without
    gradients. The motion is zero where it cannot be fitted: of or to fewer than 3 points, or equal points.

    Args: pc1: (B, N, 3), pc2: (B, M, 3) metres.
    Returns: (B, 3, 3) and (B, 1, 3), float64, to be applied as `pc1 @ rotation.mT + translation`.
    Source: Besl and McKay, PAMI 1992; weights: Zhou et al., Fast Global Registration, ECCV 2016.
    """
    with torch.no_grad():
        clouds, starts = len(pc1), pc1.new_tensor(ICP_STARTS_M, dtype=torch.float64)
        still = torch.eye(3, dtype=torch.float64, device=pc1.device).expand(clouds, 3, 3)
        at_rest = torch.zeros_like(still[:, :1])
        if min(pc1.shape[1], pc2.shape[1]) < 3:
            return still, at_rest
        subset = pc1[:, :: max(1, pc1.shape[1] // ICP_POINTS)].double()
        points = subset.repeat_interleave(len(starts), dim=0)  # the starts of each cloud are a batch
        moved = points.clone()
        moved[..., 2] += starts.repeat(clouds)[:, None]
        for done in range(ICP_ROUNDS):
            target = _nearest(moved, pc2)
            scale = max(ICP_SCALES_M[1], ICP_SCALES_M[0] * ICP_DECAY**done)
            squares = (target - moved).square().sum(dim=-1)
            # Relative to the nearest pair, without which all weights of distant clouds vanish.
            weights = ((scale**2 + squares.amin(1, keepdim=True)) / (scale**2 + squares)).square()
            rotation, translation = rigid_motion(points, target - points, weights)
            before, moved = moved, points @ rotation.mT + translation
            if (moved - before).abs().max() < ICP_STEP_M:
                break
        squares = (_nearest(moved, pc2) - moved).square().sum(dim=-1)
        error = (squares / (ICP_CHOICE_M**2 + squares)).mean(dim=1).view(clouds, -1)
        best = error.argmin(dim=1) + len(starts) * torch.arange(clouds, device=pc1.device)
        extents = torch.stack([cloud.amax(1) - cloud.amin(1) for cloud in (pc1, pc2)]).amax(-1)
        fits = (extents > 0).all(0)[:, None, None]
        return torch.where(fits, rotation[best], still), torch.where(fits, translation[best], at_rest)


def _nearest(points: Tensor, cloud: Tensor) -> Tensor:
    """The nearest points (B S, N, 3) of `cloud` (B, M, 3), in float64, to S versions of `points`, (B S, N, 3)."""
    queries = points.to(cloud.dtype).reshape(len(cloud), -1, 3)
    return gather(cloud, knn(queries, cloud, 1)).reshape(points.shape).double()
