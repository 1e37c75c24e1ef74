# SPDX-License-Identifier: MIT
"""Basic output distillation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses.supervised import measured
from bpfn_cli.losses.term import ALL_LEVELS, Card, DistillationLoss, Levels, Measured, check_flows, option
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class BasicSettings:
    norm: Literal["l2", "sq", "smooth_l1"] = option("l2", "of the difference of two flows: l2 in m, sq in m^2")
    levels: Levels = option(ALL_LEVELS, "levels compared, 0 the finest")


class BasicLoss(DistillationLoss):
    """The student's flow follows the teacher's."""

    card = Card(
        compares="flows",
        formula="L_kd = R(||s - t||), R(x) = sum_l a_l mean_b sum_n x_l; whole: (1 - gamma) L_gt + gamma L_kd",
        source="Hinton, Vinyals & Dean, NIPS-W 2014; regression form of Saputra et al., ICCV 2019, eq. 3 [second-hand]",
        deviations=(
            "unsquared by default and summed like the supervised loss, so that gamma weighs like with like; there is "
            "no temperature in regression",
            "the pointwise minimizer of the whole is then exactly the true flow for gamma < 1/2, the teacher's above",
        ),
    )
    settings = BasicSettings
    kind = "output"

    def reads(self) -> frozenset[str]:
        return frozenset({"flows"})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.options.levels
        check_flows(student, teacher, levels)
        return measured({i: self._distance(student.flows[i], teacher.flows[i]) for i in levels})

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if self.options.norm == "smooth_l1":
            return F.smooth_l1_loss(a, b, reduction="none").sum(dim=-1)
        distance = torch.linalg.vector_norm(a - b, dim=-1)
        return distance if self.options.norm == "l2" else distance.square()
