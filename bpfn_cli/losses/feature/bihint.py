# SPDX-License-Identifier: MIT
"""Bidirectional hint distillation: the features of both clouds follow the teacher's."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import nn

from bpfn_cli.config import settings
from bpfn_cli.losses.features import UNIT, Feature, FeatureDistance, Norm, hand_value, norm_option
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, levels_option, option, total
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

_BRANCHES: dict[str, tuple[Feature, ...]] = {
    "src": ("source",),
    "src+tgt": ("source", "target"),
    "src+tgt+emb": ("source", "target", "embedding"),
}


@settings
class BihintSettings:
    branches: Literal["src", "src+tgt", "src+tgt+emb"] = option("src+tgt", "features to compare, with equal weights")
    norm: Norm = norm_option()
    levels: Levels = levels_option()


class BihintLoss(DistillationLoss):
    """The features of both directions, cloud 1 to 2 and cloud 2 to 1, follow the teacher's."""

    card = Card(
        compares="features of source and target points",
        formula="D = 1/2 [D(A1 u1_s, u1_t) + D(A2 u2_s, u2_t)], D as in hint, u1 the features of the source points "
        "with neighbors in cloud 2, u2 those of the target points with neighbors in cloud 1; "
        "total: L_gt + gamma kappa D",
        source="our own definition; the reports name this loss but do not define it",
        deviations=(
            "each branch has its own adapters, since the two branches end in different projections",
            "u2 is needed: a hint on u1 alone gives the target projection of cross0 no gradient",
        ),
        adapters="where widths differ",
        meaning="ground truth and the teacher's features of both clouds",
    )
    settings = BihintSettings
    uses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: BihintSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.branches = nn.ModuleList(
            FeatureDistance(feature, options.levels, options.norm, student, teacher)
            for feature in _BRANCHES[options.branches]
        )

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        found = [branch(student, teacher) for branch in self.branches]
        levels = {level: total({i: branch[level] for i, branch in enumerate(found)}) / len(found) for level in found[0]}
        return Measured.sum_of(levels, UNIT)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield hand_value("l1", 0.15)
