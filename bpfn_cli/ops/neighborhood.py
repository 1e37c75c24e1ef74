# SPDX-License-Identifier: MIT
"""The two operations of the network that look at every neighbor of every point, in chunks of rows.

Written operation by operation, each makes tensors of (points x neighbors x channels), which cost most of the memory
and, in page faults and cache misses, much of the time. Here a chunk of them is made, used and overwritten; the
backward pass makes it again. All rows of a batch stand in one matrix: neighbors are row numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfn_cli.ops import native
from bpfn_cli.ops.backend import runs_triton
from bpfn_cli.ops.products import LEAKY_SLOPE, multiply

CHUNK_ELEMENTS = 1 << 20  # of the largest tensor of a chunk: 4 MB of float32, which a core's cache about holds


def propagate_max(own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor) -> Tensor:
    """max_j W LeakyReLU(own_i + other_j) over the neighbors j of each row i, for each channel.

    Args:
        own: (R, C). other: (S, C).
        neighbors: (R, k) rows of `other`.
        weight: (D, C); the product is taken in its type, everything else in that of `own`.
    Returns: (R, D). Where neighbors tie, the gradient goes to one of them.
    """
    needed = torch.is_grad_enabled() and (own.requires_grad or other.requires_grad or weight.requires_grad)
    return _propagate_max(own, other, neighbors, weight, needed)[0]


def convolve_neighbors(offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor) -> Tensor:
    """sum_(m, c) matrix[m, c] sum_j weights[i, j, m] [offsets[i, j], features[j]]_c over the neighbors j of row i.

    Args:
        offsets: (R, k, 3) metres. features: (S, C).
        weights: (R, k, m).
        neighbors: (R, k) rows of `features`.
        matrix: (m, 3 + C, D); the product with it is taken in its type, everything else in that of `features`.
    Returns: (R, D).
    """
    return _convolve_neighbors(offsets, features, weights, neighbors, matrix)


def flatten_indices(indices: Tensor, number: int) -> Tensor:
    """Indices (B, ...) into each of B clouds of `number` points as rows of all clouds one after the other."""
    first = torch.arange(0, len(indices) * number, number, device=indices.device)
    return indices + first.view(-1, *[1] * (indices.dim() - 1))


def _rows_in_chunk(elements_per_row: int) -> int:
    return max(1, CHUNK_ELEMENTS // elements_per_row)


def _chunks(rows: int, elements_per_row: int) -> Iterator[slice]:
    size = _rows_in_chunk(elements_per_row)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


# max_j W LeakyReLU(own_i + other_j)


@torch.library.custom_op("bpfn::propagate_max", mutates_args=())
def _propagate_max(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    if native.runs_native(own, other) and neighbors.shape[-1] <= native.MOST_NEIGHBORS:
        return propagate_max_with_native(own, other, neighbors, weight, with_argmax)
    return propagate_max_with_torch(own, other, neighbors, weight, with_argmax)


@_propagate_max.register_kernel("cuda")
def _propagate_max_on_cuda(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    if not runs_triton(own, other, weight):
        return propagate_max_with_torch(own, other, neighbors, weight, with_argmax)
    from bpfn_cli.ops.triton.neighborhood import propagate_max_with_triton

    return propagate_max_with_triton(own, other, neighbors, weight, with_argmax)


def propagate_max_with_torch(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """`propagate_max` in plain torch, on any device, and if asked which neighbor it came from, (R, D); else (0,)."""
    (rows, k), channels = neighbors.shape, own.shape[1]
    largest = own.new_empty(rows, len(weight))
    argmax = neighbors.new_empty(largest.shape if with_argmax else (0,), dtype=argmax_type(k))
    transposed = weight.t()
    for part in _chunks(rows, k * max(weight.shape)):
        inner = _inner(own[part], other, neighbors[part])
        outer = multiply(inner.view(-1, channels), transposed).view(-1, k, len(weight))
        if with_argmax:
            largest[part], argmax[part] = outer.max(dim=1)
        else:
            largest[part] = outer.amax(dim=1)
    return largest, argmax


def propagate_max_with_native(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """The same with the C loops around the product."""
    neighbors = native.checked_rows(neighbors, len(own), len(other))
    (rows, k), (outputs, channels) = neighbors.shape, weight.shape
    native.check_shape("own", own, (rows, channels))
    native.check_shape("other", other, (len(other), channels))
    own, other = own.contiguous(), other.contiguous()
    largest = own.new_empty(rows, outputs)
    argmax = neighbors.new_empty(largest.shape if with_argmax else (0,), dtype=torch.uint8)
    inner = own.new_empty(min(rows, _rows_in_chunk(k * max(weight.shape))), k, own.shape[1])
    for part in _chunks(rows, k * max(weight.shape)):
        inner = inner[: part.stop - part.start]
        native.activate(own[part], other, neighbors[part], LEAKY_SLOPE, inner)
        outer = multiply(inner.flatten(0, 1), weight.t()).view(-1, k, outputs)
        native.largest(outer, largest[part], argmax[part] if with_argmax else None)
    return largest, argmax


def _inner(own: Tensor, other: Tensor, neighbors: Tensor) -> Tensor:
    """LeakyReLU(own_i + other_j), (r, k, C)."""
    inner = other.index_select(0, neighbors.flatten()).view(*neighbors.shape, -1)
    return F.leaky_relu_(inner.add_(own[:, None]), LEAKY_SLOPE)


def argmax_type(k: int) -> torch.dtype:
    """The smallest type of ours that numbers k neighbors."""
    return torch.uint8 if k <= 256 else torch.int32


@_propagate_max.register_fake
def _(own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool) -> tuple[Tensor, Tensor]:
    rows, k = neighbors.shape
    shape = (rows, weight.shape[0])
    return own.new_empty(shape), own.new_empty(shape if with_argmax else (0,), dtype=argmax_type(k))


@torch.library.custom_op("bpfn::propagate_max_backward", mutates_args=())
def _propagate_max_backward(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if native.runs_native(gradient, own, other) and argmax.dtype == torch.uint8:
        single = native.propagate_backward(gradient, own, other, neighbors, weight.to(own.dtype), argmax, LEAKY_SLOPE)
        return single[0], single[1], single[2].to(weight.dtype)
    return propagate_max_backward_with_torch(gradient, own, other, neighbors, weight, argmax)


@_propagate_max_backward.register_kernel("cuda")
def _propagate_max_backward_on_cuda(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not runs_triton(gradient, own, other, weight):
        return propagate_max_backward_with_torch(gradient, own, other, neighbors, weight, argmax)
    from bpfn_cli.ops.triton.neighborhood import propagate_max_backward_with_triton

    return propagate_max_backward_with_triton(gradient, own, other, neighbors, weight, argmax)


def propagate_max_backward_with_torch(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `own`, `other` and `weight` from that of the maximum (R, D) and its `argmax` (R, D).

    Only the neighbor of the maximum gets a gradient: D rows of W are added up for each i, where a dense product would
    multiply k D rows, nearly all of them zero. That is what `embedding_bag` does.
    """
    (rows, k), channels = neighbors.shape, own.shape[1]
    own_gradient, other_gradient = own.new_empty(own.shape), other.new_zeros(other.shape)
    weight_gradient, type_of_weight = own.new_zeros(weight.shape), weight.dtype
    weight = weight.to(own.dtype)
    for part in _chunks(rows, k * max(weight.shape)):
        inner = _inner(own[part], other, neighbors[part]).view(-1, channels)
        received = gradient[part]
        maxima = argmax[part] + torch.arange(0, len(inner), k, device=inner.device)[:, None]  # as rows of `inner`
        weight_gradient += F.embedding_bag(
            maxima.t().contiguous(), inner, mode="sum", per_sample_weights=received.t().contiguous()
        )
        order, counts = _channels_by_neighbor(argmax[part]), torch.bincount(maxima.flatten(), minlength=len(inner))
        inner_gradient = F.embedding_bag(
            order.flatten(),
            weight,
            offsets=counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=received.gather(1, order).flatten(),
        )
        # The activation keeps the sign, so its result tells the slope.
        inner_gradient = torch.ops.aten.leaky_relu_backward(inner_gradient, inner, LEAKY_SLOPE, True)
        torch.sum(inner_gradient.view(-1, k, channels), 1, out=own_gradient[part])
        other_gradient.index_add_(0, neighbors[part].flatten(), inner_gradient)
    return own_gradient, other_gradient, weight_gradient.to(type_of_weight)


def _channels_by_neighbor(argmax: Tensor) -> Tensor:
    """Channels (r, D) of each row in the order of their `argmax` (r, D)."""
    channels = argmax.shape[1]
    keys = argmax.to(torch.int32) * channels + torch.arange(channels, dtype=torch.int32, device=argmax.device)
    # NumPy sorts short rows of integers some twenty times faster.
    keys = torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.device.type == "cpu" else keys.sort(dim=1).values
    return (keys % channels).long()


@_propagate_max_backward.register_fake
def _(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return own.new_empty(own.shape), other.new_empty(other.shape), weight.new_empty(weight.shape)


def _save_propagate_max(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    own, other, neighbors, weight, _ = inputs
    ctx.save_for_backward(own, other, neighbors, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_propagate_max(ctx, gradient: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    gradients = _propagate_max_backward(gradient.contiguous(), *ctx.saved_tensors)
    return gradients[0], gradients[1], None, gradients[2], None


_propagate_max.register_autograd(_differentiate_propagate_max, setup_context=_save_propagate_max)


# sum_(m, c) matrix[m, c] sum_j weights[i, j, m] [offsets[i, j], features[j]]_c


@torch.library.custom_op("bpfn::convolve_neighbors", mutates_args=())
def _convolve_neighbors(
    offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor
) -> Tensor:
    middle, channels, outputs = matrix.shape
    result = features.new_empty(len(neighbors), outputs)
    flat, mixing = matrix.reshape(-1, outputs), _mixing(offsets, features, weights, neighbors)
    for part in _chunks(len(neighbors), max(middle, neighbors.shape[1]) * channels):
        result[part] = multiply(mixing.mix(part), flat)
    return result


class _Mixing:
    """sum_j weights[i, j, m] [offsets[i, j], features[j]] of parts of the rows i, (r, m (3 + C)); its gradients."""

    def __init__(self, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor):
        self.offsets, self.weights, self.neighbors = offsets, weights, neighbors
        self.padded = F.pad(features, (3, 0))

    def mix(self, part: slice) -> Tensor:
        return (self.weights[part].transpose(1, 2) @ self._grouped(part)).flatten(1)

    def start_backward(self) -> None:
        self.offsets_gradient = self.offsets.new_empty(self.offsets.shape)
        self.weights_gradient = self.weights.new_empty(self.weights.shape)
        self.padded_gradient = torch.zeros_like(self.padded)

    def mix_backward(self, part: slice, gradient: Tensor) -> None:
        """Take in the gradient (r, m (3 + C)) of a part of the rows."""
        gradient = gradient.view(len(gradient), self.weights.shape[2], -1)
        torch.bmm(self._grouped(part), gradient.transpose(1, 2), out=self.weights_gradient[part])
        grouped_gradient = self.weights[part] @ gradient
        self.offsets_gradient[part] = grouped_gradient[..., :3]
        self.padded_gradient.index_add_(0, self.neighbors[part].flatten(), grouped_gradient.flatten(0, 1))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of offsets, features and weights."""
        return self.offsets_gradient, self.padded_gradient[:, 3:].contiguous(), self.weights_gradient

    def _grouped(self, part: slice) -> Tensor:
        """[offset, feature] of each neighbor, (r, k, 3 + C)."""
        neighbors = self.neighbors[part]
        grouped = self.padded.index_select(0, neighbors.flatten()).view(*neighbors.shape, -1)
        grouped[..., :3] = self.offsets[part]
        return grouped


class _NativeMixing:
    """The same with the C loops."""

    def __init__(self, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor):
        self.neighbors = native.checked_rows(neighbors, len(offsets), len(features))
        native.check_shape("offsets", offsets, (*neighbors.shape, 3))
        native.check_shape("weights", weights, (*neighbors.shape, weights.shape[-1]))
        self.offsets, self.features = offsets.contiguous(), features.contiguous()
        self.weights = weights.contiguous()

    def mix(self, part: slice) -> Tensor:
        offsets, weights, neighbors = self.offsets[part], self.weights[part], self.neighbors[part]
        mixed = offsets.new_empty(len(neighbors), weights.shape[2], 3 + self.features.shape[1])
        native.mix(offsets, self.features, weights, neighbors, mixed)
        return mixed.flatten(1)

    def start_backward(self) -> None:
        self.offsets_gradient, self.weights_gradient = torch.empty_like(self.offsets), torch.empty_like(self.weights)
        self.features_gradient = torch.zeros_like(self.features)

    def mix_backward(self, part: slice, gradient: Tensor) -> None:
        inputs = self.offsets[part], self.features, self.weights[part], self.neighbors[part]
        results = self.offsets_gradient[part], self.features_gradient, self.weights_gradient[part]
        native.mix_backward(gradient.contiguous(), *inputs, results)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.offsets_gradient, self.features_gradient, self.weights_gradient


def _mixing(offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor) -> _Mixing | _NativeMixing:
    fits = max(weights.shape[1:]) <= native.MOST_NEIGHBORS
    chosen = _NativeMixing if fits and native.runs_native(offsets, features, weights) else _Mixing
    return chosen(offsets, features, weights, neighbors)


@_convolve_neighbors.register_fake
def _(offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor) -> Tensor:
    return features.new_empty(neighbors.shape[0], matrix.shape[2])


@torch.library.custom_op("bpfn::convolve_neighbors_backward", mutates_args=())
def _convolve_neighbors_backward(
    gradient: Tensor, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    middle, channels, outputs = matrix.shape
    flat, mixing = matrix.reshape(-1, outputs), _mixing(offsets, features, weights, neighbors)
    matrix_gradient = features.new_zeros(flat.shape[::-1])  # transposed: the product then rearranges its smaller factor
    mixing.start_backward()
    for part in _chunks(len(neighbors), max(middle, neighbors.shape[1]) * channels):
        received = gradient[part]
        matrix_gradient += multiply(received.t(), mixing.mix(part).to(flat.dtype))
        mixing.mix_backward(part, multiply(received, flat.t()))
    return *mixing.gradients(), matrix_gradient.t().contiguous().view(matrix.shape).to(matrix.dtype)


@_convolve_neighbors_backward.register_fake
def _(
    gradient: Tensor, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        offsets.new_empty(offsets.shape),
        features.new_empty(features.shape),
        weights.new_empty(weights.shape),
        matrix.new_empty(matrix.shape),
    )


def _save_convolve_neighbors(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_convolve_neighbors(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
    offsets, features, weights, matrix = _convolve_neighbors_backward(gradient.contiguous(), *ctx.saved_tensors)
    return offsets, features, weights, None, matrix


_convolve_neighbors.register_autograd(_differentiate_convolve_neighbors, setup_context=_save_convolve_neighbors)
