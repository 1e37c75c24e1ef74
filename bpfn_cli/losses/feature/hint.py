# SPDX-License-Identifier: MIT
"""Hint distillation: the student's features follow the teacher's."""

from collections.abc import Iterator
from typing import ClassVar

from bpfn_cli.config import settings
from bpfn_cli.losses import features
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, levels_option, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class HintSettings:
    feature: features.Feature = option("source", "feature to compare")
    norm: features.Norm = features.norm_option()
    reduction: features.Reduction = features.reduction_option()
    levels: Levels = levels_option()


class HintLoss(DistillationLoss):
    """The bidirectional features of the source points follow the teacher's."""

    card = Card(
        compares="features of the source points",
        formula="D = mean over levels and b of mean_{n,c} |A F_s - F_t| / mean_{n,c} |F_t - mean_n F_t|; "
        "total: L_gt + gamma kappa D",
        source="FitNets, Romero et al., ICLR 2015, eq. 3 [not checked against the paper]; L1 form and 1x1 adapters of "
        "Chen et al., NIPS 2017, section 3.4 [as cited by later work]",
        deviations=(
            "one stage, trained jointly with the supervised loss; use objective.stage1_epochs for two stages",
            "each level is divided by the spread of the teacher's feature there; otherwise level 3 is most of the loss",
            "L1 instead of half the squared distance; an adapter only where widths differ",
            "kappa is set so that the gradient is rho times that of the supervised loss",
            "the compression reports' hint adds, without kappa, (1/n0) sum (e_s - e_t)^2 / 2 of the encoder's feature "
            "at level 3, n0 being the number of elements at level 0: feature: encoder_source, levels: [3], norm: "
            "half_l2, reduction: numel, with objective.w_hint: 1 and --loss basic",
        ),
        adapters="where widths differ",
        meaning="ground truth and the teacher's features of the first cloud",
    )
    settings: ClassVar[type] = HintSettings
    uses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: HintSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.distance = features.FeatureDistance(
            options.feature, options.levels, options.norm, student, teacher, reduction=options.reduction
        )

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        return features.mean_distance([self.distance], student, teacher, batch)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield features.hand_value("l1", 0.15)
        yield features.hand_value("l2", 0.09)
