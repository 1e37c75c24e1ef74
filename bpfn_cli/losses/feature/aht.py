# SPDX-License-Identifier: MIT
"""Attentive hint training: hints, weighted towards points where the teacher is accurate."""

from __future__ import annotations

from collections.abc import Iterator

from bpfn_cli.config import settings
from bpfn_cli.losses.features import (
    FIELDS,
    FeatureDistance,
    Norm,
    SourceFeature,
    feature_option,
    norm_option,
    total,
)
from bpfn_cli.losses.imitability import AttentiveLoss, ImitabilitySettings, phi_by_hand
from bpfn_cli.losses.term import Card, HandValue, Levels, Measured, levels_option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class AhtSettings(ImitabilitySettings):
    feature: SourceFeature = feature_option()
    norm: Norm = norm_option()
    levels: Levels = levels_option()


class AhtLoss(AttentiveLoss):
    """`hint` with each point weighted by the teacher's accuracy there."""

    card = Card(
        compares="features of the source points, where the teacher is accurate",
        formula="D = mean over levels of mean_{b,n} [Phi mean_c |A F_s - F_t|], Phi as in ail; "
        "total: L_gt + gamma kappa D",
        source="Saputra et al., ICCV 2019, eq. 12 [from secondary sources]",
        deviations=(
            "L1 as in hint, not squared (norm: l2 for that); Phi as in ail",
            "the paper trains hints first, freezes, then trains the output: objective.stage1_epochs starts with hints "
            "alone, and nothing is frozen afterwards",
        ),
        adapters="where widths differ",
        meaning="hint, weighted towards points where the teacher is accurate",
    )
    settings = AhtSettings

    def __init__(self, options: AhtSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.distance = FeatureDistance(options.feature, options.levels, options.norm, student, teacher)

    def reads(self) -> frozenset[str]:
        return frozenset({"flows", FIELDS[self.options.feature]})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        weights = self.imitability(teacher, batch)
        levels = self.distance(student, teacher, weights)
        active = (weights[0] > 0).float().mean()
        return Measured(total(levels), "unit of the features", levels, active, self.imitability.figures(weights))

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield HandValue("the paper's Phi in the middle", phi_by_hand("paper", 1), 0.375)
