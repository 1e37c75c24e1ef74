# SPDX-License-Identifier: MIT
"""Class-weighted distillation: moving points count as much as the static background."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses.supervised import (
    NOT_ZERO,
    Target,
    at_levels,
    flow_distance,
    known_points,
    measured,
    target_of,
    target_option,
)
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, check_flows, levels_option, option
from bpfn_cli.ops import MOVING_M, moving_points
from bpfn_cli.structures import FlowBatch, FlowPyramid

SMALLEST, LARGEST = 0.5, 5.0
ClassWeight = Annotated[float, Field(ge=0, le=1e3)]


@settings
class WeightedSettings:
    tau_m: Annotated[float, Field(gt=0)] = option(
        MOVING_M, "residual after the camera's motion above which a point is moving, m"
    )
    w_moving: ClassWeight | None = option(
        None, "fixed weight of moving points; null: 1 if w_still is set, else by class size"
    )
    w_still: ClassWeight | None = option(
        None, "fixed weight of static points; null: 1 if w_moving is set, else by class size"
    )
    target: Target = target_option()
    levels: Levels = levels_option()


def class_weights(
    moving: Tensor, known: Tensor | None = None, clip: tuple[float, float] = (SMALLEST, LARGEST)
) -> Tensor:
    """Weights (B, N) of mean 1 that give both classes of a sample the same total; all 1 if there is only one class.

    Args: moving: (B, N) bool. known: (B, N) bool, the points that count, others get 0; None: all. clip: bounds before
        normalization.
    """
    counted = torch.ones_like(moving) if known is None else known
    points = counted.sum(dim=1, keepdim=True)
    count = (moving & counted).sum(dim=1, keepdim=True)
    of_moving = points / (2 * count.clamp_min(1))
    of_static = points / (2 * (points - count).clamp_min(1))
    weights = torch.where(moving, of_moving, of_static).clamp(*clip) * counted
    weights = weights * points / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.where((count > 0) & (count < points), weights, counted.to(weights.dtype))


class WeightedLoss(DistillationLoss):
    """`basic` with equal weight for the moving and the static points of a scene."""

    card = Card(
        compares="flows, with moving and static points balanced",
        formula="L_kd = R(w ||s_l - t_0||), w = N / (2 N_class) clipped to [0.5, 5], mean 1; moving: more than tau_m "
        "beyond the rigid motion fitted to (p, p + g); total: (1 - gamma) L_gt + gamma L_kd",
        source="Chen et al., NIPS 2017, eq. 3 (w_bg = 1.5, else 1, on classes) [as cited by later work]",
        deviations=(
            "scene flow has no classes: points are moving or static, decided by Kabsch with five rounds of reweighting",
            "weights by class size instead of fixed ones; the supervised part is not weighted, as in the paper",
            "the direction is reversed: the paper raises the background, which here would be the static points, and "
            "the weights by size raise the rarer class, mostly the moving points; w_still: 1.5 is the paper's form",
        ),
        never_zero=NOT_ZERO,
        meaning="basic, with moving and static points balanced",
    )
    settings = WeightedSettings
    needs_truth = True
    uses = ("flows",)
    kind = "output"

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = self.options.levels
        check_flows(student, teacher, levels)
        teacher = target_of(teacher, self.options.target)
        moving = moving_points(batch.pc1, batch.truth, batch.valid, self.options.tau_m)
        known = known_points(student, batch)
        errors = {}
        for level, values in enumerate(at_levels(student, moving[..., None].to(batch.pc1.dtype))):
            if level not in levels:
                continue
            weights = self._weights(values[..., 0] > 0, None if known is None else known[level])
            errors[level] = weights * flow_distance(student, teacher, level)
        seen = moving if batch.valid is None else moving[batch.valid]
        return measured(errors, figures={"moving_share": seen.float().mean()})

    def _weights(self, moving: Tensor, known: Tensor | None) -> Tensor:
        fixed = self.options.w_moving, self.options.w_still
        if fixed == (None, None):
            return class_weights(moving, known)
        of_moving, of_static = (1.0 if weight is None else weight for weight in fixed)
        weights = torch.where(moving, of_moving, of_static)
        return weights if known is None else weights * known

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        weights = class_weights(torch.arange(10)[None] == 0, clip=(0, 100))
        yield HandValue("weight of the only moving point of ten", float(weights[0, 0]), 5.0)
        yield HandValue("weight of the nine static points", float(weights[0, 1]), 0.5555556)
