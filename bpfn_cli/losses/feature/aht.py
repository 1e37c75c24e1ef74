# SPDX-License-Identifier: MIT
"""Attentive hint training: the teacher's features, the more the better the teacher is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bpfn_cli.config import settings
from bpfn_cli.losses.features import FIELDS, FeatureDistance, Norm, total
from bpfn_cli.losses.imitability import Imitability, ImitabilitySettings
from bpfn_cli.losses.term import ALL_LEVELS, Card, DistillationLoss, Levels, Measured, TeacherPasses, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class AhtSettings(ImitabilitySettings):
    feature: Literal["source", "embedding", "estimator"] = option("source", "which feature of the source points")
    norm: Norm = option("l1", "l1, l2 or fvu (fraction of variance unexplained, unit-free)")
    levels: Levels = option(ALL_LEVELS, "levels compared, 0 the finest")


class AhtLoss(DistillationLoss):
    """`hint`, each point weighted by how well the teacher does there."""

    card = Card(
        compares="features of the source points, where the teacher errs little",
        formula="D = mean over levels of mean_{b,n} [Phi mean_c |A F_s - F_t|], Phi as in ail; L_gt + gamma kappa D",
        source="Saputra et al., ICCV 2019, eq. 12 [second-hand]",
        deviations=(
            "L1 as in hint, not squared (norm: l2 for that); Phi as in ail",
            "the paper trains hints first, freezes, then the output: objective.stage1_epochs begins with hints alone, "
            "and nothing is frozen after",
        ),
        adapters="where widths differ",
    )
    settings = AhtSettings

    def __init__(self, options: AhtSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.imitability = Imitability(options)
        self.distance = FeatureDistance(options.feature, options.levels, options.norm, student, teacher)

    def prepare(self, passes: TeacherPasses) -> None:
        self.imitability.prepare(passes)

    def needs_preparation(self) -> bool:
        return self.imitability.wants_training_set

    def reads(self) -> frozenset[str]:
        return frozenset({"flows", FIELDS[self.options.feature]})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        weights = self.imitability(teacher, batch)
        levels = self.distance(student, teacher, weights)
        active = (weights[0] > 0).float().mean()
        return Measured(total(levels), "unit of the features", levels, active, self.imitability.figures(weights))

    def hints(self) -> Iterator[tuple[str, int, int, int]]:
        return self.distance.hints()
