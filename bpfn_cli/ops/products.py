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
    """left (R, C) @ right (C, D), multiplied in the type of `right`, in the type of `left`."""
    if left.dtype != right.dtype:
        return (left.to(right.dtype) @ right).to(left.dtype)
    return _multiply_transposed(left, right.t()) if _runs_onednn(left, right) else left @ right


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float = 1.0) -> Tensor:
    """x (..., C) times weight (D, C) transposed, plus bias (D), negative results times `slope`: (..., D)."""
    if torch.compiler.is_compiling() or not _runs_onednn(x, weight):
        y = F.linear(x, weight, bias)
        return y if slope == 1 else F.leaky_relu_(y, slope)
    if x.dim() == 2:
        return _Linear.apply(x, weight, bias, slope)
    return _Linear.apply(x.flatten(0, -2), weight, bias, slope).view(*x.shape[:-1], len(weight))


def _runs_onednn(*tensors: Tensor) -> bool:
    single = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    wanted = bool(torch.backends.mkldnn.enabled) and os.environ.get("BPFN_ONEDNN", "") != "0"
    return single and wanted and _has_onednn()


@cache
def _has_onednn() -> bool:
    """True when this torch has the operation, and it does what it did when this was written."""
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -4.0], [5.0, 6.0]]), torch.tensor([1.0, 1.0])
    try:
        return torch.equal(_multiply_transposed(x, weight, bias, 0.5), torch.tensor([[-2.0, 18.0]]))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


def _multiply_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None, slope: float = 1.0) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # of other layouts oneDNN takes the product a hundred times slower
    after = ("none", [], "") if slope == 1 else ("leaky_relu", [slope], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, slope: float
    ) -> Tensor:
        y = _multiply_transposed(x, weight, bias, slope)
        ctx.slope = slope
        ctx.save_for_backward(x, weight, *([] if slope == 1 else [y]))
        return y

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
