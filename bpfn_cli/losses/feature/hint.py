# SPDX-License-Identifier: MIT
"""Hint distillation: the student's features follow the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bpfn_cli.config import settings
from bpfn_cli.losses.features import FIELDS, FeatureDistance, Norm, total
from bpfn_cli.losses.term import ALL_LEVELS, Card, DistillationLoss, Levels, Measured, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class HintSettings:
    feature: Literal["source", "embedding", "estimator"] = option("source", "which feature of the source points")
    norm: Norm = option("l1", "l1, l2 or fvu (fraction of variance unexplained, unit-free)")
    levels: Levels = option(ALL_LEVELS, "levels compared, 0 the finest")


class HintLoss(DistillationLoss):
    """The bidirectional features of the source points follow the teacher's."""

    card = Card(
        compares="features of the source points",
        formula="D = mean over levels of mean_{b,n,c} |A F_s - F_t|; whole: L_gt + gamma kappa D",
        source="FitNets, Romero et al., ICLR 2015, eq. 3 [from memory]; L1 form and 1x1 adapters of Chen et al., "
        "NIPS 2017, section 3.4 [second-hand]",
        deviations=(
            "one stage, trained jointly with the supervised loss; two stages with objective.stage1_epochs",
            "L1 instead of half the squared distance; an adapter only where widths differ",
            "kappa is set once so that the gradient is rho times the supervised one",
        ),
        adapters="where widths differ",
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

    def hints(self) -> Iterator[tuple[str, int, int, int]]:
        return self.distance.hints()
