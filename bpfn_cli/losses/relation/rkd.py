# SPDX-License-Identifier: MIT
"""Relational distillation: distances and angles between the flows of one cloud, not the flows themselves."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses.features import FIELDS, feature_of
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Level, Measured, check_flows, option, spread_rows
from bpfn_cli.ops import gather
from bpfn_cli.structures import FlowBatch, FlowPyramid

TINY = 1e-12


@settings
class RkdSettings:
    of: Literal["flow", "source", "target", "embedding", "estimator"] = option("flow", "flow or feature to relate")
    level: Level = option(0, "level of the flow or feature; 0 is the finest")
    distance_points: Annotated[int, Field(ge=2, le=4096)] = option(256, "number of points for distances")
    angle_points: Annotated[int, Field(ge=3, le=512)] = option(64, "number of those points for angles")
    lambda_distance: Annotated[float, Field(ge=0)] = option(1.0, "weight of distances")
    lambda_angle: Annotated[float, Field(ge=0)] = option(2.0, "weight of angles")


def pair_distances(x: Tensor) -> Tensor:
    """(B, M, C) to (B, M, M): distances divided by the mean positive one; gradients are finite at equal points."""
    squares = (x[:, :, None] - x[:, None]).square().sum(dim=-1)
    positive = squares > TINY
    distances = torch.where(positive, squares.clamp_min(TINY).sqrt(), 0.0)
    mean = distances.sum(dim=(1, 2)) / positive.sum(dim=(1, 2)).clamp_min(1)
    return distances / mean.clamp_min(TINY)[:, None, None]


def angles(x: Tensor) -> Tensor:
    """(B, M, C) to (B, M, M, M): cosines at each point between the directions to two others; 0 to an equal point."""
    directions = x[:, None] - x[:, :, None]
    squares = directions.square().sum(dim=-1, keepdim=True)
    units = torch.where(squares > TINY, directions / squares.clamp_min(TINY).sqrt(), 0.0)
    return units @ units.mT


class RkdLoss(DistillationLoss):
    """The relations among the student's flows follow the teacher's."""

    card = Card(
        compares="distances and angles between the flows of one cloud",
        formula="lambda_D mean_ij huber(psi_D^s - psi_D^t) + lambda_A mean_ijk huber(psi_A^s - psi_A^t), psi_D = "
        "||x_i - x_j|| / mean, psi_A = cosine at the vertex; total: L_gt + gamma kappa L",
        source="Park, Kim, Lu & Cho, CVPR 2019 [checked against the authors' code]",
        deviations=(
            "relates points of a cloud, not samples of a batch; uses the first farthest point samples, none at random",
            "means over all M^2 and M^3 entries, as in the official code; lambda 1:2, kappa for the rest",
            "does not change if the flow is scaled, rotated or shifted: never use it alone",
        ),
        meaning="ground truth and the relations among the teacher's flows",
    )
    settings = RkdSettings

    def reads(self) -> frozenset[str]:
        return frozenset({"flows", *([] if self.options.of == "flow" else [FIELDS[self.options.of]])})

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        options = self.options
        check_flows(student, teacher, (options.level,))
        own, other = self._related(student), self._related(teacher)
        rows = spread_rows(student, options.level, options.distance_points)
        few = rows[:, : options.angle_points]
        by_distance = F.huber_loss(pair_distances(gather(own, rows)), pair_distances(gather(other, rows)))
        by_angle = F.huber_loss(angles(gather(own, few)), angles(gather(other, few)))
        value = options.lambda_distance * by_distance + options.lambda_angle * by_angle
        return Measured(value, "1", figures={"distance": by_distance, "angle": by_angle})

    def _related(self, output: FlowPyramid) -> Tensor:
        if self.options.of == "flow":
            return output.flows[self.options.level]
        return feature_of(output, self.options.of, self.options.level)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        y = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
        by_distance = F.huber_loss(pair_distances(x), pair_distances(y))
        yield HandValue("distances of two triangles", float(by_distance), 0.018484)
        yield HandValue("angles of two triangles", float(F.huber_loss(angles(x), angles(y))), 0.0038012)
