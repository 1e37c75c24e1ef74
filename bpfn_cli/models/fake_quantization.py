# SPDX-License-Identifier: MIT
"""What int8 inference rounds, computed in float32 with gradients: the weights of a layer and its input.

Weights have a scale for each output channel and no zero point; inputs have one scale and zero point, from a range.
Rounding has the gradient of the identity, and a clipped value has none. torch's own fake quantization is not used,
since it turns NaN into a number, which hides that a network has diverged.
Source: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.models.storage import LARGEST_INT8

# Lowest and highest value of the input of a layer, by the name of the layer.
Ranges = Mapping[str, tuple[float, float]]

RANGES = "int8_ranges"  # key in the metadata of a checkpoint
STEPS = 255  # of an 8-bit range
OUTSIDE = 1e-4  # share of the values below a range, and of those above
MOST_VALUES = 2**17  # of an input, from which its range is taken
MOMENTUM = 0.05  # of the moving average of a range, for each batch

# What stays in float32: layers that see coordinates, weights of interpolations, the flow itself, and depthwise layers,
# which are no matrix products.
_FLOAT = re.compile(r"level0\.(reduce\.)?composed_module\.0|.*\.(pos[12]|fc)|.*\.(weightnet|depthwise)\..*")


def is_quantized(layer: str) -> bool:
    """Whether int8 inference rounds a layer, by its name in the network."""
    return _FLOAT.fullmatch(layer) is None


class FakeQuantizer(nn.Module):
    """Rounds the input of a layer to the 256 steps of a range, and the rows of its matrix.

    In training mode the range follows the inputs, as a moving average of their percentiles.

    Attributes: low, high: the range, which includes 0; equal until the first batch, when nothing is rounded.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("low", "high"):  # not in the state dict of the network
            self.register_buffer(name, torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Round inputs, of any shape."""
        if self.training:
            self._follow(x.detach())
        scale = (self.high - self.low) / STEPS
        if not scale > 0:
            return x
        low = (self.low / scale).round() * scale  # so that 0 is a step
        return _Rounded.apply(x.clamp(low, low + STEPS * scale), scale)

    def weight(self, weight: Tensor) -> Tensor:
        """Round a weight (outputs, ...)."""
        scales = weight.detach().flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST_INT8
        return _Rounded.apply(weight, scales.view(-1, *[1] * (weight.dim() - 1)))

    def _follow(self, x: Tensor) -> None:
        some = _some_values(x)
        diverged = 0 * x.sum()  # NaN if a value is not finite
        low = diverged + some.quantile(OUTSIDE, interpolation="lower").clamp(max=0)
        high = diverged + some.quantile(1 - OUTSIDE, interpolation="higher").clamp(min=0)
        share = MOMENTUM if self.high > self.low else 1.0
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)


def _some_values(x: Tensor) -> Tensor:
    """At most MOST_VALUES values, evenly spread over the tensor and equally many of each channel."""
    count = x.numel()
    if count <= MOST_VALUES:
        return x.flatten()
    stride = round(count * (5**0.5 - 1) / 2)
    while math.gcd(stride, count) > 1:  # or it would meet some channels only
        stride += 1
    return x.flatten()[torch.arange(MOST_VALUES, device=x.device) * stride % count]


class _Rounded(torch.autograd.Function):
    """x in whole multiples of a scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return (x / scale).round().mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def add_quantizers(network: nn.Module) -> None:
    """Let the layers of a network that int8 inference rounds round too.

    Raises: UsageError: its separable layers multiply matrices, whose product int8 inference rounds.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and is_quantized(name):
            if layer.weight.shape[0] > 1 and getattr(layer, "groups", 1) > 1:
                raise UsageError(f"train.quantize int8: {name} is separable, which cannot be quantized; choose another")
            layer.quantizer = FakeQuantizer().to(layer.weight.device)


def quantizers(network: nn.Module) -> dict[str, FakeQuantizer]:
    """The quantizers of a network, by the names of their layers."""
    found = network.named_modules()
    return {name.removesuffix(".quantizer"): one for name, one in found if isinstance(one, FakeQuantizer)}


def quantizer_of(layer: nn.Module) -> FakeQuantizer | None:
    """The quantizer of a layer; None: it computes in float32."""
    return layer._modules.get("quantizer")  # type: ignore[return-value]


def get_ranges(network: nn.Module) -> dict[str, tuple[float, float]]:
    """The ranges of the quantizers of a network."""
    return {name: (float(one.low), float(one.high)) for name, one in quantizers(network).items()}


def set_ranges(network: nn.Module, ranges: Ranges) -> None:
    """Raises: KeyError: a quantizer has none."""
    for name, one in quantizers(network).items():
        for end, value in zip((one.low, one.high), ranges[name], strict=True):
            end.fill_(value)


@torch.no_grad()
def round_weights(network: nn.Module) -> None:
    """Round the weights in place, so that they are what the quantizers make of them."""
    for name, one in quantizers(network).items():
        weight = network.get_submodule(name).weight
        weight.copy_(one.weight(weight))  # type: ignore[operator, arg-type]


def parse_ranges(metadata: Mapping[str, Any], name: str) -> Ranges | None:
    """The learned ranges in the metadata of a checkpoint; None: it was not trained for int8.

    Args: name: of the file, for errors. Raises: CheckpointError: they are not valid.
    """
    found = metadata.get(RANGES)
    if found is None:
        return None
    try:
        ranges = {str(layer): (float(low), float(high)) for layer, (low, high) in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{name}: {RANGES} is not a table of ranges; write it again") from None
    for layer, (low, high) in ranges.items():
        if not -torch.inf < low <= 0 <= high < torch.inf:
            raise CheckpointError(f"{name}: {RANGES} {printable(layer)} is not a range around 0; write it again")
    return ranges
