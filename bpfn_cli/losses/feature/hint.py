# SPDX-License-Identifier: MIT
"""Hint distillation: the student's features follow the teacher's."""

from __future__ import annotations

from collections.abc import Iterator

from bpfn_cli.config import settings
from bpfn_cli.losses.features import (
    FIELDS,
    FeatureDistance,
    Norm,
    SourceFeature,
    distance_of_one_channel,
    feature_option,
    norm_option,
    total,
)
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, levels_option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class HintSettings:
    feature: SourceFeature = feature_option()
    norm: Norm = norm_option()
    levels: Levels = levels_option()


class HintLoss(DistillationLoss):
    """The bidirectional features of the source points follow the teacher's."""

    card = Card(
        compares="features of the source points",
        formula="D = mean over levels of mean_{b,n,c} |A F_s - F_t|; total: L_gt + gamma kappa D",
        source="FitNets, Romero et al., ICLR 2015, eq. 3 [from memory]; L1 form and 1x1 adapters of Chen et al., "
        "NIPS 2017, section 3.4 [from secondary sources]",
        deviations=(
            "one stage, trained jointly with the supervised loss; use objective.stage1_epochs for two stages",
            "L1 instead of half the squared distance; an adapter only where widths differ",
            "kappa is set once so that the gradient is rho times that of the supervised loss",
        ),
        adapters="where widths differ",
        meaning="ground truth and the teacher's features of the first cloud",
    )
    settings = HintSettings

    def __init__(self, options: HintSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.distance = FeatureDistance(options.feature, options.levels, options.norm, student, teacher)

    def reads(self) -> frozenset[str]:
        return frozenset({FIELDS[self.options.feature]})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.distance(student, teacher)
        return Measured(total(levels), "unit of the features", levels)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield HandValue("0.6 in one of four channels, l1", distance_of_one_channel("l1"), 0.15)
        yield HandValue("0.6 in one of four channels, l2", distance_of_one_channel("l2"), 0.09)
