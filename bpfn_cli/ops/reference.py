# SPDX-License-Identifier: MIT
"""The published geometry in plain torch, on any device: exhaustive search, every graph built where it is used.

The searches are operators of their own, so a tracer sees each as one call.
"""

from torch import Tensor

from bpfn_cli.ops.interpolation import interpolate, inverse_distance_weights
from bpfn_cli.ops.neighbors import knn_shape, knn_with_torch
from bpfn_cli.ops.operation import Operation
from bpfn_cli.ops.sampling import sample_shape, sample_with_torch

_knn = Operation("bpfn_reference::knn", knn_with_torch)
_knn.register_fake(knn_shape)
_sample = Operation("bpfn_reference::farthest_point_sample", sample_with_torch)
_sample.register_fake(sample_shape)


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`ops.knn`, comparing each query with each point: (B, N, k) int64, nearest first."""
    return _knn(queries.detach(), points.detach(), k)


def farthest_point_sample(points: Tensor, count: int) -> Tensor:
    """`ops.farthest_point_sample`, a tensor operation at a time: (B, count) int64."""
    return _sample(points.detach(), count)


def upsample(points: Tensor, sparse: Tensor, values: Tensor) -> Tensor:
    """`ops.upsample` with its own search: (B, M, C) at `sparse` to (B, N, C) at `points`."""
    neighbors = knn(points, sparse, 3)
    return interpolate(values, neighbors, inverse_distance_weights(points, sparse, neighbors))


def warp(source: Tensor, target: Tensor, flow: Tensor) -> Tensor:
    """`ops.warp` with its own search: (B, M, 3) metres."""
    return target - upsample(target, source + flow, flow)
