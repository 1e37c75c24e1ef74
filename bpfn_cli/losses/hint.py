# SPDX-License-Identifier: MIT
"""Hint distillation: the student's features follow the teacher's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.losses.term import FeatureDistance, Levels, Norm
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class HintSettings:
    """feature: which one is compared. norm: l1, l2 or fvu (unit-free). levels: those compared."""

    feature: Literal["source", "embedding", "estimator"] = "source"
    norm: Norm = "l1"
    levels: Levels = (0, 1, 2, 3)


class HintLoss(nn.Module):
    """mean over levels of mean |A F_student - F_teacher|, F the bidirectional features of the source points.

    Source: FitNets, Romero et al., ICLR 2015, eq. 3; L1 form and adapters as in Chen et al., NIPS 2017, section 3.4.
    Deviation: one stage, trained jointly with the supervised loss; an adapter only where widths differ.
    """

    kind = "hint"

    def __init__(self, options: HintSettings, student: Variant, teacher: Variant):
        super().__init__()
        self.distance = FeatureDistance(options.feature, options.levels, options.norm, student, teacher)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        return self.distance(student, teacher)
