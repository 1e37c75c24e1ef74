# SPDX-License-Identifier: MIT
"""`propagate_max` in Triton: gather, add, LeakyReLU, product and maximum in one kernel, the gradients in another."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bpfn_cli.ops.products import LEAKY_SLOPE, argmax_type

BLOCK = 2048  # elements of the result per program: 16 per thread
BACKWARD_ROWS = 16


def propagate_max_with_triton(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """`neighborhood.propagate_max_with_torch` for float32; products are float32, never TF32.

    Where neighbors tie, the argmax is the first of them.
    """
    (rows, k), (outputs, channels) = neighbors.shape, weight.shape
    own, other, neighbors = own.contiguous(), other.contiguous(), neighbors.contiguous()
    transposed = weight.t().contiguous()  # adjacent threads then read adjacent banks
    largest = own.new_empty(rows, outputs)
    argmax = torch.empty(largest.shape if with_argmax else (0,), dtype=argmax_type(k), device=own.device)
    block_outputs = min(64, _padded(outputs))
    block_rows = BLOCK // block_outputs
    grid = triton.cdiv(rows, block_rows), triton.cdiv(outputs, block_outputs)
    tensors, sizes = (own, other, neighbors, transposed, largest, argmax), (rows, k, channels, outputs)
    blocks = {"ROWS": block_rows, "CHANNELS": min(32, _padded(channels)), "OUTPUTS": block_outputs}
    options = {"SLOPE": LEAKY_SLOPE, "WITH_ARGMAX": with_argmax, "enable_fp_fusion": True}
    with torch.cuda.device_of(own):
        _propagate_max_kernel[grid](*tensors, *sizes, **blocks, **options)
    return largest, argmax


def _padded(number: int) -> int:
    return max(16, triton.next_power_of_2(number))


@triton.jit(do_not_specialize=["rows", "k"])
def _propagate_max_kernel(
    own,
    other,
    neighbors,
    transposed,
    largest,
    argmax,
    rows,
    k,
    channels,
    outputs,
    SLOPE: tl.constexpr,
    WITH_ARGMAX: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Compute a block (ROWS, OUTPUTS) of the result, one neighbor at a time, with the maximum in registers."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = row < rows
    best = tl.full((ROWS, OUTPUTS), -float("inf"), tl.float32)
    best_neighbor = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for j in range(k):
        neighbor = tl.load(neighbors + row * k + j, mask=inside, other=0)
        outer = tl.zeros((ROWS, OUTPUTS), tl.float32)
        for start in range(0, channels, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            within = inside[:, None] & (channel < channels)[None, :]
            inner = tl.load(own + row[:, None] * channels + channel[None, :], mask=within, other=0.0)
            inner += tl.load(other + neighbor[:, None] * channels + channel[None, :], mask=within, other=0.0)
            inner = tl.where(inner > 0, inner, SLOPE * inner)
            matrix = tl.load(
                transposed + channel[:, None] * outputs + output[None, :],
                mask=(channel < channels)[:, None] & (output < outputs)[None, :],
                other=0.0,
            )
            outer = tl.dot(inner, matrix, outer, input_precision="ieee")
        if WITH_ARGMAX:
            best_neighbor = tl.where(outer > best, j, best_neighbor)
        # As in torch, NaN is the largest value: it must show that a network has diverged.
        best = tl.maximum(best, outer, propagate_nan=tl.PropagateNan.ALL)
    place = row[:, None] * outputs + output[None, :]
    within = inside[:, None] & (output < outputs)[None, :]
    tl.store(largest + place, best, mask=within)
    if WITH_ARGMAX:
        tl.store(argmax + place, best_neighbor.to(argmax.dtype.element_ty), mask=within)


def propagate_max_backward_with_triton(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `own`, `other` and `weight` from that of the maximum (R, D) and its `argmax` (R, D).

    The input of the LeakyReLU is recomputed. Sums over rows are atomic: their order, and so the last bits, vary.
    """
    (rows, k), (outputs, channels) = neighbors.shape, weight.shape
    gradient, own, other, neighbors, weight, argmax = (
        part.contiguous() for part in (gradient, own, other, neighbors, weight, argmax)
    )
    gradients = torch.empty_like(own), torch.zeros_like(other), torch.zeros_like(weight)
    block_channels = min(32, _padded(channels))
    grid = triton.cdiv(rows, BACKWARD_ROWS), triton.cdiv(channels, block_channels)
    inputs, sizes = (gradient, own, other, neighbors, weight, argmax), (rows, k, channels, outputs)
    options = {"SLOPE": LEAKY_SLOPE, "num_warps": 1, "enable_fp_fusion": True}
    with torch.cuda.device_of(own):
        _propagate_max_backward_kernel[grid](
            *inputs, *gradients, *sizes, ROWS=BACKWARD_ROWS, CHANNELS=block_channels, **options
        )
    return gradients


@triton.jit(do_not_specialize=["rows", "k"])
def _propagate_max_backward_kernel(
    gradient,
    own,
    other,
    neighbors,
    weight,
    argmax,
    own_gradient,
    other_gradient,
    weight_gradient,
    rows,
    k,
    channels,
    outputs,
    SLOPE: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Only the neighbor of each maximum gets a gradient: a row of W for each output, where a dense product would
    multiply k of them, nearly all by zero."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside, present = row < rows, channel < channels
    within = inside[:, None] & present[None, :]
    place = row[:, None] * channels + channel[None, :]
    own_values = tl.load(own + place, mask=within, other=0.0)
    own_sum = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(outputs):
        output = (tl.program_id(0) + step) % outputs  # keeps programs that start together from adding to the same row
        received = tl.load(gradient + row * outputs + output, mask=inside, other=0.0)[:, None]
        j = tl.load(argmax + row * outputs + output, mask=inside, other=0)
        neighbor = tl.load(neighbors + row * k + j, mask=inside, other=0)
        other_place = neighbor[:, None] * channels + channel[None, :]
        inner = own_values + tl.load(other + other_place, mask=within, other=0.0)
        received = tl.where(inner > 0, received, SLOPE * received)  # the slope applies to both products below
        matrix = tl.load(weight + output * channels + channel, mask=present, other=0.0)
        passed = received * matrix[None, :]
        own_sum += passed
        tl.atomic_add(other_gradient + other_place, passed, mask=within, sem="relaxed")
        weight_sum = tl.sum(received * inner, axis=0)
        tl.atomic_add(weight_gradient + output * channels + channel, weight_sum, mask=present, sem="relaxed")
    tl.store(own_gradient + place, own_sum, mask=within)
