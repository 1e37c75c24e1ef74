# SPDX-License-Identifier: MIT
"""Teacher-bounded regression: an additional loss wherever the student is worse than the teacher."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses import term
from bpfn_cli.losses.hand import G, S, T, norm
from bpfn_cli.losses.supervised import UNIT, errors_to_truth, flow_distance, known_points, measured
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, levels_option, option
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class BoundedSettings:
    gate: Literal["squared", "epe"] = option("squared", "squared: e_s^2 + m > e_t^2 (m in m^2); epe: e_s + m > e_t (m)")
    m: Annotated[float, Field(ge=0)] = option(0.0, "margin by which to beat the teacher, m^2 or m depending on gate")
    mode: Literal["imitate", "gt"] = option(
        "imitate", "loss where the gate is open; imitate: ||s - t||; gt: squared error to the truth"
    )
    levels: Levels = levels_option()


def gates(student_error: Tensor, teacher_error: Tensor, gate: str, m: float) -> Tensor:
    """Where the student does not beat the teacher by the margin: bool."""
    if gate == "squared":
        return student_error.square() + m > teacher_error.square()
    return student_error + m > teacher_error


class BoundedLoss(DistillationLoss):
    """The student follows the teacher only where it is worse; or, with mode gt, the truth."""

    card = Card(
        compares="flows, where the student errs more than the teacher",
        formula="L_b = R(gate ||s - t||), gate = 1 where e_s^2 + m > e_t^2; total: L_gt + gamma kappa L_b",
        source="Saputra et al., ICCV 2019, eq. 4-5 [as cited by later work]; mode gt: Chen, Choi, Yu, Han & "
        "Chandraker, NIPS 2017, section 3.3, eq. 4 [as cited by later work]",
        deviations=(
            "unsquared like the supervised loss",
            "mode: gt is the form of Chen et al., R(gate e_s^2): the teacher only opens the gate, so most of the "
            "gradient comes from the truth. For a trained student on rendered scenes, its cosine with that of a "
            "shuffled teacher is 0.7 to 1.0",
            "kappa, which gives every added loss the same gradient norm, replaces the paper's nu = 0.5",
            "m is unpublished; 0 by default (with m > 0 the value is not 0 for a student that equals its teacher)",
            "points without a known flow do not count",
        ),
        meaning="ground truth, and the teacher's flow where the student is worse",
    )
    settings = BoundedSettings
    needs_truth = True
    uses = ("flows",)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        term.check_flows(student, teacher, term.ALL_LEVELS)
        options, known = self.options, known_points(student, batch)
        own, other = errors_to_truth(student, batch), errors_to_truth(teacher, batch)
        errors, open_points, points = {}, [], 0
        for level in options.levels:
            gate = gates(own[level].detach(), other[level].detach(), options.gate, options.m)
            gate = gate if known is None else gate & known[level]
            error = own[level].square() if options.mode == "gt" else flow_distance(student, teacher, level)
            errors[level] = torch.where(gate, error, 0.0)
            open_points.append(gate.sum())
            points += gate.numel() if known is None else int(known[level].sum())
        unit = f"{UNIT}^2" if options.mode == "gt" else UNIT
        return measured(errors, unit, active=torch.stack(open_points).sum() / max(points, 1))

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        own, other = norm(S - G), norm(T - G)
        value = float((gates(own, other, "squared", 0.0) * norm(S - T)).mean())
        yield HandValue("mean of ||s - t|| for two points, m = 0", value, 0.05)
        for m, expected in ((0.0, 0.005), (0.02, 0.010)):
            value = float((gates(own, other, "squared", m) * own.square()).mean())
            yield HandValue(f"mean of e_s^2 for two points, m = {m:g} m^2", value, expected)
