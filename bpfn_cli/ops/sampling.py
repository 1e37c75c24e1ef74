# SPDX-License-Identifier: MIT
"""Farthest point sampling."""

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.errors import ShapeError
from bpfn_cli.ops import backend, native
from bpfn_cli.ops.operation import operation


def farthest_point_sample(points: Tensor, count: int) -> Tensor:
    """Choose `count` points, each the farthest from those chosen before it, starting with index 0.

    Distances are float32 and the lowest index wins a tie, so every backend returns the same indices. A longer sample
    starts with the shorter one.

    Args: points: (B, N, 3), any unit, finite. count: 1 <= count <= N.
    Returns: (B, count) int64 indices.
    Raises: ShapeError: count out of range, or clouds of another shape.
    Source: PointNet++, NeurIPS 2017, section 3.2.
    """
    if points.dim() != 3 or points.shape[2] != 3:
        raise ShapeError(f"farthest point sampling: expected (B, N, 3), found {tuple(points.shape)}")
    if not 1 <= count <= points.shape[1]:
        raise ShapeError(f"cannot draw {count} farthest points from {points.shape[1]}; give more points")
    return _farthest_point_sample(points.detach(), count)


@operation("bpfn::farthest_point_sample")
def _farthest_point_sample(points: Tensor, count: int) -> Tensor:
    if backend.runs_triton(points):
        from bpfn_cli.ops.triton.sampling import sample_with_triton

        return sample_with_triton(points, count)
    if points.device.type != "cpu":
        return sample_with_torch(points, count)
    return native.sample(points.float(), count) if native.has_native() else sample_with_numpy(points, count)


@_farthest_point_sample.register_fake
def sample_shape(points: Tensor, count: int) -> Tensor:
    """An empty tensor of the shape and type that `farthest_point_sample` returns."""
    return points.new_empty(points.shape[0], count, dtype=torch.int64)


def sample_with_torch(points: Tensor, count: int) -> Tensor:
    """`farthest_point_sample` in plain torch, on any device: the reference."""
    points = points.float()
    batch, number, _ = points.shape
    rows = torch.arange(batch, device=points.device)
    chosen = torch.zeros(batch, count, dtype=torch.int64, device=points.device)
    nearest = torch.full((batch, number), torch.inf, device=points.device)
    for step in range(1, count):
        offset = points - points[rows, chosen[:, step - 1]][:, None]
        square = offset * offset
        distance = square[..., 0] + square[..., 1] + square[..., 2]
        nearest = torch.minimum(nearest, distance)
        chosen[:, step] = nearest.argmax(dim=1)
    return chosen


def sample_with_numpy(points: Tensor, count: int) -> Tensor:
    """`farthest_point_sample` on a CPU without the C loops: one cloud at a time, in reused buffers."""
    clouds = np.ascontiguousarray(points.float().numpy().transpose(0, 2, 1))
    chosen = np.zeros((len(clouds), count), dtype=np.int64)
    for cloud, indices in zip(clouds, chosen, strict=True):
        nearest, square = np.full(cloud.shape[1], np.inf, np.float32), np.empty_like(cloud)
        for step in range(1, count):
            np.subtract(cloud, cloud[:, indices[step - 1], None], out=square)
            np.multiply(square, square, out=square)
            square[0] += square[1]
            square[0] += square[2]
            np.minimum(nearest, square[0], out=nearest)
            indices[step] = nearest.argmax()
    return torch.from_numpy(chosen)
