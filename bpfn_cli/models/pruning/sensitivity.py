# SPDX-License-Identifier: MIT
"""What each size is worth: how far the flow moves from the teacher's when this size alone is cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.pruning.sizes import Size
from bpfn_cli.models.slicing import initialize_from
from bpfn_cli.models.variants import Variant
from bpfn_cli.progress import OnProgress
from bpfn_cli.structures import FlowBatch

MEASURED_SHARES = (0.75, 0.5, 0.25)


class Sensitivity:
    """Metres by which a cut of one size moves the flow, at any value: linear between measured values."""

    def __init__(self, size: Size, measured: dict[int, float]):
        """measured: value -> metres, without that of the teacher, which is 0."""
        self.size = size
        values = sorted({**measured, size.most: 0.0}.items(), reverse=True)
        worst, self.points = 0.0, []
        for value, moved in values:  # a smaller size is never better
            worst = max(worst, moved)
            self.points.append((value, worst))

    def scaled(self, factor: float) -> Sensitivity:
        """The same, with all errors times a factor."""
        return Sensitivity(self.size, {value: factor * moved for value, moved in self.points[1:]})

    def at(self, value: int) -> float:
        """Metres. Below the smallest measured value, the last slope goes on."""
        for (high, before), (low, after) in pairwise(self.points):
            if value >= low or low == self.points[-1][0]:
                return before + (after - before) * (high - value) / (high - low)
        raise AssertionError("no smaller value was measured")


def sliced(teacher: BiPointFlowNet, variant: Variant) -> BiPointFlowNet:
    """A network with these sizes and the first channels of the teacher, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        model = type(teacher)(variant, teacher.num_points)
    initialize_from(model, teacher)
    return model.to(next(teacher.parameters()).device).eval()


def measure(
    teacher: BiPointFlowNet,
    sizes: Sequence[Size],
    batches: Sequence[FlowBatch],
    progress: OnProgress = None,
) -> dict[Size, Sensitivity]:
    """Slice each size alone to three shares, and compare the flows with the teacher's. No truth is needed."""
    expected = [_flow(teacher, batch) for batch in batches]
    found = {}
    for done, size in enumerate(sizes, start=1):
        values = {size.at(share) for share in MEASURED_SHARES} - {size.most}
        cut = {value: sliced(teacher, size.change(teacher.variant, value)) for value in values}
        found[size] = Sensitivity(size, {value: difference(model, expected, batches) for value, model in cut.items()})
        if progress:
            progress(done, len(sizes))
    return found


def difference(model: BiPointFlowNet, expected: Sequence[Tensor], batches: Sequence[FlowBatch]) -> float:
    """Mean distance of a network's flows from the expected ones, metres."""
    moved = [
        torch.linalg.vector_norm(_flow(model, batch) - flow, dim=-1)
        for batch, flow in zip(batches, expected, strict=True)
    ]
    return float(torch.cat(moved).mean())


@torch.no_grad()
def _flow(model: BiPointFlowNet, batch: FlowBatch) -> Tensor:
    flow: Tensor = model(batch.pc1, batch.pc2).flows[0]
    return flow
