# SPDX-License-Identifier: MIT
"""Bidirectional hint distillation: the features of both clouds follow the teacher's."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import nn

from bpfn_cli.config import settings
from bpfn_cli.losses.features import (
    Feature,
    FeatureDistance,
    Norm,
    Reduction,
    hand_value,
    mean_distance,
    norm_option,
    reduction_option,
)
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, levels_option, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

_BRANCHES: dict[str, tuple[Feature, ...]] = {
    "src": ("source",),
    "src+tgt": ("source", "target"),
    "src+tgt+emb": ("source", "target", "embedding"),
    "encoder": ("encoder_source", "encoder_target"),
}


@settings
class BihintSettings:
    branches: Literal["src", "src+tgt", "src+tgt+emb", "encoder"] = option(
        "src+tgt", "features to compare, with equal weights; encoder: the encoder's features of both clouds"
    )
    norm: Norm = norm_option()
    reduction: Reduction = reduction_option()
    levels: Levels = levels_option()


class BihintLoss(DistillationLoss):
    """The features of both directions, cloud 1 to 2 and cloud 2 to 1, follow the teacher's."""

    card = Card(
        compares="features of source and target points",
        formula="D = 1/2 [D(A1 u1_s, u1_t) + D(A2 u2_s, u2_t)], D as in hint, u1 the features of the source points "
        "with neighbors in cloud 2, u2 those of the target points with neighbors in cloud 1; "
        "total: L_gt + gamma kappa D",
        source="our own definition; the compression reports' form is an option",
        deviations=(
            "each branch has its own adapters, since the two branches end in different projections",
            "u2 is needed: a hint on u1 alone gives the target projection of cross0 no gradient",
            "the reports' bihint is beta [basic] + (1 - beta) [S1 + S2] / 2, S the plain sum of (e_s - e_t)^2 / 2 of "
            "the encoder's features at level 3, without kappa: branches: encoder, levels: [3], norm: half_l2, "
            "reduction: sum, with objective.beta: 0.8 and --loss basic",
        ),
        adapters="where widths differ",
        meaning="ground truth and the teacher's features of both clouds",
    )
    settings = BihintSettings
    uses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: BihintSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.branches = nn.ModuleList(
            FeatureDistance(feature, options.levels, options.norm, student, teacher, reduction=options.reduction)
            for feature in _BRANCHES[options.branches]
        )

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        return mean_distance(self.branches, student, teacher, batch)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield hand_value("l1", 0.15)
