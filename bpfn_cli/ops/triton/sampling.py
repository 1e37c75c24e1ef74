# SPDX-License-Identifier: MIT
"""Farthest point sampling in Triton: one program per cloud, one launch for all steps of all clouds."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_IN_REGISTERS = 8192  # points of a cloud: 1024 threads hold 8 each
TILE = 4096  # points of a larger cloud that are processed together


def sample_with_triton(points: Tensor, count: int) -> Tensor:
    """`farthest_point_sample` on CUDA: the indices of `sample_with_torch`, bit for bit."""
    batch, number, _ = points.shape
    coordinates = points.float().transpose(1, 2).contiguous()
    chosen = torch.empty(batch, count, dtype=torch.int64, device=points.device)
    # A fused multiply-add rounds once, the reference twice: ties would be decided differently.
    options = {"enable_fp_fusion": False}
    with torch.cuda.device_of(points):
        if number <= MOST_IN_REGISTERS:
            block = triton.next_power_of_2(number)
            warps = max(1, block // 256)
            _sample_kernel[(batch,)](coordinates, chosen, number, count, BLOCK=block, num_warps=warps, **options)
        else:
            nearest = torch.full((batch, number), torch.inf, device=points.device)
            _sample_large_kernel[(batch,)](
                coordinates, nearest, chosen, number, count, BLOCK=TILE, num_warps=16, **options
            )
    return chosen


@triton.jit(do_not_specialize=["number", "count"])
def _sample_kernel(coordinates, chosen, number, count, BLOCK: tl.constexpr):
    """Coordinates (B, 3, number) and the distances to the chosen points stay in registers."""
    cloud = tl.program_id(0).to(tl.int64)
    coordinates += cloud * 3 * number
    chosen += cloud * count
    index = tl.arange(0, BLOCK)
    inside = index < number
    x = tl.load(coordinates + index, mask=inside, other=0.0)
    y = tl.load(coordinates + number + index, mask=inside, other=0.0)
    z = tl.load(coordinates + 2 * number + index, mask=inside, other=0.0)
    nearest = tl.where(inside, float("inf"), -1.0)  # padding is never farthest
    last = 0
    tl.store(chosen, last)
    for step in range(1, count):
        dx = x - tl.load(coordinates + last)
        dy = y - tl.load(coordinates + number + last)
        dz = z - tl.load(coordinates + 2 * number + last)
        nearest = tl.minimum(nearest, dx * dx + dy * dy + dz * dz)
        last = tl.argmax(nearest, axis=0)
        tl.store(chosen + step, last)


@triton.jit(do_not_specialize=["number", "count"])
def _sample_large_kernel(coordinates, nearest, chosen, number, count, BLOCK: tl.constexpr):
    """The same for clouds that do not fit in registers: `nearest` (B, number) starts as infinity."""
    cloud = tl.program_id(0).to(tl.int64)
    coordinates += cloud * 3 * number
    nearest += cloud * number
    chosen += cloud * count
    last = 0
    tl.store(chosen, last)
    for step in range(1, count):
        last_x = tl.load(coordinates + last)
        last_y = tl.load(coordinates + number + last)
        last_z = tl.load(coordinates + 2 * number + last)
        farthest = tl.full((BLOCK,), -1.0, tl.float32)
        farthest_index = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, number, BLOCK):
            index = start + tl.arange(0, BLOCK)
            inside = index < number
            dx = tl.load(coordinates + index, mask=inside, other=0.0) - last_x
            dy = tl.load(coordinates + number + index, mask=inside, other=0.0) - last_y
            dz = tl.load(coordinates + 2 * number + index, mask=inside, other=0.0) - last_z
            distance = tl.load(nearest + index, mask=inside, other=-1.0)
            distance = tl.minimum(distance, dx * dx + dy * dy + dz * dz)
            tl.store(nearest + index, distance, mask=inside)
            farther = distance > farthest
            farthest = tl.where(farther, distance, farthest)
            farthest_index = tl.where(farther, index, farthest_index)
        last = tl.min(tl.where(farthest == tl.max(farthest, axis=0), farthest_index, number), axis=0)
        tl.store(chosen + step, last)
