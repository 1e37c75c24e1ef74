# SPDX-License-Identifier: MIT
"""MobileBERT's progressive transfer: features, and where each point looks, level by level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.errors import ShapeError
from bpfn_cli.losses.features import FeatureDistance, feature_of, total
from bpfn_cli.losses.term import ALL_LEVELS, Card, DistillationLoss, Levels, Measured, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import gather
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class MobilebertSettings:
    levels: Levels = option(ALL_LEVELS, "levels compared, 0 the finest")
    attention: Annotated[float, Field(ge=0)] = option(1.0, "weight of attention beside features")
    progressive: Annotated[int, Field(ge=0)] = option(
        0, "epochs until the next finer level is unlocked; 0: all at once"
    )


def attention_logits(source: Tensor, target: Tensor, neighbors: Tensor) -> Tensor:
    """<u1_i, u2_k> / sqrt(C) over the neighbors k of each source point i: (B, N, K)."""
    looked_at = gather(target, neighbors)
    return (source[:, :, None] * looked_at).sum(dim=-1) / source.shape[-1] ** 0.5


def attention_distance(own: Tensor, other: Tensor) -> Tensor:
    """mean_i KL(softmax(other_i) || softmax(own_i)) of logits (B, N, K)."""
    log_own, log_other = own.log_softmax(dim=-1), other.log_softmax(dim=-1)
    return (log_other.exp() * (log_other - log_own)).sum(dim=-1).mean()


class MobilebertLoss(DistillationLoss):
    """Features and attention follow the teacher's, from the coarsest level to the finest."""

    card = Card(
        compares="features, and which target points each source point attends to",
        formula="mean over levels of [mean (A u1_s - u1_t)^2 + attention mean_i KL(a_t || a_s)], a = softmax over the "
        "teacher's 32 warped neighbors of <u1_i, u2_k> / sqrt(C); whole: L_gt + gamma kappa L",
        source="Sun et al., MobileBERT, ACL 2020: feature map transfer, attention transfer [from memory]",
        deviations=(
            "there is no attention in the network: it is defined by the bidirectional features, over the teacher's "
            "neighbors for both networks; free of adapters",
            "progressive: N unlocks level 3 first, then a finer one every N epochs; nothing is frozen before",
        ),
        adapters="where widths differ",
    )
    settings = MobilebertSettings

    def __init__(self, options: MobilebertSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.distance = FeatureDistance("source", options.levels, "l2", student, teacher)
        self.begin_epoch(0, 1)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Unlock levels, the coarsest first."""
        ranked = sorted(self.options.levels, reverse=True)
        count = len(ranked) if not self.options.progressive else 1 + epoch // self.options.progressive
        self.unlocked = tuple(ranked[:count])

    def reads(self) -> frozenset[str]:
        return frozenset({"bfe_source", "bfe_target", "bfe_neighbors"})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.distance(student, teacher, levels=self.unlocked)
        parts = {}
        for level, features in levels.items():
            parts[level] = features + self.options.attention * self._attention(level, student, teacher) / len(levels)
        figures = {"features": total(levels).detach(), "unlocked_levels": torch.tensor(float(len(levels)))}
        return Measured(total(parts), "1", parts, figures=figures)

    def hints(self) -> Iterator[tuple[str, int, int, int]]:
        return self.distance.hints()

    @staticmethod
    def _attention(level: int, student: FlowPyramid, teacher: FlowPyramid) -> Tensor:
        if level >= len(teacher.bfe_neighbors):
            raise ShapeError(f"hint attention at level {level} is missing: the teacher's output has no bfe_neighbors")
        neighbors = teacher.bfe_neighbors[level]
        own, other = (
            attention_logits(feature_of(output, "source", level), feature_of(output, "target", level), neighbors)
            for output in (student, teacher)
        )
        return attention_distance(own, other)
