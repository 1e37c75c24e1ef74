# SPDX-License-Identifier: MIT
"""Exact nearest neighbors in Triton: points are sorted by location, and tiles of them visited nearest first.

Points and queries are ordered along a space-filling curve, so 32 consecutive points fill a small box. A program takes
8 consecutive queries, visits boxes from the nearest outwards, and stops at a box farther away than the k-th neighbor
of each query, after few of all boxes. The neighbors found so far are a sorted list of 64-bit keys, the bits of the
squared distance above the index: non-negative floats are ordered like their bits, and at equal distances the lower
index is the smaller key. No matrix of all distances is created.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_NEIGHBORS = 64
MOST_POINTS = 1 << 17  # a program keeps the distances of all tiles in registers
ROWS = 8  # queries per program
NEVER = tl.constexpr(0x7FFFFFFF)  # above the bits of any distance
NOTHING = tl.constexpr(0x7FFFFFFF_FFFFFFFF)  # the key of a neighbor not found yet


def knn_with_triton(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`knn` on CUDA for float32, k <= MOST_NEIGHBORS and M <= MOST_POINTS. The lowest index wins a tie."""
    batch, number, _ = queries.shape
    count = points.shape[1]
    queries, points = queries.contiguous(), points.contiguous()
    width = max(32, triton.next_power_of_2(k))
    tiles = triton.cdiv(count, width)
    coordinates = points.new_empty(batch, 3, tiles * width)
    boxes = points.new_empty(batch, 2, 3, tiles)
    found = torch.empty(batch, number, k, dtype=torch.int64, device=queries.device)
    # A box is skipped by comparing its distance with those of points: both must round alike.
    exact = {"num_warps": 1, "enable_fp_fusion": False}
    blocks = {"ROWS": ROWS, "STAGES": width.bit_length() - 1, "TILES": max(32, triton.next_power_of_2(tiles))}
    with torch.cuda.device_of(points):
        query_order, point_order = _order_by_place(queries), _order_by_place(points)
        _tile_kernel[(tiles, batch)](points, point_order, coordinates, boxes, count, tiles, WIDTH=width, **exact)
        tensors = (queries, query_order, coordinates, boxes, point_order, found)
        _nearest_kernel[(triton.cdiv(number, ROWS), batch)](*tensors, number, count, k, tiles, **blocks, **exact)
    return found


def _order_by_place(cloud: Tensor) -> Tensor:
    """Indices (B, N) that sort each contiguous cloud (B, N, 3) in Morton order."""
    batch, number, _ = cloud.shape
    low, high = cloud.aminmax(dim=1)
    codes = torch.empty(batch, number, dtype=torch.int32, device=cloud.device)
    _code_kernel[(triton.cdiv(number, 512), batch)](cloud, low, high, codes, number, BLOCK=512, enable_fp_fusion=False)
    return codes.sort(dim=1, stable=True).indices


@triton.jit(do_not_specialize=["number"])
def _code_kernel(cloud, low, high, codes, number, BLOCK: tl.constexpr):
    """Morton codes (B, number) of a lattice of 1024 cells along the longest edge of the cloud."""
    batch = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < number
    edge = 1e-30
    for axis in tl.static_range(3):
        edge = tl.maximum(edge, tl.load(high + batch * 3 + axis) - tl.load(low + batch * 3 + axis))
    code = tl.zeros((BLOCK,), tl.int32)
    for axis in tl.static_range(3):
        lowest = tl.load(low + batch * 3 + axis)
        offset = tl.load(cloud + (batch * number + index) * 3 + axis, mask=inside, other=lowest) - lowest
        cell = (offset / edge * 1023.0).to(tl.int32)
        # Spread ten bits to every third position.
        cell = (cell | (cell << 16)) & 0x030000FF
        cell = (cell | (cell << 8)) & 0x0300F00F
        cell = (cell | (cell << 4)) & 0x030C30C3
        cell = (cell | (cell << 2)) & 0x09249249
        code |= cell << axis
    tl.store(codes + batch * number + index, code, mask=inside)


@triton.jit(do_not_specialize=["number", "tiles"])
def _tile_kernel(points, order, coordinates, boxes, number, tiles, WIDTH: tl.constexpr):
    """Coordinates (B, 3, tiles * WIDTH) in order, and the lower and upper corners (B, 2, 3, tiles) of the tiles."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place = tile * WIDTH + tl.arange(0, WIDTH)
    index = tl.load(order + batch * number + tl.minimum(place, number - 1))  # the last point pads the last tile
    for axis in tl.static_range(3):
        value = tl.load(points + (batch * number + index) * 3 + axis)
        tl.store(coordinates + (batch * 3 + axis) * tiles * WIDTH + place, value)
        tl.store(boxes + (batch * 6 + axis) * tiles + tile, tl.min(value, axis=0))
        tl.store(boxes + (batch * 6 + 3 + axis) * tiles + tile, tl.max(value, axis=0))


@triton.jit(do_not_specialize=["number", "count", "k"])
def _nearest_kernel(
    queries,
    query_order,
    coordinates,
    boxes,
    point_order,
    found,
    number,
    count,
    k,
    tiles,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    TILES: tl.constexpr,
):
    """Search; tiles are 2**STAGES points wide, and so is the list of neighbors. TILES: `tiles`, padded."""
    WIDTH: tl.constexpr = 2**STAGES
    batch = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = batch * number + tl.load(query_order + batch * number + tl.minimum(place, number - 1))
    x = tl.load(queries + row * 3)
    y = tl.load(queries + row * 3 + 1)
    z = tl.load(queries + row * 3 + 2)
    coordinates += batch * 3 * tiles * WIDTH
    boxes += batch * 6 * tiles
    point_order += batch * count

    tile = tl.arange(0, TILES)
    dx = _gap(x, boxes + tile, tiles, tile)
    dy = _gap(y, boxes + tiles + tile, tiles, tile)
    dz = _gap(z, boxes + 2 * tiles + tile, tiles, tile)
    gap = (_distance_bits(dx, dy, dz).to(tl.int64) << 32) | tile
    gap = tl.where(tile < tiles, gap, NOTHING)

    column = tl.arange(0, WIDTH)[None, :]
    nearest = tl.full((ROWS, WIDTH), NOTHING, tl.int64)
    kth = tl.full((ROWS,), NOTHING, tl.int64)
    worst = tl.max(kth, axis=0) >> 32
    next_gap = tl.min(gap, axis=0)
    while ((next_gap >> 32) <= worst) & (next_gap != NOTHING):
        gap = tl.where(gap == next_gap, NOTHING, gap)
        start = (next_gap & NEVER).to(tl.int32) * WIDTH
        keys = _keys(x, y, z, coordinates + start, tiles * WIDTH, point_order + start, count - start, WIDTH)
        if tl.max((keys < kth[:, None]).to(tl.int32)) > 0:
            # The smaller of each pair of an ascending and a descending list: the smallest of both, in no order.
            nearest = tl.minimum(nearest, _sort(keys, STAGES, 1))
            nearest = _merge(nearest, STAGES, STAGES, 0)
            kth = tl.max(tl.where(column == k - 1, nearest, 0), axis=1)
            worst = tl.max(kth, axis=0) >> 32
        next_gap = tl.min(gap, axis=0)

    # Points that are not finite have keys too, so each row has found k neighbors.
    tl.store(found + row[:, None] * k + column, nearest & NEVER, mask=(place < number)[:, None] & (column < k))


@triton.jit
def _gap(values, low, tiles, tile):
    """Distance along an axis between the range of `values` and that of each tile; a lower bound also after rounding."""
    inside = tile < tiles
    before = tl.load(low, mask=inside, other=0.0) - tl.max(values, axis=0)
    behind = tl.min(values, axis=0) - tl.load(low + 3 * tiles, mask=inside, other=0.0)
    return tl.maximum(tl.maximum(before, behind), 0.0)


@triton.jit
def _distance_bits(dx, dy, dz):
    return (dx * dx + dy * dy + dz * dz).to(tl.int32, bitcast=True)


@triton.jit
def _keys(x, y, z, coordinates, stride, order, left, WIDTH: tl.constexpr):
    """Keys (ROWS, WIDTH) of the points of a tile; only the first `left` of them are points."""
    column = tl.arange(0, WIDTH)[None, :]
    dx = x[:, None] - tl.load(coordinates + column)
    dy = y[:, None] - tl.load(coordinates + stride + column)
    dz = z[:, None] - tl.load(coordinates + 2 * stride + column)
    index = tl.load(order + column, mask=column < left, other=0)
    keys = (_distance_bits(dx, dy, dz).to(tl.int64) << 32) | index
    return tl.where(column < left, keys, NOTHING)


@triton.jit
def _sort(keys, STAGES: tl.constexpr, DESCENDING: tl.constexpr):
    """Batcher's bitonic sort of each row of 2**STAGES keys."""
    for stage in tl.static_range(1, STAGES + 1):
        keys = _merge(keys, stage, STAGES, DESCENDING)
    return keys


@triton.jit
def _merge(keys, STAGE: tl.constexpr, STAGES: tl.constexpr, DESCENDING: tl.constexpr):
    """Sort runs of 2**STAGE bitonic keys, in alternating directions, the first as DESCENDING says."""
    column = tl.arange(0, 2**STAGES)[None, :]
    ascending = ((column >> STAGE) & 1) == DESCENDING
    for step in tl.static_range(STAGE):
        distance = 1 << (STAGE - 1 - step)
        partner = tl.gather(keys, tl.broadcast_to(column ^ distance, keys.shape), 1)
        takes_smaller = ((column & distance) == 0) == ascending
        keys = tl.where(takes_smaller, tl.minimum(keys, partner), tl.maximum(keys, partner))
    return keys
