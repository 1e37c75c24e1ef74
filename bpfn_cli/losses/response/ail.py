# SPDX-License-Identifier: MIT
"""Attentive imitation loss: output distillation, weighted towards points where the teacher is accurate."""

from collections.abc import Iterator

from bpfn_cli.config import settings
from bpfn_cli.losses.imitability import AttentiveLoss, ImitabilitySettings, phi_by_hand, weight_details
from bpfn_cli.losses.supervised import flow_distance, measured
from bpfn_cli.losses.term import Card, HandValue, Levels, Measured, check_flows, levels_option
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class AilSettings(ImitabilitySettings):
    levels: Levels = levels_option()


class AilLoss(AttentiveLoss):
    """`basic` with each point weighted by the teacher's accuracy there."""

    card = Card(
        compares="flows, where the teacher is accurate",
        formula="L_kd = R(Phi ||s - t||), Phi = clamp(1 - e_t / q95, 0, 1); total: (1 - gamma) L_gt + gamma L_kd",
        source="Saputra, de Gusmao, Almalioglu, Markham & Trigoni, ICCV 2019, eq. 8-10 [from secondary sources]",
        deviations=(
            "the paper's Phi = 1 - e/(max - min) is negative at the worst sample and pushes the student away there "
            "(phi: paper); the 95 % quantile keeps it in [0, 1], and a single outlier cannot make it 1 everywhere",
            "one weight per point (granularity: sample for one per scene); unsquared like the supervised loss",
            "the spread of errors is measured once on the training scenes with fixed augmentation",
        ),
        meaning="basic, weighted towards points where the teacher is accurate",
    )
    settings = AilSettings
    uses = ("flows",)
    kind = "output"

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.options.levels
        check_flows(student, teacher, levels)
        weights = self.imitability(teacher, batch)
        errors = {level: weights[level] * flow_distance(student, teacher, level) for level in levels}
        return measured(errors, **weight_details(weights))

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield HandValue("the paper's Phi at the best", phi_by_hand("paper", 0), 0.75)
        yield HandValue("the paper's Phi at the worst, negative", phi_by_hand("paper", 2), -0.25)
        yield HandValue("minmax Phi at the best", phi_by_hand("minmax", 0), 1.0)
        yield HandValue("minmax Phi in the middle", phi_by_hand("minmax", 1), 0.625)
