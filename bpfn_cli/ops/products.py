# SPDX-License-Identifier: MIT
"""Float32 matrix products on a CPU by MKL or oneDNN, which both ship with torch; which one depends on the shape.

torch itself uses MKL, whose kernels for non-Intel processors use half of the vector width; there, oneDNN is better for
every shape. On Intel processors MKL is up to 1.5 times as fast for sums over few products, oneDNN for long ones
(`benchmarks/products.py`). The choice is a rule, not a measurement in the process, so that equal runs give equal bits.
Both multiply and add in float32 and differ only by rounding. torch's own products are used for other types and devices,
in compiled networks, with a torch that lacks the operation, and with `torch.backends.mkldnn.enabled = False` or
`BPFN_ONEDNN=0`.
"""

import os
import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAKY_SLOPE = 0.1
LONG_SUM = 1000  # products in a sum from which on oneDNN is faster on Intel processors too


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Compute left (R, C) @ right (C, D) in the type of `right`; return it in that of `left`. Without gradients.

    For long sums, give a `right` whose transpose is contiguous: oneDNN is up to twice as fast.
    """
    if left.dtype != right.dtype:
        return (left.to(right.dtype) @ right).to(left.dtype)
    if _prefers_mkl(left.shape[1]) or not _runs_onednn(left, right):
        return left @ right
    return _multiply_transposed(left, right.t())


def add_product(result: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left (R, C) @ right (C, D) to `result` (R, D), both transposed or not. Without gradients."""
    if left.dtype == right.dtype == result.dtype and _prefers_mkl(left.shape[1]):
        result.addmm_(left, right)
    else:
        result += multiply(left, right)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float = 1.0) -> Tensor:
    """Multiply x (..., C) by weight (D, C) transposed, add bias (D), scale negative results by `slope`: (..., D)."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.compiler.is_compiling() or x.dim() < 2 or not _runs_onednn(*tensors):
        y = F.linear(x, weight, bias)
        return y if slope == 1 else F.leaky_relu_(y, slope)
    if x.dim() == 2:
        return _Linear.apply(x, weight, bias, slope)
    return _Linear.apply(x.flatten(0, -2), weight, bias, slope).view(*x.shape[:-1], len(weight))


def _prefers_mkl(products: int) -> bool:
    """Whether MKL is faster for sums of this many products."""
    return products < LONG_SUM and _is_intel()


@cache
def _is_intel() -> bool:
    """True on an Intel processor, if torch computes with MKL."""
    try:
        vendor = Path("/proc/cpuinfo").read_text()
    except OSError:
        vendor = platform.processor()
    return "GenuineIntel" in vendor and torch.backends.mkl.is_available()


def _runs_onednn(*tensors: Tensor) -> bool:
    single = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() for x in tensors)
    wanted = bool(torch.backends.mkldnn.enabled) and os.environ.get("BPFN_ONEDNN", "") != "0"
    plain_eager = not (torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"))
    return single and wanted and plain_eager and _has_onednn()


@cache
def _has_onednn() -> bool:
    """True if this torch has the operation, and it still computes what we expect."""
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
        weight = weight.contiguous()  # oneDNN is a hundred times slower on other layouts
    bias = None if bias is None else bias.contiguous()  # oneDNN misreads other layouts
    if slope == 0:  # oneDNN's activation would turn NaN into 0 and hide that a network has diverged
        return F.relu_(torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    activation = ("none", [], "") if slope == 1 else ("leaky_relu", [slope], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *activation)


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
        if y:  # the activation keeps the sign, so its output determines the slope
            gradient = torch.ops.aten.leaky_relu_backward(gradient, y[0], ctx.slope, True)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            multiply(gradient, weight) if needs_x else None,
            gradient.t() @ x if needs_weight else None,  # oneDNN would first transpose both factors
            gradient.sum(0) if needs_bias else None,
            None,
        )


def argmax_type(k: int) -> torch.dtype:
    """The type in which we number k neighbors."""
    return torch.uint8 if k <= 256 else torch.int32
