# SPDX-License-Identifier: MIT
"""Pair-wise similarity distillation: the similarities between points, not their features."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses import term
from bpfn_cli.losses.features import FIELDS, Feature, feature_of
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Level, Measured, option
from bpfn_cli.ops import gather
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class PairwiseSettings:
    feature: Feature = option("source", "feature whose similarities are compared")
    level: Level = option(3, "level of the feature; 0 is the finest")
    points: Annotated[int, Field(ge=2, le=4096)] = option(512, "largest number of points")
    detach_norms: bool = option(True, "no gradient through the norms of the features, as in the official code")


def similarities(features: Tensor, detach_norms: bool) -> Tensor:
    """Cosines (B, M, M) of features (B, M, C)."""
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(1e-8)
    units = features / (length.detach() if detach_norms else length)
    return units @ units.mT


class PairwiseLoss(DistillationLoss):
    """Cosine similarities among the points of a cloud follow the teacher's."""

    card = Card(
        compares="cosine similarities among features of one cloud",
        formula="mean_b sum_ij (A_s - A_t)^2 / n^2, A = cosine similarity; total: L_gt + gamma kappa L",
        source="Liu et al., Structured Knowledge Distillation, CVPR 2019 [checked against the authors' code]",
        deviations=(
            "points of a coarse level instead of max-pooled pixels; no adapters",
            "kappa replaces lambda = 10; the paper's whole method has two more terms, a pixel-wise one on the outputs "
            "and a critic: --loss basic --loss pairwise --loss adversarial",
        ),
        meaning="ground truth and the similarities among the teacher's features",
    )
    settings = PairwiseSettings
    exact_gradient_options: ClassVar[Mapping[str, Any]] = {"detach_norms": False}

    def reads(self) -> frozenset[str]:
        return frozenset({FIELDS[self.options.feature]})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        options = self.options
        term.check_same_points(student, teacher)
        own, other = (feature_of(output, options.feature, options.level) for output in (student, teacher))
        term.check_shapes(f"hint {options.feature}", options.level, own[..., 0], other[..., 0])
        rows = term.spread_rows(student, options.level, options.points)
        first, second = (similarities(gather(feature, rows), options.detach_norms) for feature in (own, other))
        return Measured((first - second).square().mean(dim=(1, 2)).mean(), "1")

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
        y = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
        value = float((similarities(x, False) - similarities(y, False)).square().mean())
        yield HandValue("columns (1,0) (0,1) (1,1) and (1,0) (1,0) (1,1)", value, 0.2222222)
