# SPDX-License-Identifier: MIT
"""Teacher-bounded regression: an extra push wherever the student is worse than the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses.features import total
from bpfn_cli.losses.supervised import errors_to_truth, known_points, reduce_by_level
from bpfn_cli.losses.term import ALL_LEVELS, Card, DistillationLoss, Levels, Measured, check_flows, option
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid


@settings
class BoundedSettings:
    gate: Literal["squared", "epe"] = option("squared", "squared: e_s^2 + m > e_t^2 (m in m^2); epe: e_s + m > e_t (m)")
    m: Annotated[float, Field(ge=0)] = option(0.0, "margin, m^2 or m by gate: how much better than the teacher to be")
    mode: Literal["gt", "imitate"] = option("gt", "where the gate is open: gt, the squared error; imitate, ||s - t||")
    levels: Levels = option(ALL_LEVELS, "levels compared, 0 the finest")


def gates(student_error: Tensor, teacher_error: Tensor, gate: str, m: float) -> Tensor:
    """Where the student is not better than the teacher by the margin: bool."""
    if gate == "squared":
        return student_error.square() + m > teacher_error.square()
    return student_error + m > teacher_error


class BoundedLoss(DistillationLoss):
    """The teacher only opens a gate; what passes is the error to the truth."""

    card = Card(
        compares="errors to the truth of student and teacher",
        formula="L_b = R(gate e_s^2), gate = 1 where e_s^2 + m > e_t^2; whole: L_gt + gamma kappa L_b",
        source="Chen, Choi, Yu, Han & Chandraker, NIPS 2017, section 3.3, eq. 4 [second-hand]; mode imitate: "
        "Saputra et al., ICCV 2019, eq. 4-5 [second-hand]",
        deviations=(
            "nu = 0.5 of the paper is taken over by kappa, which gives every added loss the same push",
            "m is unpublished; 0 by default (with m > 0 the value is not 0 for a student that equals its teacher)",
            "points without a known flow do not count",
        ),
    )
    settings = BoundedSettings

    def reads(self) -> frozenset[str]:
        return frozenset({"flows"})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        check_flows(student, teacher, tuple(range(LEVELS)))
        options, known = self.options, known_points(student, batch)
        own, other = errors_to_truth(student, batch), errors_to_truth(teacher, batch)
        errors, open_points, points = {}, [], 0
        for level in options.levels:
            gate = gates(own[level].detach(), other[level].detach(), options.gate, options.m)
            gate = gate if known is None else gate & known[level]
            passing = (
                own[level].square()
                if options.mode == "gt"
                else torch.linalg.vector_norm(student.flows[level] - teacher.flows[level], dim=-1)
            )
            errors[level] = torch.where(gate, passing, 0.0)
            open_points.append(gate.sum())
            points += gate.numel() if known is None else int(known[level].sum())
        levels = reduce_by_level(errors)
        unit = "weighted sum of m^2" if options.mode == "gt" else "weighted sum of m"
        return Measured(total(levels), unit, levels, active=torch.stack(open_points).sum() / max(points, 1))
