# SPDX-License-Identifier: MIT
"""Bi-PointFlowNet: scene flow, coarse to fine, with features passed both ways between the clouds.

Source: Cheng & Ko, Bi-PointFlowNet: Bidirectional Learning for Point Cloud Based Scene Flow Estimation, ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.models.layers import (
    BidirectionalFlowEmbedding,
    BottleneckBlock,
    FlowEstimator,
    PointConv,
    PointwiseBlock,
    ResidualBlock,
    apply_linear,
)
from bpfn_cli.models.stages import stage
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import build_pyramid, interpolate, knn, warp
from bpfn_cli.ops.pyramid import (
    PyramidShape,
    build_cloud_pyramid,
    check_cloud,
    check_clouds,
    check_same_shape,
    join_pyramids,
)
from bpfn_cli.structures import LEVELS, CloudPyramid, EncodedCloud, FlowPyramid, PointPyramid


class LevelOutput(NamedTuple):
    """Flow (B, N_l, 3) and features (B, N_l, C) of one level, and the neighbors (B, N_l, k) used for the embedding."""

    flow: Tensor
    source: Tensor
    target: Tensor
    embedding: Tensor
    estimated: Tensor
    neighbors: Tensor

    def upsampled(self, to_finer: Callable[[Tensor], Tensor]) -> LevelOutput:
        """The same with flow and estimator features moved to the next finer level."""
        return self._replace(flow=to_finer(self.flow), estimated=to_finer(self.estimated))


class BiPointFlowNet(nn.Module):
    """The network of a `Variant`.

    Attributes:
        variant: its sizes.
        num_points: points of the densest clouds that it was trained on, which `bpfn predict` shows it at once; it
            accepts any number from `variant.least_points` up.
        encoder_features: whether outputs keep the encoder's features, for losses that compare them.
    """

    encoder_features = False

    def __init__(self, variant: Variant, num_points: int = PUBLISHED_POINTS):
        super().__init__()
        self.variant = variant
        self.num_points = num_points
        levels, bn, separable = variant.levels, variant.bn, variant.separable

        def block(inputs: int, outputs: int) -> nn.Module:
            if variant.bottleneck:
                return BottleneckBlock(inputs, outputs, bn, variant.bottleneck)
            return PointwiseBlock(inputs, outputs, bn)

        def refine(level: int) -> nn.Module:
            width = levels[level].width
            return ResidualBlock(width, bn, variant.residual[level]) if variant.residual else block(width, width)

        def down(level: int) -> PointConv:
            inputs, this = levels[level - 1].expanded, levels[level]
            return PointConv(inputs, this.width, this.c_mid, bn, norm=bn, separable=level in separable.encoder)

        self.level0 = block(3, levels[0].width)
        self.level0_1 = refine(0)
        self.level0_2 = block(levels[0].width, levels[0].expanded)
        self.level1 = down(1)
        self.level1_0 = refine(1)
        self.level1_1 = block(levels[1].width, levels[1].expanded)
        self.level2 = down(2)
        self.level2_0 = refine(2)
        self.level2_1 = block(levels[2].width, levels[2].expanded)
        self.level3 = down(3)
        self.level3_0 = refine(3)
        self.level3_1 = block(levels[3].width, levels[3].expanded)
        self.level4 = down(4)

        self.deconv4_3 = PointwiseBlock(levels[4].width, levels[3].context, bn)
        self.deconv3_2 = PointwiseBlock(levels[3].embedding, levels[2].context, bn)
        self.deconv2_1 = PointwiseBlock(levels[2].embedding, levels[1].context, bn)
        self.deconv1_0 = PointwiseBlock(levels[1].embedding, levels[0].context, bn)

        for index, level in enumerate(levels[:LEVELS]):
            from_coarser = levels[index + 1].estimator_features if index < LEVELS - 1 else 0
            inputs = level.width + from_coarser + level.embedding
            widths = inputs, level.estimator, level.estimator_features
            embedding = BidirectionalFlowEmbedding(level.width + level.context, level.embedding, bn)
            estimator = FlowEstimator(*widths, level.c_mid, bn, separable=index in separable.estimators)
            self.add_module(f"cross{index}", embedding)
            self.add_module(f"flow{index}", estimator)

    @property
    def pyramid_shape(self) -> PyramidShape:
        """What `build_pyramid` needs to know; equal for all named variants, so they can share pyramids."""
        variant = self.variant
        return PyramidShape(variant.reductions, variant.encoder_neighbors, variant.estimator_neighbors)

    def forward(
        self,
        pc1: Tensor,
        pc2: Tensor,
        features1: Tensor | None = None,
        features2: Tensor | None = None,
        pyramid: PointPyramid | None = None,
    ) -> FlowPyramid:
        """Estimate the flow from `pc1` to `pc2` at four levels.

        Args:
            pc1, pc2: (B, N, 3) metres.
            features1, features2: (B, N, 3) input features; the coordinates by default, as in every
                published training.
            pyramid: geometry of these clouds if known (`output.pyramid` of another network).
        Raises: ShapeError: clouds of another shape, with too few points, or with points that are not finite.
        """
        if pyramid is None:
            check_clouds(pc1, pc2, self.variant.least_points)
            with stage("geometry"):
                pyramid = build_pyramid(pc1, pc2, self.pyramid_shape)
        features1, features2 = pc1 if features1 is None else features1, pc2 if features2 is None else features2
        with stage("encoder"):
            encoded, expanded = self._encode(pyramid.stacked, torch.cat([features1, features2]))
        halves = [x.chunk(2) for x in expanded]
        source, target = [first for first, _ in halves], [second for _, second in halves]
        return replace(self._decode(pyramid, encoded), encoder_source=source, encoder_target=target)

    @property
    def shares_clouds(self) -> bool:
        """Whether `encode` and `estimate` may be used: in training, batch statistics belong to a pair."""
        return not self.training

    def encode(self, cloud: Tensor) -> EncodedCloud:
        """What depends on one cloud (B, N, 3) alone; see `estimate`.

        Raises: ShapeError: as `forward`. RuntimeError: `shares_clouds` is False.
        """
        if not self.shares_clouds:
            raise RuntimeError("encode needs a fast network in evaluation mode; call forward instead")
        check_cloud("cloud", cloud, self.variant.least_points)
        with stage("geometry"):
            pyramid = build_cloud_pyramid(cloud, self.pyramid_shape)
        with stage("encoder"):
            return EncodedCloud(pyramid, self._encode(pyramid, cloud)[0])

    def estimate(self, source: EncodedCloud, target: EncodedCloud) -> FlowPyramid:
        """What `forward` returns for the clouds given to `encode`. Raises: ShapeError: they differ in shape."""
        check_same_shape(source.pyramid.points[0], target.pyramid.points[0])
        pairs = zip(source.features, target.features, strict=True)
        return self._decode(join_pyramids(source.pyramid, target.pyramid), [torch.cat(pair) for pair in pairs])

    def encoder_stages(self) -> tuple[tuple[nn.Module, PointConv, nn.Module | None], ...]:
        """The encoder blocks of levels 1 to 4: to more channels, to fewer points, and refinement (none at level 4)."""
        return (
            (self.level0_2, self.level1, self.level1_0),
            (self.level1_1, self.level2, self.level2_0),
            (self.level2_1, self.level3, self.level3_0),
            (self.level3_1, self.level4, None),
        )

    def context_blocks(self) -> tuple[PointwiseBlock, ...]:
        """The blocks that make the context of levels 0 to 3 from the features of the next coarser level."""
        return self.deconv1_0, self.deconv2_1, self.deconv3_2, self.deconv4_3

    def estimate_level(
        self,
        level: int,
        clouds: tuple[Tensor, Tensor],
        features: Sequence[Tensor],
        encoded: Tensor,
        coarser: LevelOutput | None,
        neighbors: Sequence[Tensor],
        self_neighbors: Sequence[Tensor],
    ) -> LevelOutput:
        """Embed both clouds of a level and estimate its flow.

        Args:
            clouds: (B, N_l, 3) metres, the target warped. features: of both clouds, (B, N_l, C).
            encoded: (B, N_l, C) encoder features of the source cloud.
            coarser: flow and estimator features of the next coarser level, upsampled to this one.
            neighbors, self_neighbors: as `BidirectionalFlowEmbedding` and `FlowEstimator` take them.
        """
        source, target, embedding = getattr(self, f"cross{level}")(*clouds, *features, *neighbors)
        inputs = [encoded, embedding] if coarser is None else [encoded, coarser.estimated, embedding]
        estimator: FlowEstimator = getattr(self, f"flow{level}")
        estimated, flow = estimator(clouds[0], torch.cat(inputs, dim=-1), *self_neighbors)
        flow = flow if coarser is None else coarser.flow + flow
        return LevelOutput(flow, source, target, embedding, estimated, neighbors[0])

    def _encode(self, stacked: CloudPyramid, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features F_0 .. F_3 and those of level 4, of both clouds in one batch, or of one; and those of levels 0 to 3
        after the expansion, which only `encoder_features` keeps in memory."""
        siamese = self._siamese
        kept: list[Tensor] = []
        encoded = [siamese(self.level0_1, siamese(self.level0, features))]
        for level, (expand, downsample, refine) in enumerate(self.encoder_stages(), start=1):
            expanded = siamese(expand, encoded[-1])
            if self.encoder_features:
                kept.append(expanded)
            points, finer = stacked.points[level], stacked.points[level - 1]
            x = siamese(downsample, points, finer, expanded, stacked.down_neighbors[level])
            encoded.append(x if refine is None else siamese(refine, x))
        return encoded, kept

    def _decode(self, pyramid: PointPyramid, encoded: list[Tensor]) -> FlowPyramid:
        source, target = pyramid.source, pyramid.target
        coarse, coarser, k = encoded[LEVELS], None, self.variant.embedding_neighbors
        levels: list[LevelOutput] = []
        for level in reversed(range(LEVELS)):
            with stage(f"level{level}"):
                pc1, pc2 = source.points[level], target.points[level]
                context = self._upsampled_context(self.context_blocks()[level], pyramid.stacked, level, coarse)
                features = torch.cat([encoded[level], context], dim=-1).chunk(2)
                if coarser is not None:
                    up = {"neighbors": source.up_neighbors[level], "weights": source.up_weights[level]}
                    coarser = coarser.upsampled(partial(interpolate, **up))
                with stage("geometry"):
                    pc2 = pc2 if coarser is None else warp(pc1, pc2, coarser.flow)
                    forward, backward = knn(pc1, pc2, k), knn(pc2, pc1, k)
                graphs, own = (forward, backward, forward), source.self_neighbors[level]
                encoded1 = encoded[level].chunk(2)[0]
                coarser = self.estimate_level(level, (pc1, pc2), features, encoded1, coarser, graphs, (own, own))
                levels.insert(0, coarser)
                coarse = torch.cat([coarser.source, coarser.target])
        return collect(levels, source.sample_indices, target.sample_indices, pyramid)

    def _upsampled_context(self, block: PointwiseBlock, stacked: CloudPyramid, level: int, coarse: Tensor) -> Tensor:
        """Apply `block` to the features of level + 1, at the points of `level`."""
        neighbors, weights = stacked.up_neighbors[level], stacked.up_weights[level]
        # The weights sum to one, so the linear map may come first, where there are fewer points.
        return self._siamese(block.finish, interpolate(apply_linear(block.linear, coarse), neighbors, weights))

    def _siamese(self, block: Callable[..., Tensor], *stacked: Tensor) -> Tensor:
        """Apply `block` to both clouds: in one batch, or in turn where batch statistics are taken."""
        if not (self.variant.bn and self.training):
            return block(*stacked)
        halves = [x.chunk(2) for x in stacked]
        return torch.cat([block(*(half[cloud] for half in halves)) for cloud in (0, 1)])


def collect(
    levels: list[LevelOutput], indices1: dict[int, Tensor], indices2: dict[int, Tensor], pyramid: PointPyramid | None
) -> FlowPyramid:
    """Arrange the outputs of the levels by kind."""
    flows, source, target, embedding, estimated, neighbors = map(list, zip(*levels, strict=True))
    return FlowPyramid(flows, indices1, indices2, source, target, embedding, estimated, pyramid, neighbors)
