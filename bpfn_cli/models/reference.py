# SPDX-License-Identifier: MIT
"""The network as published, operation by operation: one cloud after the other, each graph searched where it is used.

It has the modules and parameters of `BiPointFlowNet`, so their state dicts are interchangeable. The fast network is
compared with it in accuracy and speed, and MACs are counted on it. `BPFN_PLAIN=1` makes `build_model` choose it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.errors import UsageError
from bpfn_cli.models import layers
from bpfn_cli.models.bipointflownet import BiPointFlowNet, LevelOutput, collect
from bpfn_cli.models.layers import Correlation
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import gather
from bpfn_cli.ops.precision import current_precision
from bpfn_cli.ops.pyramid import check_clouds
from bpfn_cli.ops.reference import farthest_point_sample, knn, upsample, warp
from bpfn_cli.precision import Precision
from bpfn_cli.structures import LEVELS, FlowPyramid, PointPyramid

MOST_PLAIN_POINTS = 2**15  # it compares each point with each: with more, a pass takes minutes


class ReferenceNetwork(BiPointFlowNet):
    """The network of a `Variant`, computed as published. `output.pyramid` is None: it shares nothing."""

    def __init__(self, variant: Variant, num_points: int = PUBLISHED_POINTS):
        super().__init__(variant, num_points)
        for module in self.modules():
            module.__class__ = PUBLISHED.get(type(module), type(module))

    @property
    def shares_clouds(self) -> bool:
        """False: it computes every pair as published."""
        return False

    def forward(
        self,
        pc1: Tensor,
        pc2: Tensor,
        features1: Tensor | None = None,
        features2: Tensor | None = None,
        pyramid: PointPyramid | None = None,
    ) -> FlowPyramid:
        """`BiPointFlowNet.forward`; `pyramid` is ignored.

        Raises: ShapeError: as there. UsageError: a reduced precision is set.
        """
        if current_precision() is not Precision.float32:
            name = current_precision().value
            raise UsageError(f"precision {name}: the plain path is float32 throughout; unset BPFN_PLAIN or use 32")
        check_clouds(pc1, pc2, self.variant.least_points)
        (points1, indices1), (points2, indices2) = self._sample(pc1), self._sample(pc2)
        encoded1, expanded1 = self._encode_cloud(points1, pc1 if features1 is None else features1)
        encoded2, expanded2 = self._encode_cloud(points2, pc2 if features2 is None else features2)
        levels = self._decode_clouds(points1, points2, encoded1, encoded2)
        output = collect(levels, indices1, indices2, pyramid=None)
        return replace(output, encoder_source=expanded1, encoder_target=expanded2)

    def _decode_clouds(
        self, points1: list[Tensor], points2: list[Tensor], encoded1: list[Tensor], encoded2: list[Tensor]
    ) -> list[LevelOutput]:
        coarse1, coarse2, coarser = encoded1[LEVELS], encoded2[LEVELS], None
        levels: list[LevelOutput] = []
        for level in reversed(range(LEVELS)):
            source, target, context = points1[level], points2[level], self.context_blocks()[level]
            context1 = context(upsample(source, points1[level + 1], coarse1))
            context2 = context(upsample(target, points2[level + 1], coarse2))
            features = torch.cat([encoded1[level], context1], dim=-1), torch.cat([encoded2[level], context2], dim=-1)
            if coarser is not None:
                coarser = coarser.upsampled(partial(upsample, source, points1[level + 1]))
                target = warp(source, target, coarser.flow)
            graphs = self._search(source, target)
            coarser = self.estimate_level(level, (source, target), features, encoded1[level], coarser, *graphs)
            levels.insert(0, coarser)
            coarse1, coarse2 = coarser.source, coarser.target
        return levels

    def _search(self, source: Tensor, target: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Neighbors for the embedding and for the estimator, each searched as often as it is used."""
        k, own = self.variant.embedding_neighbors, self.variant.estimator_neighbors
        across = knn(source, target, k), knn(target, source, k), knn(source, target, k)
        return across, (knn(source, source, own), knn(source, source, own))

    def _sample(self, cloud: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Points of all levels, and the indices of each level into the one before."""
        points, indices = [cloud], {}
        for level, reduction in enumerate(self.variant.reductions, start=1):
            indices[level] = farthest_point_sample(points[-1], points[-1].shape[1] // reduction)
            points.append(gather(points[-1], indices[level]))
        return points, indices

    def _encode_cloud(self, points: Sequence[Tensor], features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        kept: list[Tensor] = []
        encoded = [self.level0_1(self.level0(features))]
        for level, (expand, downsample, refine) in enumerate(self.encoder_stages(), start=1):
            neighbors = knn(points[level], points[level - 1], self.variant.encoder_neighbors)
            expanded = expand(encoded[-1])
            if self.encoder_features:
                kept.append(expanded)
            x = downsample(points[level], points[level - 1], expanded, neighbors)
            encoded.append(x if refine is None else refine(x))
        return encoded, kept


class _PointwiseBlock(layers.PointwiseBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.composed_module(x.transpose(1, 2)).transpose(1, 2)


class _WeightNet(layers.WeightNet):
    def forward(self, offsets: Tensor) -> Tensor:
        x = offsets.permute(0, 3, 2, 1)
        for convolution, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            # A function, not a module: the published MACs leave it out.
            x = F.relu(norm(convolution(x)) if self.bn else convolution(x))
        return x.permute(0, 3, 2, 1)


class _PointConv(layers.PointConv):
    def forward(self, queries: Tensor, points: Tensor, features: Tensor, neighbors: Tensor) -> Tensor:
        offsets = gather(points, neighbors) - queries[:, :, None]
        grouped = torch.cat([offsets, gather(features, neighbors)], dim=-1)
        aggregate = grouped.transpose(2, 3) @ self.weightnet(offsets)  # (B, N, C + 3, c_mid)
        if self.separable:
            x = self.pointwise(self.conv(aggregate.permute(0, 2, 3, 1))).permute(0, 3, 1, 2).flatten(2)
        else:
            x = self.linear(aggregate.flatten(2))
        return self.relu(layers.apply_norm(self.bn_linear, x))


class _BidirectionalFlowEmbedding(layers.BidirectionalFlowEmbedding):
    def project(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.transpose(1, 2)).transpose(1, 2)

    def correlate(
        self, queries: Tensor, points: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, layers: Correlation
    ) -> Tensor:
        position, norm, block = layers
        offsets = gather(points, neighbors) - queries[:, :, None]
        x = position(offsets.permute(0, 3, 2, 1))
        x = x + gather(other, neighbors).permute(0, 3, 2, 1) + own.transpose(1, 2)[:, :, None]
        x = block.composed_module(self.relu(norm(x) if norm is not None else x))
        return x.amax(dim=2).transpose(1, 2)


class _FlowEstimator(layers.FlowEstimator):
    def project(self, features: Tensor) -> Tensor:
        return self.fc(features.transpose(1, 2)).transpose(1, 2)


PUBLISHED: dict[type[nn.Module], type[nn.Module]] = {
    layers.PointwiseBlock: _PointwiseBlock,
    layers.DepthwiseBlock: _PointwiseBlock,
    layers.WeightNet: _WeightNet,
    layers.PointConv: _PointConv,
    layers.BidirectionalFlowEmbedding: _BidirectionalFlowEmbedding,
    layers.FlowEstimator: _FlowEstimator,
}
