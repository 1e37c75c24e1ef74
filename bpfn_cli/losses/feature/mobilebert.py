# SPDX-License-Identifier: MIT
"""MobileBERT's progressive transfer of features and attention, level by level."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.errors import ShapeError
from bpfn_cli.losses.features import SMALLEST_SPREAD, FeatureDistance, feature_of
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, levels_option, option, total
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import gather
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class MobilebertSettings:
    levels: Levels = levels_option()
    attention: Annotated[float, Field(ge=0)] = option(1.0, "weight of attention relative to features")
    progressive: Annotated[int, Field(ge=0)] = option(0, "epochs before each finer level is added; 0: all at once")


def attention_logits(source: Tensor, target: Tensor, neighbors: Tensor) -> Tensor:
    """<u1_i, u2_k> / sqrt(C) over the neighbors k of each source point i: (B, N, K)."""
    return (source[:, :, None] * gather(target, neighbors)).sum(dim=-1) / source.shape[-1] ** 0.5


def attention_distance(own: Tensor, other: Tensor) -> Tensor:
    """mean_i KL(softmax(other_i) || softmax(own_i)) of logits (B, N, K)."""
    log_own, log_other = own.log_softmax(dim=-1), other.log_softmax(dim=-1)
    return (log_other.exp() * (log_other - log_own)).sum(dim=-1).mean()


class MobilebertLoss(DistillationLoss):
    """Features and attention follow the teacher's, starting with the coarsest level."""

    card = Card(
        compares="features, and which target points each source point attends to",
        formula="mean over levels of [mean (A u1_s - u1_t)^2 / var u1_t + attention mean_i KL(a_t || a_s)], a = "
        "softmax over the teacher's 32 warped neighbors of <u1_i, u2_k> / sigma, sigma the spread of the teacher's "
        "products; total: L_gt + gamma kappa L",
        source="Sun et al., MobileBERT, ACL 2020: feature map transfer, attention transfer "
        "[not checked against the paper]",
        deviations=(
            "the network has no attention: it is defined by the bidirectional features, over the teacher's neighbors "
            "for both networks, without adapters",
            "each level is scaled by the teacher's spread there; otherwise level 3 is most of both parts",
            "progressive: N starts with level 3 and adds a finer level every N epochs; nothing is frozen",
        ),
        adapters="where widths differ",
        meaning="ground truth and the teacher's features and attention",
    )
    settings = MobilebertSettings
    uses = ("bfe_target", "bfe_neighbors")

    def __init__(self, options: MobilebertSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.distance = FeatureDistance("source", options.levels, "l2", student, teacher, reduction="relative")
        self.begin_epoch(0, 1)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        ranked = sorted(self.options.levels, reverse=True)
        count = len(ranked) if not self.options.progressive else 1 + epoch // self.options.progressive
        self.unlocked = tuple(ranked[:count])

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.distance(student, teacher, levels=self.unlocked)
        parts = {}
        for level, features in levels.items():
            parts[level] = features + self.options.attention * self._attention(level, student, teacher) / len(levels)
        figures = {"features": total(levels).detach(), "unlocked_levels": torch.tensor(float(len(levels)))}
        return Measured.sum_of(parts, "1", figures=figures)

    @staticmethod
    def _attention(level: int, student: FlowPyramid, teacher: FlowPyramid) -> Tensor:
        if level >= len(teacher.bfe_neighbors):
            raise ShapeError(f"hint attention at level {level} is missing: the teacher's output has no bfe_neighbors")
        neighbors = teacher.bfe_neighbors[level]
        own, other = (
            attention_logits(feature_of(output, "source", level), feature_of(output, "target", level), neighbors)
            for output in (student, teacher)
        )
        spread = (other - other.mean(dim=-1, keepdim=True)).square().mean(dim=(1, 2), keepdim=True).sqrt()
        spread = spread.clamp_min(SMALLEST_SPREAD)
        return attention_distance(own / spread, other / spread)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        generator = torch.Generator().manual_seed(0)
        source, target, other = torch.rand(3, 1, 5, 4, generator=generator)
        neighbors = torch.tensor([[[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 1]]])
        logits, shifted = (attention_logits(source, moved, neighbors) for moved in (target, target + 1.5))
        aim = attention_logits(other, target, neighbors)
        change = float(attention_distance(logits, aim) - attention_distance(shifted, aim))
        yield HandValue("change if a constant is added to all u2", round(change, 6), 0.0)
