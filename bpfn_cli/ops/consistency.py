# SPDX-License-Identifier: MIT
"""What a flow can be measured by without its true values. All are differentiable, in memory linear in the points."""

import torch
from torch import Tensor

from bpfn_cli.ops.interpolation import gather, upsample
from bpfn_cli.ops.neighbors import knn


def nearest_squares(queries: Tensor, points: Tensor) -> Tensor:
    """The squared distance from each query to its nearest point, one half of the Chamfer distance.

    The gradient is that of the distance to the point that is nearest now.

    Args: queries: (B, N, 3) metres. points: (B, M, 3) metres.
    Returns: (B, N) m^2.
    """
    return (gather(points, knn(queries, points, 1))[:, :, 0] - queries).square().sum(dim=-1)


def roughness(points: Tensor, flow: Tensor, neighbors: int = 9) -> Tensor:
    """The mean square of the differences between a point's flow and that of its nearest neighbors.

    Args: points, flow: (B, N, 3) metres. neighbors: at most, with the point itself, which does not count.
    Returns: (B, N) m^2.
    Source: PointPWC-Net, ECCV 2020, smoothness constraint.
    """
    count = min(neighbors, points.shape[1])
    differences = gather(flow, knn(points, points, count)) - flow[:, :, None]
    return differences.square().sum(dim=(2, 3)) / max(1, count - 1)


def backward_errors(pc1: Tensor, flow: Tensor, pc2: Tensor, backward: Tensor) -> Tensor:
    """How far a point ends from where it started, along a flow and back: ||f(p) + b(p + f(p))||.

    b at p + f(p) is interpolated from the three nearest points of the second cloud.

    Args: pc1, flow: (B, N, 3) metres. pc2, backward: (B, M, 3) metres, M >= 3; the flow from pc2 to pc1.
    Returns: (B, N) metres.
    """
    return torch.linalg.vector_norm(flow + upsample(pc1 + flow, pc2, backward), dim=-1)


def confidence(errors: Tensor, scale_m: float) -> Tensor:
    """Weights 1 / (1 + (e / scale)^2), in (0, 1]: 1 for a point that returns to its start, 1/2 at `scale_m`.

    Args: errors: metres, any shape. scale_m: metres.
    """
    return 1 / (1 + (errors / scale_m).square())
