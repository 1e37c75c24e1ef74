# SPDX-License-Identifier: MIT
"""Exact nearest neighbors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.ops import native
from bpfn_cli.ops.backend import is_plain, runs_triton

LARGEST_SINGLE = 1e18  # metres; squares of larger distances are no float32
CHUNK_ELEMENTS = 1 << 22  # of a distance block: queries are taken in chunks so that no N x M matrix is made


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Indices of the k nearest `points` of each query, nearest first, by exact Euclidean distance.

    At an exact tie either point may be returned.

    Args:
        queries: (B, N, 3), finite.
        points: (B, M, 3), the same unit and frame, finite.
        k: 1 <= k <= M.
    Returns: (B, N, k) int64.
    Raises: ShapeError: k out of range, or not such clouds. NonFiniteError: on CPU, some point is NaN or infinite.
    """
    if queries.dim() != 3 or queries.shape[2] != 3 or points.shape != (len(queries), points.shape[1], 3):
        raise ShapeError(f"neighbors of (B, N, 3) in (B, M, 3): {tuple(queries.shape)}, {tuple(points.shape)} found")
    if not 1 <= k <= points.shape[1]:
        raise ShapeError(f"{k} neighbors were asked of a cloud of {points.shape[1]} points: give more points")
    return _knn(queries.detach(), points.detach(), k)


@torch.library.custom_op("bpfn::knn", mutates_args=())
def _knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    if is_plain() or queries.device.type != "cpu":
        return knn_with_torch(queries, points, k)
    return knn_on_cpu(queries, points, k)


@_knn.register_kernel("cuda")
def _knn_on_cuda(queries: Tensor, points: Tensor, k: int) -> Tensor:
    if not runs_triton(queries, points):
        return knn_with_torch(queries, points, k)
    from bpfn_cli.ops.triton import neighbors as triton_neighbors

    if k > triton_neighbors.MOST_NEIGHBORS or points.shape[1] > triton_neighbors.MOST_POINTS:
        return knn_with_torch(queries, points, k)
    return triton_neighbors.knn_with_triton(queries, points, k)


@_knn.register_fake
def _(queries: Tensor, points: Tensor, k: int) -> Tensor:
    return queries.new_empty(queries.shape[0], queries.shape[1], k, dtype=torch.int64)


def knn_with_torch(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`knn` in plain torch, on any device: the reference.

    Differences are squared directly: the expanded |a|^2 - 2ab + |b|^2 picks wrong neighbors far from the origin.
    """
    chunk = max(1, CHUNK_ELEMENTS // (points.shape[0] * points.shape[1]))
    x, y, z = points[:, None].unbind(-1)
    found = []
    for part in queries.split(chunk, dim=1):
        distance = (part[..., 0:1] - x) ** 2 + (part[..., 1:2] - y) ** 2 + (part[..., 2:3] - z) ** 2
        found.append(distance.topk(k, dim=-1, largest=False, sorted=True).indices)
    return torch.cat(found, dim=1)


def knn_on_cpu(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`knn` by one k-d tree a cloud: the C loops', or where they cannot, pykdtree's."""
    extents = [float(cloud.abs().max()) for cloud in (queries, points) if cloud.numel()]
    if not all(map(math.isfinite, extents)):
        raise NonFiniteError("points became NaN or infinite: the network has diverged, or its weights are damaged")
    if max(extents, default=0.0) > LARGEST_SINGLE:
        queries, points = queries.double(), points.double()
    fits = k <= native.MOST_NEIGHBORS and max(queries.shape[1], points.shape[1]) <= native.MOST_POINTS
    single = queries.dtype == points.dtype == torch.float32
    search = native.neighbors if fits and single and native.has_native() else knn_with_pykdtree
    return search(queries, points, k)


def knn_with_pykdtree(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`knn` on CPU; points must be finite."""
    from pykdtree.kdtree import KDTree

    dtype = torch.float64 if torch.float64 in (queries.dtype, points.dtype) else torch.float32
    query_clouds, point_clouds = (np.ascontiguousarray(x.to(dtype).numpy()) for x in (queries, points))
    found = np.empty((*query_clouds.shape[:2], k), dtype=np.int64)
    for query, cloud, indices in zip(query_clouds, point_clouds, found, strict=True):
        nearest = KDTree(cloud).query(query, k=k)[1]
        indices[...] = nearest.reshape(-1, k)
    return torch.from_numpy(found)
