# SPDX-License-Identifier: MIT
"""A loss without labels and teacher: the moved cloud lies on the second one, and the flow is smooth."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.errors import ShapeError
from bpfn_cli.losses.supervised import at_levels, measured
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, level_of, levels_option, option
from bpfn_cli.ops import gather, nearest_squares, roughness
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid

UNIT = "weighted sum of m^2"


@settings
class ChamferSettings:
    smoothness: Annotated[float, Field(ge=0, le=1e3)] = option(1.0, "weight of the smoothness of the flow; 0: none")
    neighbors: Annotated[int, Field(ge=2, le=64)] = option(9, "neighbors for smoothness, with the point itself")
    levels: Levels = levels_option()


class ChamferLoss(DistillationLoss):
    """Chamfer distance of the moved cloud to the second one, and smoothness. It ignores the teacher."""

    card = Card(
        compares="the moved cloud with the second one; no labels, no teacher",
        formula="L = R(C_l) + smoothness R(S_l); C_l: squared distance of each moved point p + s_l to the nearest one "
        "of cloud 2 at that level, and of each of those to the nearest moved one; S_l: mean of ||s_l(q) - s_l(p)||^2 "
        "over the 8 nearest q; total: L_gt + gamma kappa L; without labels, L_kd + kappa L, or L alone",
        source="PointPWC-Net, Wu et al., ECCV 2020, self-supervised losses [not checked against the paper]",
        deviations=(
            "the paper's third term, the difference of Laplacian coordinates (weight 0.3), is left out",
            "a point of one cloud need not be in the other, so the value of the true flow is not zero",
            "scaled like a hint where labels or a loss on the teacher's flow are present; alone, its weight is 1",
        ),
        never_zero="it compares the student with the clouds, not with the teacher",
        meaning="the moved cloud should lie on the second one, smoothly",
    )
    settings = ChamferSettings
    kind = "hint"
    uses = ()
    needs_teacher = False

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        options, sources, targets = self.options, at_levels(student, batch.pc1), _targets(student, batch.pc2)
        near: dict[int, Tensor] = {}
        rough: dict[int, Tensor] = {}
        for level in options.levels:
            flow, source = level_of(student.flows, "flow", level), sources[level]
            if flow.shape != source.shape:
                raise ShapeError(f"flow at level {level}: {tuple(flow.shape)}, but the points {tuple(source.shape)}")
            moved, target = source + flow, targets[level]
            near[level] = torch.cat([nearest_squares(moved, target), nearest_squares(target, moved)], dim=1)
            if options.smoothness:
                rough[level] = options.smoothness * roughness(source, flow, options.neighbors)
        errors = {level: torch.cat([near[level], *([rough[level]] if rough else [])], dim=1) for level in near}
        finest = near[min(near)].detach()
        return measured(errors, UNIT, figures={"nearest_m": finest.clamp_min(0).sqrt().mean()})

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        moved = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
        target = torch.tensor([[[0.0, 0.3, 0.4], [3.0, 0.0, 0.0]]])
        yield HandValue("squares from (0, 0, 0), (1, 0, 0)", float(nearest_squares(moved, target).sum()), 1.5)
        yield HandValue("squares from (0, .3, .4), (3, 0, 0)", float(nearest_squares(target, moved).sum()), 4.25)
        flow = torch.tensor([[[0.1, 0.0, 0.0], [0.1, 0.2, 0.0]]])
        yield HandValue("roughness of two points", float(roughness(moved, flow).sum()), 0.08)


def _targets(output: FlowPyramid, pc2: Tensor) -> list[Tensor]:
    """(B, N_l, 3) points of the second cloud at each level."""
    found = [pc2]
    for level in range(1, LEVELS):
        found.append(gather(found[-1], output.sample_indices2[level]))
    return found
