# SPDX-License-Identifier: MIT
"""The network operation by operation as published: one cloud after the other, each graph where it is used.

What the fast path is compared with, in exactness and in speed, and what MACs are counted on. `BPFN_PLAIN=1` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bpfn_cli.ops import farthest_point_sample, gather, knn, upsample, warp
from bpfn_cli.structures import LEVELS, FlowPyramid

if TYPE_CHECKING:
    from bpfn_cli.models.bipointflownet import BiPointFlowNet


def published_forward(
    network: BiPointFlowNet, pc1: Tensor, pc2: Tensor, features1: Tensor, features2: Tensor
) -> FlowPyramid:
    """`BiPointFlowNet.forward` in plain torch; clouds and features (B, N, 3)."""
    points1, indices1 = _sample(network, pc1)
    points2, indices2 = _sample(network, pc2)
    encoded1, encoded2 = _encode(network, points1, features1), _encode(network, points2, features2)
    contexts = network.context_blocks()
    coarse1, coarse2, flow, estimated = encoded1[LEVELS], encoded2[LEVELS], None, None
    output = FlowPyramid([], indices1, indices2, [], [], [], [], pyramid=None)
    for level in reversed(range(LEVELS)):
        source, target = points1[level], points2[level]
        context1 = contexts[level](upsample(source, points1[level + 1], coarse1))
        context2 = contexts[level](upsample(target, points2[level + 1], coarse2))
        inputs = [encoded1[level]]
        if flow is not None and estimated is not None:
            flow = upsample(source, points1[level + 1], flow)
            inputs.append(upsample(source, points1[level + 1], estimated))
            target = warp(source, target, flow)
        embed = getattr(network, f"cross{level}")
        k = network.variant.embedding_neighbors
        neighbors = knn(source, target, k)
        coarse1, coarse2, embedding = embed(
            source,
            target,
            torch.cat([encoded1[level], context1], dim=-1),
            torch.cat([encoded2[level], context2], dim=-1),
            neighbors,
            knn(target, source, k),
            knn(source, target, k),
        )
        estimate = getattr(network, f"flow{level}")
        features = torch.cat([*inputs, embedding], dim=-1)
        k = network.variant.estimator_neighbors
        estimated, correction = estimate(source, features, knn(source, source, k), knn(source, source, k))
        flow = correction if flow is None else flow + correction
        results = (flow, coarse1, coarse2, embedding, neighbors, estimated)
        lists = (
            output.flows,
            output.bfe_source,
            output.bfe_target,
            output.bfe_embedding,
            output.bfe_neighbors,
            output.estimator_features,
        )
        for found, result in zip(lists, results, strict=True):
            found.insert(0, result)
    return output


def _sample(network: BiPointFlowNet, cloud: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Points of all levels, and the indices of each level into the one before."""
    points, indices = [cloud], {}
    for level, reduction in enumerate(network.variant.reductions, start=1):
        indices[level] = farthest_point_sample(points[-1], points[-1].shape[1] // reduction)
        points.append(gather(points[-1], indices[level]))
    return points, indices


def _encode(network: BiPointFlowNet, points: Sequence[Tensor], features: Tensor) -> list[Tensor]:
    encoded = [network.level0_1(network.level0(features))]
    for level, (expand, downsample, refine) in enumerate(network.encoder_stages(), start=1):
        neighbors = knn(points[level], points[level - 1], network.variant.encoder_neighbors)
        x = downsample(points[level], points[level - 1], expand(encoded[-1]), neighbors)
        encoded.append(x if refine is None else refine(x))
    return encoded
