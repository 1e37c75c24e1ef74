# SPDX-License-Identifier: MIT
"""Pair-wise similarity distillation: which points look alike, not what they look like."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.errors import ShapeError
from bpfn_cli.losses.features import FIELDS, feature_of
from bpfn_cli.losses.term import Card, DistillationLoss, Measured, check_same_points, option, spread_rows
from bpfn_cli.ops import gather
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid


@settings
class PairwiseSettings:
    feature: Literal["source", "target", "embedding", "estimator"] = option("source", "whose similarities")
    level: Annotated[int, Field(ge=0, lt=LEVELS)] = option(3, "level it is taken from, 0 the finest")
    points: Annotated[int, Field(ge=2, le=4096)] = option(512, "most points compared with each other")
    detach_norms: bool = option(True, "no gradient through the lengths of features, as in the official code")


def similarities(features: Tensor, detach_norms: bool) -> Tensor:
    """Cosines (B, M, M) of features (B, M, C)."""
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(1e-8)
    units = features / (length.detach() if detach_norms else length)
    return units @ units.mT


class PairwiseLoss(DistillationLoss):
    """Cosine similarities among the points of a cloud follow the teacher's."""

    card = Card(
        compares="cosine similarities among features of one cloud",
        formula="mean_b sum_ij (A_s - A_t)^2 / n^2, A = cosine similarity; whole: L_gt + gamma kappa L",
        source="Liu et al., Structured Knowledge Distillation, CVPR 2019 [read in the authors' code]",
        deviations=(
            "points of a coarse level instead of max-pooled pixels; free of adapters",
            "lambda = 10 is taken over by kappa; with --loss adversarial it is the paper's whole method",
        ),
    )
    settings = PairwiseSettings

    def reads(self) -> frozenset[str]:
        return frozenset({FIELDS[self.options.feature]})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        options = self.options
        check_same_points(student, teacher)
        own, other = (feature_of(output, options.feature, options.level) for output in (student, teacher))
        if own.shape[:2] != other.shape[:2]:
            raise ShapeError(
                f"hint {options.feature} at level {options.level}: student {tuple(own.shape)}, "
                f"teacher {tuple(other.shape)}"
            )
        rows = spread_rows(student, options.level, options.points)
        difference = similarities(gather(own, rows), options.detach_norms) - similarities(
            gather(other, rows), options.detach_norms
        )
        return Measured(difference.square().mean(dim=(1, 2)).mean(), "1")
