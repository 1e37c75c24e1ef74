# SPDX-License-Identifier: MIT
"""The point pyramid: all geometry of a pair of clouds that depends on coordinates alone."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bpfn_cli.errors import ShapeError
from bpfn_cli.ops.interpolation import gather, inverse_distance_weights
from bpfn_cli.ops.neighbors import knn
from bpfn_cli.ops.sampling import farthest_point_sample
from bpfn_cli.structures import CloudPyramid, PointPyramid


@dataclass(frozen=True)
class PyramidShape:
    """How the clouds shrink, and how many neighbors each operation uses.

    Attributes:
        reductions: points of level l-1 per point of level l, l = 1..4.
        down_neighbors: of a sampled point, in the next finer level.
        self_neighbors: of a source point, in its own level.
    """

    reductions: tuple[int, ...]
    down_neighbors: int
    self_neighbors: int


def level_sizes(points: int, reductions: tuple[int, ...]) -> tuple[int, ...]:
    """Points at levels 0, 1, ...: 8192, 2048, 512, 256, 64 for 8192 points and reductions (4, 4, 2, 4)."""
    sizes = [points]
    for reduction in reductions:
        sizes.append(sizes[-1] // reduction)
    return tuple(sizes)


def build_pyramid(pc1: Tensor, pc2: Tensor, shape: PyramidShape) -> PointPyramid:
    """Sample both clouds and find all neighbors that do not depend on the flow.

    Args: pc1, pc2: (B, N, 3) metres, finite, the same N.
    Raises: ShapeError: a level would have fewer points than its neighbor search needs.
    """
    stacked = _sample(torch.cat([pc1, pc2]), shape)
    source, target = stacked.part(0, len(pc1)), stacked.part(len(pc1), 2 * len(pc1))
    return PointPyramid(stacked, _with_self_neighbors(source, shape), target)


def build_cloud_pyramid(cloud: Tensor, shape: PyramidShape) -> CloudPyramid:
    """The part of `build_pyramid` that belongs to one cloud (B, N, 3), ready to be a source or a target."""
    return _with_self_neighbors(_sample(cloud, shape), shape)


def join_pyramids(source: CloudPyramid, target: CloudPyramid) -> PointPyramid:
    """The geometry of a pair from that of its clouds, which have the same shape."""
    return PointPyramid(CloudPyramid.stack(source, target), source, target)


def _with_self_neighbors(cloud: CloudPyramid, shape: PyramidShape) -> CloudPyramid:
    flow_levels = range(len(shape.reductions))
    self_neighbors = {i: knn(cloud.points[i], cloud.points[i], shape.self_neighbors) for i in flow_levels}
    return replace(cloud, self_neighbors=self_neighbors)


def _sample(cloud: Tensor, shape: PyramidShape) -> CloudPyramid:
    sizes = level_sizes(cloud.shape[1], shape.reductions)
    points, sample_indices, down, up, weights = {0: cloud}, {}, {}, {}, {}
    for level, size in enumerate(sizes[1:], start=1):
        finer = points[level - 1]
        if level == 1:
            sample_indices[level] = farthest_point_sample(finer, size)
            points[level] = gather(finer, sample_indices[level])
        else:  # a sample of a farthest point sample is its first part
            sample_indices[level] = torch.arange(size, device=cloud.device).expand(len(cloud), -1)
            points[level] = finer[:, :size]
        down[level] = knn(points[level], finer, shape.down_neighbors)
        up[level - 1] = knn(finer, points[level], 3)
        weights[level - 1] = inverse_distance_weights(finer, points[level], up[level - 1])
    return CloudPyramid(points, sample_indices, down, up, weights, self_neighbors={})


def check_clouds(pc1: Tensor, pc2: Tensor, least_points: int) -> None:
    """Check the input clouds before anything is computed.

    Raises: ShapeError: not (B, N, 3) floats of one shape, fewer than `least_points`, or not finite.
        (A network compiled by `torch.compile` detects non-finite points in its first neighbor search.)
    """
    check_cloud("pc1", pc1, least_points)
    check_cloud("pc2", pc2, least_points)
    check_same_shape(pc1, pc2)


def check_cloud(name: str, cloud: Tensor, least_points: int) -> None:
    """What `check_clouds` checks of one cloud. Raises: ShapeError: as there."""
    if cloud.dim() != 3 or cloud.shape[-1] != 3 or not cloud.is_floating_point():
        raise ShapeError(f"{name}: expected floats of shape (B, N, 3), got {cloud.dtype} {tuple(cloud.shape)}")
    if cloud.shape[1] < least_points:
        raise ShapeError(f"{name}: {cloud.shape[1]} points, but the network needs at least {least_points}")
    has_values = cloud.device.type != "meta" and not torch.compiler.is_compiling()
    if has_values and not bool(torch.isfinite(cloud).all()):
        bad = int((~torch.isfinite(cloud)).any(-1).sum())
        raise ShapeError(f"{name}: {bad} points are NaN or infinite; remove them first")


def check_same_shape(pc1: Tensor, pc2: Tensor) -> None:
    """Raises: ShapeError: the clouds differ in shape."""
    if pc1.shape != pc2.shape:
        raise ShapeError(f"pc1 {tuple(pc1.shape)} and pc2 {tuple(pc2.shape)} must have the same shape")
