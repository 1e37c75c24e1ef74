# SPDX-License-Identifier: MIT
"""Attentive imitation loss: output distillation, weighted towards points where the teacher is accurate."""

from collections.abc import Iterator

from bpfn_cli.config import settings
from bpfn_cli.losses.imitability import AttentiveLoss, ImitabilitySettings, phi_by_hand, weight_details
from bpfn_cli.losses.supervised import NOT_ZERO, Target, flow_distance, measured, target_of, target_option
from bpfn_cli.losses.term import Card, HandValue, Levels, Measured, check_flows, levels_option
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid


@settings
class AilSettings(ImitabilitySettings):
    target: Target = target_option()
    levels: Levels = levels_option()


class AilLoss(AttentiveLoss):
    """`basic` with each point weighted by the teacher's accuracy there."""

    card = Card(
        compares="flows, where the teacher is accurate",
        formula="L_kd = R(Phi / mean Phi ||s_l - t_0||), Phi = clamp(1 - e_t / q95, 0, 1), e_t the error of t_0, the "
        "teacher's finest flow; total: (1 - gamma) L_gt + gamma L_kd",
        source="Saputra, de Gusmao, Almalioglu, Markham & Trigoni, ICCV 2019, eq. 8-10 [as cited by later work]",
        deviations=(
            "the paper's Phi = 1 - e/(max - min) is negative at the worst sample and pushes the student away there "
            "(phi: paper); the 95 % quantile keeps it in [0, 1], and a single outlier cannot make it 1 everywhere",
            "divided by the mean of Phi over the training scenes, so that gamma is the share of the teacher as in "
            "basic; not with phi: paper",
            "one weight per point (granularity: sample for one per scene); unsquared like the supervised loss",
            "the compression reports' form has one weight per batch, 1 - R(e_t) / (max - min) over the training "
            "batches, with all the teacher's levels in R: granularity: batch, phi: paper; their gamma is the share of "
            "the truth, so their 0.3 is objective.gamma: 0.7",
            "the spread of errors is measured once on the training scenes with fixed augmentation",
        ),
        never_zero=NOT_ZERO,
        meaning="basic, weighted towards points where the teacher is accurate",
    )
    settings = AilSettings
    uses = ("flows",)
    kind = "output"

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.options.levels
        check_flows(student, teacher, levels)
        weights = self.imitability(teacher, batch)
        scales = [1.0] * LEVELS if self.options.phi == "paper" else self.imitability.scales(teacher, batch)
        teacher = target_of(teacher, self.options.target)
        errors = {level: scales[level] * weights[level] * flow_distance(student, teacher, level) for level in levels}
        return measured(errors, **weight_details(weights))

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield HandValue("the paper's Phi at the best", phi_by_hand("paper", 0), 0.75)
        yield HandValue("the paper's Phi at the worst, negative", phi_by_hand("paper", 2), -0.25)
        yield HandValue("minmax Phi at the best", phi_by_hand("minmax", 0), 1.0)
        yield HandValue("minmax Phi in the middle", phi_by_hand("minmax", 1), 0.625)
