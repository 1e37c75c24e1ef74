# SPDX-License-Identifier: MIT
"""Exact nearest neighbors."""

import math

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.ops import backend, native
from bpfn_cli.ops.operation import operation

LARGEST_SINGLE = 1e18  # metres; the square of a larger distance overflows float32
CHUNK_ELEMENTS = 1 << 22  # of a block of distances; queries are split so that no N x M matrix is made


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Find the k nearest `points` of each query, nearest first, by exact Euclidean distance.

    At an exact tie either point may be returned.

    Args: queries: (B, N, 3), finite. points: (B, M, 3), the same unit and frame, finite. k: 1 <= k <= M.
    Returns: (B, N, k) int64 indices into `points`.
    Raises: ShapeError: k out of range, or clouds of another shape. NonFiniteError: NaN or infinite points, on a CPU.
    """
    if queries.dim() != 3 or queries.shape[2] != 3 or points.shape != (len(queries), points.shape[1], 3):
        raise ShapeError(f"knn: expected (B, N, 3) and (B, M, 3), found {tuple(queries.shape)}, {tuple(points.shape)}")
    if not 1 <= k <= points.shape[1]:
        raise ShapeError(f"knn: cannot find {k} neighbors in a cloud of {points.shape[1]} points; give more points")
    return _knn(queries.detach(), points.detach(), k)


@operation("bpfn::knn")
def _knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    if backend.runs_triton(queries, points):
        from bpfn_cli.ops.triton import neighbors as kernels

        if k <= kernels.MOST_NEIGHBORS and points.shape[1] <= kernels.MOST_POINTS:
            return kernels.knn_with_triton(queries, points, k)
    return (knn_on_cpu if queries.device.type == "cpu" else knn_with_torch)(queries, points, k)


@_knn.register_fake
def knn_shape(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """An empty tensor of the shape and type that `knn` returns."""
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
    """`knn` with one k-d tree per cloud: in C where possible, else by pykdtree."""
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
    """`knn` of finite points on a CPU."""
    from pykdtree.kdtree import KDTree

    dtype = torch.promote_types(torch.promote_types(queries.dtype, points.dtype), torch.float32)
    query_clouds, point_clouds = (np.ascontiguousarray(x.to(dtype).numpy()) for x in (queries, points))
    found = np.empty((*query_clouds.shape[:2], k), dtype=np.int64)
    for query, cloud, indices in zip(query_clouds, point_clouds, found, strict=True):
        indices[...] = KDTree(cloud).query(query, k=k)[1].reshape(-1, k)
    return torch.from_numpy(found)
