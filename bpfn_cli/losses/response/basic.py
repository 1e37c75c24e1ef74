# SPDX-License-Identifier: MIT
"""Basic output distillation: the student's flow follows the teacher's."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses.hand import G, S, T, norm
from bpfn_cli.losses.supervised import NOT_ZERO, Target, flow_distance, measured, smooth_l1, target_of, target_option
from bpfn_cli.losses.term import (
    Card,
    DistillationLoss,
    HandValue,
    Levels,
    Measured,
    check_flows,
    level_of,
    levels_option,
    option,
)
from bpfn_cli.ops import confidence
from bpfn_cli.structures import BACKWARD_FIELD, FlowBatch, FlowPyramid


@settings
class BasicSettings:
    norm: Literal["l2", "sq", "smooth_l1"] = option("l2", "of the difference of two flows: l2 in m, sq in m^2")
    confidence_m: Annotated[float, Field(gt=0)] | None = option(
        None,
        "weight points by the teacher's confidence 1 / (1 + (e / this)^2), e its forward-backward error, m; null: by 1",
    )
    target: Target = target_option()
    levels: Levels = levels_option()


class BasicLoss(DistillationLoss):
    """The distance between the flows of student and teacher."""

    card = Card(
        compares="flows",
        formula="L_kd = R(||s_l - t_0||), R(x) = sum_l a_l mean_b sum_n x_l, t_0 the teacher's finest flow at the "
        "points of level l; total: (1 - gamma) L_gt + gamma L_kd",
        source="Hinton, Vinyals & Dean, NIPS-W 2014; regression form of Saputra et al., ICCV 2019, eq. 3 "
        "[as cited by later work]",
        deviations=(
            "unsquared by default and summed like the supervised loss, so that gamma weights equal units; regression "
            "has no temperature",
            "the finest flow is the target at all levels, as in the compression reports: the teacher's coarser flows "
            "err more at the same points",
            "with confidence_m, each point has a weight in (0, 1]: e = ||t(p) + b(p + t(p))||, b the teacher's flow "
            "from cloud 2 to cloud 1, interpolated from its three nearest points; the teacher runs twice",
            "the pointwise minimizer of the total is then exactly the true flow for gamma < 1/2, else the teacher's",
        ),
        never_zero=NOT_ZERO,
        meaning="ground truth and the teacher's flow",
    )
    settings = BasicSettings
    uses = ("flows",)
    kind = "output"

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.options.levels
        check_flows(student, teacher, levels)
        teacher = target_of(teacher, self.options.target)
        distances = {level: self._distance(student, teacher, level) for level in levels}
        if self.options.confidence_m is None:
            return measured(distances)
        weights = {level: self._confidence(teacher, level) for level in levels}
        finest = weights[min(levels)]
        weighted = {level: weights[level] * distances[level] for level in levels}
        return measured(weighted, active=(finest > 0.5).float().mean(), figures={"confidence": finest.mean()})

    def reads(self) -> frozenset[str]:
        return super().reads() | ({BACKWARD_FIELD} if self.options.confidence_m is not None else set())

    def _confidence(self, teacher: FlowPyramid, level: int) -> Tensor:
        """(B, N_l) weights."""
        errors = level_of(teacher.backward_errors, "forward-backward error", level)[..., 0]
        return confidence(errors, self.options.confidence_m)

    def _distance(self, student: FlowPyramid, teacher: FlowPyramid, level: int) -> Tensor:
        if self.options.norm == "smooth_l1":
            return smooth_l1(student.flows[level], teacher.flows[level])
        distance = flow_distance(student, teacher, level)
        return distance if self.options.norm == "l2" else distance.square()

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield HandValue("mean of ||s - t|| for two points", float(norm(S - T).mean()), 0.1)
        yield HandValue("mean of ||s - t||^2 for two points", float(norm(S - T).square().mean()), 0.01)
        weight = confidence(torch.tensor(0.05), 0.1)
        yield HandValue("confidence at an error of half confidence_m", float(weight), 0.8)
        yield HandValue("mean error of the teacher for two points", float(norm(T - G).mean()), 0.0707107)
