# SPDX-License-Identifier: MIT
"""Batch norms that are added to a trained network."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.layers import norm_as_affine
from bpfn_cli.ops.batch_norm import BatchNorm1d, BatchNorm2d
from bpfn_cli.structures import FlowBatch

BatchNorm = BatchNorm1d | BatchNorm2d


@torch.no_grad()
def neutralize_new_norms(network: BiPointFlowNet, batches: Iterable[FlowBatch]) -> list[str]:
    """Let batch norms that have seen no batch start as the identity, in training as in evaluation, in place.

    A new batch norm normalizes what the trained layers after it expect as it is. Here its scale and shift become the
    deviation and mean of its own input over `batches`, which undo that. A scale and shift that were trained already, as
    after pruning, are kept. Norms with statistics stay as they are.

    Returns: names of the changed modules.
    """
    norms = {name: one for name, one in network.named_modules() if isinstance(one, BatchNorm)}
    new = {name: norm for name, norm in norms.items() if not norm.num_batches_tracked}
    if not network.variant.bn or not new:
        return []
    probe = deepcopy(network).train()  # as in training, where the other norms take statistics of the batch
    inputs = {name: _Inputs(*norm_as_affine(norm)) for name, norm in new.items()}
    for name, measured in inputs.items():
        probe.get_submodule(name).register_forward_hook(measured.add)
    for batch in batches:
        probe(batch.pc1, batch.pc2)
    met = {name: measured for name, measured in inputs.items() if measured.sums is not None}
    for name, measured in met.items():
        measured.undo_in(new[name])
    return [*met]


@dataclass
class _Inputs:
    """The inputs of a norm that computes `scale * x + shift`: count, sum and sum of squares of each channel."""

    scale: Tensor | None
    shift: Tensor | None
    sums: Tensor | None = None

    def add(self, _: BatchNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """As a hook: add an input, and compute the output without normalizing."""
        assert self.scale is not None and self.shift is not None
        x = inputs[0].double().transpose(0, 1).flatten(1)
        sums = torch.stack([torch.ones_like(x), x, x * x]).sum(2)
        self.sums = sums if self.sums is None else self.sums + sums
        scale, shift = (each.view(-1, *[1] * (output.dim() - 2)) for each in (self.scale, self.shift))
        return output.copy_(inputs[0] * scale + shift)

    def undo_in(self, norm: BatchNorm) -> None:
        """Let a norm normalize by these inputs, and undo that in its scale and shift."""
        assert self.sums is not None and norm.running_mean is not None and norm.running_var is not None
        assert self.scale is not None and self.shift is not None
        mean, mean_square = self.sums[1:] / self.sums[0]
        variance = mean_square - mean.square()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(self.scale * (variance + norm.eps).sqrt())
        norm.bias.copy_(self.shift + self.scale * mean)
