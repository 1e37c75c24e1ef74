# SPDX-License-Identifier: MIT
"""Bidirectional hint distillation: the features of both clouds follow the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.losses.term import Feature, FeatureDistance, Levels, Norm
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

_BRANCHES: dict[str, tuple[Feature, ...]] = {
    "src": ("source",),
    "src+tgt": ("source", "target"),
    "src+tgt+emb": ("source", "target", "embedding"),
}


@settings
class BihintSettings:
    """branches: features compared. norm: l1, l2 or fvu (unit-free). levels: those compared."""

    branches: Literal["src", "src+tgt", "src+tgt+emb"] = "src+tgt"
    norm: Norm = "l1"
    levels: Levels = (0, 1, 2, 3)


class BihintLoss(nn.Module):
    """mean over branches of the hint distance: 1/2 [D(A1 u1_student, u1_teacher) + D(A2 u2_student, u2_teacher)].

    u1 are the features of source points that look into cloud 2, u2 those of target points that look into cloud 1;
    each branch has adapters of its own, since the two leave through different projections.
    Source: our definition of a loss that the reports name but leave open. A hint on u1 alone gives exactly no
    gradient to the target projection of `cross0`.
    """

    kind = "hint"

    def __init__(self, options: BihintSettings, student: Variant, teacher: Variant):
        super().__init__()
        self.branches = nn.ModuleList(
            FeatureDistance(feature, options.levels, options.norm, student, teacher)
            for feature in _BRANCHES[options.branches]
        )

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        return torch.stack([branch(student, teacher) for branch in self.branches]).mean()
