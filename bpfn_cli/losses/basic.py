# SPDX-License-Identifier: MIT
"""Basic output distillation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.losses.supervised import reduce_levels
from bpfn_cli.losses.term import Levels, check_same_points
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class BasicSettings:
    """norm: of the difference of two flows. levels: those compared."""

    norm: Literal["l2", "sq", "smooth_l1"] = "l2"
    levels: Levels = (0, 1, 2, 3)


class BasicLoss(nn.Module):
    """R(||student flow - teacher flow||), the soft term of (1 - gamma) L_gt + gamma L_kd.

    Source: Hinton, Vinyals & Dean 2015, in the regression form of Saputra et al., ICCV 2019, eq. 3.
    Deviation: unsquared by default and summed like the supervised loss; there is no temperature in regression.
    The pointwise minimizer of the whole is then exactly the true flow for gamma < 1/2 and the teacher's above.
    """

    kind = "output"

    def __init__(self, options: BasicSettings, student: Variant, teacher: Variant):
        super().__init__()
        self.options = options

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        check_same_points(student, teacher)
        levels = self.options.levels
        return reduce_levels({i: self._distance(student.flows[i], teacher.flows[i].detach()) for i in levels})

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if self.options.norm == "smooth_l1":
            return F.smooth_l1_loss(a, b, reduction="none").sum(dim=-1)
        distance = torch.linalg.vector_norm(a - b, dim=-1)
        return distance if self.options.norm == "l2" else distance.square()
