# SPDX-License-Identifier: MIT
"""Matrix products of float32 on a CPU by oneDNN, which torch carries and whose kernels use all of a CPU's vectors.

Torch itself takes these products by MKL, whose kernels for processors that are not Intel's use half of them. Both
multiply and add in float32; they differ by rounding. Elsewhere (other types and devices, compiled networks, a torch
without it, `torch.backends.mkldnn.enabled = False`, `BPFN_ONEDNN=0`) torch's own products are taken.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAKY_SLOPE = 0.1


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """left (R, C) @ right (C, D), multiplied in the type of `right`, in the type of `left`; without gradients."""
    if left.dtype != right.dtype:
        return (left.to(right.dtype) @ right).to(left.dtype)
    return _multiply_transposed(left, right.t()) if _runs_onednn(left, right) else left @ right


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float = 1.0) -> Tensor:
    """x (..., C) times weight (D, C) transposed, plus bias (D), negative results times `slope`: (..., D)."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.compiler.is_compiling() or x.dim() < 2 or not _runs_onednn(*tensors):
        y = F.linear(x, weight, bias)
        return y if slope == 1 else F.leaky_relu_(y, slope)
    if x.dim() == 2:
        return _Linear.apply(x, weight, bias, slope)
    return _Linear.apply(x.flatten(0, -2), weight, bias, slope).view(*x.shape[:-1], len(weight))


def _runs_onednn(*tensors: Tensor) -> bool:
    single = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() for x in tensors)
    wanted = bool(torch.backends.mkldnn.enabled) and os.environ.get("BPFN_ONEDNN", "") != "0"
    plain_eager = not (torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"))
    return single and wanted and plain_eager and _has_onednn()


@cache
def _has_onednn() -> bool:
    """True when this torch has the operation, and it does what it did when this was written."""
    x, weight, bias, expected = (
        torch.tensor(values, dtype=torch.float32, device="cpu")
        for values in ([[1.0, 2.0]], [[3.0, -4.0], [5.0, 6.0]], [1.0, 1.0], [[-2.0, 18.0]])
    )
    try:
        return torch.equal(_multiply_transposed(x, weight, bias, 0.5), expected)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


def _multiply_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None, slope: float = 1.0) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # of other layouts oneDNN takes the product a hundred times slower
    bias = None if bias is None else bias.contiguous()  # of others it reads the wrong numbers
    if slope == 0:  # its own would make 0 of NaN, and a network that has diverged look sound
        return F.relu_(torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    after = ("none", [], "") if slope == 1 else ("leaky_relu", [slope], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
        return _multiply_transposed(x, weight, bias, slope)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
        x, weight, _, slope = inputs
        ctx.slope = slope
        ctx.save_for_backward(x, weight, *([] if slope == 1 else [output]))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        x, weight, *y = ctx.saved_tensors
        if y:  # the activation keeps the sign, so its result tells the slope
            gradient = torch.ops.aten.leaky_relu_backward(gradient, y[0], ctx.slope, True)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            multiply(gradient, weight) if needs_x else None,
            gradient.t() @ x if needs_weight else None,  # oneDNN would first transpose both
            gradient.sum(0) if needs_bias else None,
            None,
        )
