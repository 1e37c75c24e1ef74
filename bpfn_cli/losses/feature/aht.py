# SPDX-License-Identifier: MIT
"""Attentive hint training: hints, weighted towards points where the teacher is accurate."""

from collections.abc import Iterator

from bpfn_cli.config import settings
from bpfn_cli.losses import features
from bpfn_cli.losses.feature.hint import HintLoss, HintSettings
from bpfn_cli.losses.imitability import AttentiveLoss, ImitabilitySettings, phi_by_hand, weight_details
from bpfn_cli.losses.term import Card, HandValue, Measured
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class AhtSettings(HintSettings, ImitabilitySettings):
    """The options of both."""

    feature: features.SourceFeature = features.feature_option()


class AhtLoss(AttentiveLoss, HintLoss):
    """`hint` with each point weighted by the teacher's accuracy there."""

    card = Card(
        compares="features of the source points, where the teacher is accurate",
        formula="D as in hint, of Phi |A F_s - F_t|, Phi as in ail; total: L_gt + gamma kappa D",
        source="Saputra et al., ICCV 2019, eq. 12 [as cited by later work]",
        deviations=(
            "L1 as in hint, not squared (norm: l2 for that); Phi as in ail",
            "the paper trains hints first, freezes, then trains the output: objective.stage1_epochs starts with hints "
            "alone, and nothing is frozen afterwards",
        ),
        adapters="where widths differ",
        meaning="hint, weighted towards points where the teacher is accurate",
    )
    settings = AhtSettings
    uses = ("flows",)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        weights = self.imitability(teacher, batch)
        distances = self.distance(student, teacher, weights, samples=batch.step_samples)
        return Measured.sum_of(distances, self.distance.unit, **weight_details(weights))

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield HandValue("the paper's Phi in the middle", phi_by_hand("paper", 1), 0.375)
