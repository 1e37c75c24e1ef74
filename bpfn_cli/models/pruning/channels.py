# SPDX-License-Identifier: MIT
"""Groups of channels that must be kept or cut together, and networks with their channels in another order.

`initialize_from` keeps the first channels of each part of a network. So pruning is two steps: reorder the channels of
the teacher by importance, which leaves its flow as it is, and slice it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.slicing import input_parts
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import LEVELS

ENCODER_BLOCKS = (
    ("level0_1", "level0_2"),
    ("level1_0", "level1_1"),
    ("level2_0", "level2_1"),
    ("level3_0", "level3_1"),
)


class Axis(NamedTuple):
    """Where the channels of a group are in one dimension of a tensor.

    Channel c has the indices `start + c * step + i * stride` for i in range(times).
    """

    tensor: str
    dimension: int = 0
    start: int = 0
    step: int = 1
    times: int = 1
    stride: int = 1

    def indices(self, channels: int) -> Tensor:
        """(channels, times) indices of the channels."""
        first = self.start + self.step * torch.arange(channels)
        return first[:, None] + self.stride * torch.arange(self.times)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are one size of the network at one level.

    Attributes:
        size: name of the `Level` field. level: its level. channels: how many there are.
        produced: weights and biases that make these channels, one row each; with batch norm, its scale and shift.
        axes: all places in the state dict that hold these channels.
    """

    size: str
    level: int
    channels: int
    produced: tuple[Axis, ...]
    axes: tuple[Axis, ...]


def channel_groups(variant: Variant) -> list[ChannelGroup]:
    """All groups whose channels may have any order.

    Separable PointConvs mix their outputs with c_mid, and the channels inside of bottlenecks and residual blocks follow
    from other sizes: these keep their order.
    """
    return [*_encoder(variant), *_embeddings(variant), *_estimators(variant), *_weightnets(variant)]


def reorder(model: BiPointFlowNet, orders: Mapping[ChannelGroup, Tensor]) -> None:
    """Put the channels of each group into the given order, in place. The network computes the same as before.

    Args: orders: of each group, a permutation of its channels: the most important one first.
    """
    state = model.state_dict()
    for group, order in orders.items():
        for axis in group.axes:
            tensor, before = state[axis.tensor], axis.indices(group.channels)
            rows = torch.arange(tensor.shape[axis.dimension])
            rows[before.flatten()] = before[order].flatten()
            state[axis.tensor] = tensor.index_select(axis.dimension, rows.to(tensor.device))
    model.load_state_dict(state)


# --- the layers ---------------------------------------------------------------------------------------


def _rows(layer: str) -> tuple[Axis, ...]:
    """The outputs of a linear map or convolution, or the channels that a batch norm scales and shifts."""
    return Axis(f"{layer}.weight"), Axis(f"{layer}.bias")


def _norm(layer: str) -> tuple[Axis, ...]:
    return *_rows(layer), Axis(f"{layer}.running_mean"), Axis(f"{layer}.running_var")


class _Outputs(NamedTuple):
    """Of a block: what makes its channels, and all places that hold them."""

    produced: tuple[Axis, ...]
    axes: tuple[Axis, ...]


def _block_outputs(name: str, variant: Variant, part: str = "") -> _Outputs:
    layers = f"{name}{part}.composed_module"
    linear = _rows(f"{layers}.0")
    return _Outputs(_rows(f"{layers}.1"), (*linear, *_norm(f"{layers}.1"))) if variant.bn else _Outputs(linear, linear)


def _encoder_outputs(name: str, variant: Variant) -> _Outputs:
    return _block_outputs(name, variant, ".expand" if variant.bottleneck else "")


def _block_inputs(name: str) -> Axis:
    return Axis(f"{name}.composed_module.0.weight", 1)


def _encoder_inputs(name: str, variant: Variant) -> Axis:
    return _block_inputs(f"{name}.reduce" if variant.bottleneck else name)


def _conv_outputs(name: str, norm: bool) -> _Outputs:
    """Of an ordinary PointConv."""
    linear, scale = _rows(f"{name}.linear"), f"{name}.bn_linear"
    return _Outputs(_rows(scale), (*linear, *_norm(scale))) if norm else _Outputs(linear, linear)


def _conv_inputs(name: str, variant: Variant, level: int, part: int, separable: bool) -> tuple[Axis, ...]:
    """Of a PointConv: the part of its concatenated input."""
    start = sum(input_parts(f"{name}.linear.weight", variant)[:part])
    if separable:
        weights = Axis(f"{name}.conv.weight", 0, start), Axis(f"{name}.conv.bias", 0, start)
        return *weights, Axis(f"{name}.pointwise.weight", 1, start)
    c_mid = variant.levels[level].c_mid
    return (Axis(f"{name}.linear.weight", 1, start * c_mid, step=c_mid, times=c_mid),)


def _cross_inputs(level: int, variant: Variant, part: int) -> tuple[Axis, ...]:
    """Of a bidirectional flow embedding: 0: the encoder's features; 1: the context."""
    layers = [f"cross{level}.{name}.weight" for name in ("cross_t11", "cross_t22")]
    return tuple(Axis(name, 1, sum(input_parts(name, variant)[:part])) for name in layers)


# --- the groups ---------------------------------------------------------------------------------------


def _encoder(variant: Variant) -> Iterator[ChannelGroup]:
    for level, sizes in enumerate(variant.levels):
        separable = level in variant.separable.encoder
        name, norm = f"level{level}", variant.bn
        made = None if separable else _conv_outputs(name, norm) if level else _encoder_outputs(name, variant)
        if level == LEVELS:
            if made:
                yield ChannelGroup("width", level, sizes.width, made.produced, (*made.axes, _block_inputs("deconv4_3")))
            continue
        refine, expand = ENCODER_BLOCKS[level]
        used = _used_features(level, variant)
        if variant.residual:
            if made:
                yield _residual_group(level, variant, made, (*used, _encoder_inputs(expand, variant)))
        else:
            if made:
                axes = (*made.axes, _encoder_inputs(refine, variant))
                yield ChannelGroup("width", level, sizes.width, made.produced, axes)
            made = _encoder_outputs(refine, variant)
            axes = (*made.axes, *used, _encoder_inputs(expand, variant))
            yield ChannelGroup("width", level, sizes.width, made.produced, axes)
        made = _encoder_outputs(expand, variant)
        inputs = _conv_inputs(f"level{level + 1}", variant, level + 1, 1, level + 1 in variant.separable.encoder)
        yield ChannelGroup("expanded", level, sizes.expanded, made.produced, (*made.axes, *inputs))


def _used_features(level: int, variant: Variant) -> tuple[Axis, ...]:
    """Where the features of a level enter its embedding and its flow estimator."""
    separable = level in variant.separable.estimators
    return *_cross_inputs(level, variant, 0), *_conv_inputs(_conv(level, 0), variant, level, 1, separable)


def _residual_group(level: int, variant: Variant, made: _Outputs, used: tuple[Axis, ...]) -> ChannelGroup:
    """A residual block adds its input to its output, so both have one order."""
    name = ENCODER_BLOCKS[level][0]
    added = [_block_outputs(f"{name}.{part}", variant) for part in ("widen", "depthwise")]
    produced = [axis for outputs in (made, *added) for axis in outputs.produced]
    axes = [axis for outputs in (made, *added) for axis in outputs.axes]
    inputs = _block_inputs(f"{name}.narrow")
    return ChannelGroup("width", level, variant.levels[level].width, tuple(produced), (*axes, inputs, *used))


def _embeddings(variant: Variant) -> Iterator[ChannelGroup]:
    bn = variant.bn
    for level, sizes in enumerate(variant.levels[:LEVELS]):
        name, width = f"cross{level}", sizes.embedding
        coarser = f"deconv{level + 1}_{level}"
        context = _block_outputs(coarser, variant)
        axes = (*context.axes, *_cross_inputs(level, variant, 1))
        yield ChannelGroup("context", level, sizes.context, context.produced, axes)
        for number, before in ((1, ("cross_t11", "cross_t22")), (2, ("cross_t1", "cross_t2"))):
            added = [axis for layer in (*before, f"pos{number}") for axis in _rows(f"{name}.{layer}")]
            norm = _norm(f"{name}.bn{number}") if bn else ()
            mixed = _block_outputs(f"{name}.mlp{number}.0", variant)
            axes = (*added, *norm, Axis(f"{name}.bias{number}", 1), _block_inputs(f"{name}.mlp{number}.0"))
            if number == 1:
                after = tuple(Axis(f"{name}.{layer}.weight", 1) for layer in ("cross_t1", "cross_t2"))
            else:
                axes += (_block_inputs(f"deconv{level}_{level - 1}"),) if level else ()
                after = _conv_inputs(_conv(level, 0), variant, level, -1, level in variant.separable.estimators)
            yield ChannelGroup("embedding", level, width, tuple(added), axes)
            yield ChannelGroup("embedding", level, width, mixed.produced, (*mixed.axes, *after))


def _estimators(variant: Variant) -> Iterator[ChannelGroup]:
    for level, sizes in enumerate(variant.levels[:LEVELS]):
        first, second, blocks = _conv(level, 0), _conv(level, 1), f"flow{level}.mlp_convs"
        if level not in variant.separable.estimators:
            inputs = _conv_inputs(second, variant, level, 1, separable=False)
            for name, used in ((first, inputs), (second, (_block_inputs(f"{blocks}.0"),))):
                made = _conv_outputs(name, norm=True)
                yield ChannelGroup("estimator", level, sizes.estimator, made.produced, (*made.axes, *used))
        made = _block_outputs(f"{blocks}.0", variant)
        yield ChannelGroup(
            "estimator", level, sizes.estimator, made.produced, (*made.axes, _block_inputs(f"{blocks}.1"))
        )
        made = _block_outputs(f"{blocks}.1", variant)
        used = (Axis(f"flow{level}.fc.weight", 1),)
        if level:
            finer = level - 1
            used += _conv_inputs(_conv(finer, 0), variant, finer, 2, finer in variant.separable.estimators)
        yield ChannelGroup("estimator_features", level, sizes.estimator_features, made.produced, (*made.axes, *used))


def _weightnets(variant: Variant) -> Iterator[ChannelGroup]:
    """The outputs of the WeightNets of ordinary PointConvs."""
    encoder = [(level, f"level{level}") for level in range(1, LEVELS + 1) if level not in variant.separable.encoder]
    estimators = [level for level in range(LEVELS) if level not in variant.separable.estimators]
    for level, name in [*encoder, *((level, _conv(level, number)) for level in estimators for number in (0, 1))]:
        c_mid, last = variant.levels[level].c_mid, f"{name}.weightnet.mlp_convs.2"
        norm = f"{name}.weightnet.mlp_bns.2"
        columns = sum(input_parts(f"{name}.linear.weight", variant))
        used = Axis(f"{name}.linear.weight", 1, times=columns, stride=c_mid)
        produced = _rows(norm) if variant.bn else _rows(last)
        yield ChannelGroup("c_mid", level, c_mid, produced, (*_rows(last), *_norm(norm), used))


def _conv(level: int, number: int) -> str:
    return f"flow{level}.pointconv_list.{number}"
