# SPDX-License-Identifier: MIT
"""Attentive imitation loss: the teacher's flow, the more the better the teacher is there."""

from __future__ import annotations

import torch

from bpfn_cli.config import settings
from bpfn_cli.losses.imitability import Imitability, ImitabilitySettings
from bpfn_cli.losses.supervised import measured
from bpfn_cli.losses.term import (
    ALL_LEVELS,
    Card,
    DistillationLoss,
    Levels,
    Measured,
    TeacherPasses,
    check_flows,
    option,
)
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class AilSettings(ImitabilitySettings):
    levels: Levels = option(ALL_LEVELS, "levels compared, 0 the finest")


class AilLoss(DistillationLoss):
    """`basic`, each point weighted by how well the teacher does there."""

    card = Card(
        compares="flows, where the teacher errs little",
        formula="L_kd = R(Phi ||s - t||), Phi = clamp(1 - e_t / q95, 0, 1); whole: (1 - gamma) L_gt + gamma L_kd",
        source="Saputra, de Gusmao, Almalioglu, Markham & Trigoni, ICCV 2019, eq. 8-10 [second-hand]",
        deviations=(
            "the paper's Phi = 1 - e/(max - min) is negative at the worst sample and pushes the student away there "
            "(phi: paper); the 95 % quantile keeps it in [0, 1] and one outlier from making it 1 everywhere",
            "a weight for each point (granularity: sample for one a scene); unsquared like the supervised loss",
            "the spread of errors is taken once over the training scenes with fixed augmentation",
        ),
    )
    settings = AilSettings
    kind = "output"

    def __init__(self, options: AilSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.imitability = Imitability(options)

    def prepare(self, passes: TeacherPasses) -> None:
        self.imitability.prepare(passes)

    def needs_preparation(self) -> bool:
        return self.imitability.wants_training_set

    def reads(self) -> frozenset[str]:
        return frozenset({"flows"})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.options.levels
        check_flows(student, teacher, levels)
        weights = self.imitability(teacher, batch)
        errors = {i: weights[i] * torch.linalg.vector_norm(student.flows[i] - teacher.flows[i], dim=-1) for i in levels}
        active = (weights[0] > 0).float().mean()
        return measured(errors, active=active, figures=self.imitability.figures(weights))
