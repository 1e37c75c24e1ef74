# SPDX-License-Identifier: MIT
"""How important each channel is: the order in which channels are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfn_cli.choices import Importance
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.pruning.channels import ChannelGroup
from bpfn_cli.progress import OnProgress
from bpfn_cli.structures import FlowBatch


def channel_orders(
    model: BiPointFlowNet,
    groups: Sequence[ChannelGroup],
    kind: Importance,
    batches: Sequence[FlowBatch] = (),
    progress: OnProgress = None,
) -> dict[ChannelGroup, Tensor]:
    """Of each group, its channels, the most important one first.

    taylor: by the change of EPE3D that leaving out the channel causes, to first order. l1: by the sum of the
    absolute weights and bias that produce the channel. first: as they are.
    """
    if kind == "first":
        return {group: torch.arange(group.channels) for group in groups}
    scores = taylor(model, groups, batches, progress) if kind == "taylor" else l1(model, groups)
    return {group: score.argsort(descending=True, stable=True) for group, score in scores.items()}


def taylor(
    model: BiPointFlowNet, groups: Sequence[ChannelGroup], batches: Sequence[FlowBatch], progress: OnProgress = None
) -> dict[ChannelGroup, Tensor]:
    """Importance of each channel: mean over batches of |sum of activation times gradient of EPE3D|, metres.

    A channel is linear in the weights and bias that make it, so the sum over all points of activation times gradient is
    the sum over these of value times gradient.
    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017.
    """
    sums = {group: torch.zeros(group.channels, dtype=torch.float64) for group in groups}
    parameters = dict(model.named_parameters())
    for done, batch in enumerate(batches, start=1):
        model.zero_grad(set_to_none=True)
        epe3d(model, batch).mean().backward()
        effects = {name: _rows(one.detach() * one.grad) for name, one in parameters.items() if one.grad is not None}
        for group in groups:
            sums[group] += torch.stack([effects[axis.tensor] for axis in group.produced]).sum(dim=0).abs().cpu()
        if progress:
            progress(done, len(batches))
    model.zero_grad(set_to_none=True)
    return {group: total / len(batches) for group, total in sums.items()}


def l1(model: BiPointFlowNet, groups: Sequence[ChannelGroup]) -> dict[ChannelGroup, Tensor]:
    """Importance of each channel: the sum of the absolute weights and bias that produce it.

    Where a batch norm follows, the sum is of its scale and shift instead, as Liu et al. do with the scale.
    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017; Liu et al., Learning Efficient Convolutional
    Networks through Network Slimming, ICCV 2017.
    """
    sizes = {name: _rows(tensor.abs()).cpu() for name, tensor in model.state_dict().items()}
    return {group: torch.stack([sizes[axis.tensor] for axis in group.produced]).sum(dim=0) for group in groups}


def _rows(values: Tensor) -> Tensor:
    """The sum of each row, float64."""
    return values.double().flatten(1).sum(dim=1) if values.dim() > 1 else values.double()


def epe3d(model: BiPointFlowNet, batch: FlowBatch) -> Tensor:
    """Mean error of the flow of each scene (B,) where it is known, metres; with a gradient."""
    errors = torch.linalg.vector_norm(model(batch.pc1, batch.pc2).flows[0] - batch.truth, dim=-1)
    if batch.valid is None:
        return errors.mean(dim=1)
    return errors.where(batch.valid, 0).sum(dim=1) / batch.valid.sum(dim=1).clamp(min=1)
