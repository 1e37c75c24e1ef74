# SPDX-License-Identifier: MIT
"""Cut a trained network to a budget, and train the rest for a short while on the flow of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfn_cli.choices import Importance
from bpfn_cli.errors import NonFiniteError, UsageError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.pruning.budget import CostOf, fit_budget, smallest
from bpfn_cli.models.pruning.channels import channel_groups, reorder
from bpfn_cli.models.pruning.importance import channel_orders, epe3d
from bpfn_cli.models.pruning.sensitivity import Sensitivity, measure, sliced
from bpfn_cli.models.pruning.sizes import Size, sizes_of
from bpfn_cli.models.variants import Variant
from bpfn_cli.progress import OnProgress
from bpfn_cli.structures import FlowBatch, FlowPyramid

MEASURED_BATCHES = 4  # for each cut of each size
RECOVERY_LR = 2e-4
CLIP_NORM = 10.0
LATENCY_TOLERANCE = 0.1
MOST_ATTEMPTS = 8


class Pruner:
    """A copy of a trained network with its channels in order of importance, and what each of its sizes is worth."""

    def __init__(self, teacher: BiPointFlowNet):
        self.teacher = sliced(teacher, teacher.variant)
        self.sensitivities: dict[Size, Sensitivity] = {}

    def order(self, importance: Importance, batches: Sequence[FlowBatch], progress: OnProgress = None) -> None:
        """Order the channels: the most important ones first."""
        groups = channel_groups(self.teacher.variant)
        reorder(self.teacher, channel_orders(self.teacher, groups, importance, batches, progress))

    def measure(self, batches: Sequence[FlowBatch], progress: OnProgress = None) -> None:
        """Measure what each size is worth."""
        self.sensitivities = measure(self.teacher, sizes_of(self.teacher.variant), batches, progress)

    def fit(self, cost_of: CostOf, budget: float) -> Variant:
        """Sizes within the budget. Raises: UsageError: there are none, or the teacher is within it."""
        return fit_budget(self.teacher.variant, self.sensitivities, cost_of, budget)

    def fit_latency(self, latency_of: CostOf, target: float, cost_of: CostOf) -> Variant:
        """Sizes whose measured latency is within a tenth of the target, by fitting MACs and measuring in turn.

        Raises: UsageError: there are none, with the nearest latency that was measured.
        """
        variant = self.teacher.variant
        whole, least, tried = cost_of(variant), cost_of(smallest(variant)), [latency_of(variant)]
        for _ in range(MOST_ATTEMPTS):
            budget = min(max(cost_of(variant) * target / tried[-1], least), whole * 0.999)
            found = self.fit(cost_of, budget)
            if found == variant:
                break
            variant = found
            tried.append(latency_of(variant))
            if abs(tried[-1] / target - 1) <= LATENCY_TOLERANCE:
                return variant
        nearest = min(tried, key=lambda latency: abs(latency - target))
        raise UsageError(
            f"no network with a latency within 10 % of {target:.3g} ms; the nearest takes {nearest:.3g} ms"
        )

    def cut(self, variant: Variant) -> BiPointFlowNet:
        """The most important channels, in evaluation mode."""
        return sliced(self.teacher, variant)


def recover(
    student: BiPointFlowNet,
    teacher: BiPointFlowNet,
    batches: Sequence[FlowBatch],
    steps: int,
    progress: OnProgress = None,
) -> None:
    """Train the student on the teacher's flows at all levels, in place, one batch a step; no truth is needed.

    Batch norms keep their statistics: new ones, from few and small batches, would be worse than those of the teacher.

    Raises: NonFiniteError: the loss is NaN or infinite.
    """
    optimizer = torch.optim.Adam(student.parameters(), lr=RECOVERY_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(steps):
        batch = batches[step % len(batches)]
        with torch.no_grad():
            target = teacher(batch.pc1, batch.pc2)
        pyramid = target.pyramid if student.pyramid_shape == teacher.pyramid_shape else None
        loss = _distance(student(batch.pc1, batch.pc2, pyramid=pyramid), target)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"recovery: the loss is {float(loss)} in step {step}; nothing was written")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps)


def mean_epe3d(model: BiPointFlowNet, batches: Sequence[FlowBatch]) -> float:
    """Mean over batches of EPE3D, metres."""
    with torch.no_grad():
        return float(torch.stack([epe3d(model, batch) for batch in batches]).mean())


def _distance(student: FlowPyramid, teacher: FlowPyramid) -> Tensor:
    """Mean over levels of the mean distance of the flows, metres."""
    pairs = zip(student.flows, teacher.flows, strict=True)
    return torch.stack([torch.linalg.vector_norm(own - target, dim=-1).mean() for own, target in pairs]).mean()
