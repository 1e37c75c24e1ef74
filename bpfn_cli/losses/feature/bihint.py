# SPDX-License-Identifier: MIT
"""Bidirectional hint distillation: the features of both clouds follow the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from bpfn_cli.config import settings
from bpfn_cli.losses.features import FIELDS, Feature, FeatureDistance, Norm, total
from bpfn_cli.losses.term import ALL_LEVELS, Card, DistillationLoss, Levels, Measured, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

_BRANCHES: dict[str, tuple[Feature, ...]] = {
    "src": ("source",),
    "src+tgt": ("source", "target"),
    "src+tgt+emb": ("source", "target", "embedding"),
}


@settings
class BihintSettings:
    branches: Literal["src", "src+tgt", "src+tgt+emb"] = option("src+tgt", "features compared, of equal weight")
    norm: Norm = option("l1", "l1, l2 or fvu (fraction of variance unexplained, unit-free)")
    levels: Levels = option(ALL_LEVELS, "levels compared, 0 the finest")


class BihintLoss(DistillationLoss):
    """The features that look into cloud 2 and those that look into cloud 1 follow the teacher's."""

    card = Card(
        compares="features of source and target points",
        formula="D = 1/2 [D(A1 u1_s, u1_t) + D(A2 u2_s, u2_t)], D as in hint, u1 the source points looking into cloud "
        "2, u2 the target points looking into cloud 1; whole: L_gt + gamma kappa D",
        source="our own definition of a loss that the reports name and leave open",
        deviations=(
            "each branch has adapters of its own, since the two leave through different projections",
            "a hint on u1 alone gives exactly no gradient to the target projection of cross0",
        ),
        adapters="where widths differ",
    )
    settings = BihintSettings

    def __init__(self, options: BihintSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.branches = nn.ModuleList(
            FeatureDistance(feature, options.levels, options.norm, student, teacher)
            for feature in _BRANCHES[options.branches]
        )

    def reads(self) -> frozenset[str]:
        return frozenset(FIELDS[feature] for feature in _BRANCHES[self.options.branches])

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        found = [branch(student, teacher) for branch in self.branches]
        levels = {level: total({i: branch[level] for i, branch in enumerate(found)}) / len(found) for level in found[0]}
        return Measured(total(levels), "unit of the features", levels)

    def hints(self) -> Iterator[tuple[str, int, int, int]]:
        for branch in self.branches:
            yield from branch.hints()  # type: ignore[operator]
