# SPDX-License-Identifier: MIT
"""Batch norms that are added to a trained network."""

from collections.abc import Iterable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.ops.batch_norm import BatchNorm1d, BatchNorm2d
from bpfn_cli.structures import FlowBatch

BatchNorm = BatchNorm1d | BatchNorm2d


@torch.no_grad()
def neutralize_new_norms(network: BiPointFlowNet, batches: Iterable[FlowBatch]) -> list[str]:
    """Let batch norms that have seen no batch start as the identity, in training as in evaluation, in place.

    A new batch norm normalizes what the trained layers after it expect as it is. Here its scale and shift become the
    deviation and mean of its own input over `batches`, which undo that. Norms with statistics stay as they are.

    Returns: names of the changed modules.
    """
    norms = {name: one for name, one in network.named_modules() if isinstance(one, BatchNorm)}
    new = {name: norm for name, norm in norms.items() if not norm.num_batches_tracked}
    if not network.variant.bn or not new:
        return []
    probe = deepcopy(network).train()  # as in training, where the other norms take statistics of the batch
    totals: dict[str, list[Tensor]] = {}
    for name in new:
        probe.get_submodule(name).register_forward_hook(partial(_measure, totals, name))
    for batch in batches:
        probe(batch.pc1, batch.pc2)
    for name, (count, total, squares) in totals.items():
        _undo(new[name], total / count, squares / count)
    return list(totals)


def _measure(totals: dict[str, list[Tensor]], name: str, _: BatchNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Add up count, sum and sum of squares of each channel of the input, and give the input as it is."""
    x = inputs[0].double().transpose(0, 1).flatten(1)
    found = [x.new_tensor(x.shape[1]), x.sum(1), x.square().sum(1)]
    totals[name] = [a + b for a, b in zip(totals[name], found, strict=True)] if name in totals else found
    return output.copy_(inputs[0])


def _undo(norm: BatchNorm, mean: Tensor, mean_square: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    variance = mean_square - mean.square()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)
