# SPDX-License-Identifier: MIT
"""The two operations of the network that visit every neighbor of every point, computed in chunks of rows.

Written operation by operation, each would create tensors of (points x neighbors x channels), which take most of the
memory and, through page faults and cache misses, much of the time. Here such a tensor exists for one chunk only; the
backward pass computes it again. All clouds of a batch form one matrix, and neighbors are row numbers.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfn_cli.ops import backend, native
from bpfn_cli.ops.operation import operation
from bpfn_cli.ops.products import LEAKY_SLOPE, add_product, argmax_type, multiply

CHUNK_ELEMENTS = 1 << 20  # of the largest tensor of a chunk: 4 MB of float32, about a core's cache


def propagate_max(own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor) -> Tensor:
    """max_j W LeakyReLU(own_i + other_j) over the neighbors j of each row i, per channel.

    Args:
        own: (R, C). other: (S, C). neighbors: (R, k) rows of `other`.
        weight: (D, C); the product is computed in its type, everything else in that of `own`.
    Returns: (R, D). If neighbors tie, one of them gets the gradient.
    """
    needed = torch.is_grad_enabled() and (own.requires_grad or other.requires_grad or weight.requires_grad)
    return _propagate_max(own, other, neighbors, weight, needed)[0]


def convolve_neighbors(offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor) -> Tensor:
    """sum_(m, c) matrix[m, c] sum_j weights[i, j, m] [offsets[i, j], features[j]]_c over the neighbors j of row i.

    Args:
        offsets: (R, k, 3) metres. features: (S, C). weights: (R, k, m). neighbors: (R, k) rows of `features`.
        matrix: (m, 3 + C, D); the product with it is computed in its type, everything else in that of `features`.
    Returns: (R, D).
    """
    return _convolve_neighbors(offsets, features, weights, neighbors, matrix)


def flatten_indices(indices: Tensor, number: int) -> Tensor:
    """Convert indices (B, ...) into each of B clouds of `number` points to rows of all clouds concatenated."""
    first = torch.arange(0, len(indices) * number, number, device=indices.device)
    return indices + first.view(-1, *[1] * (indices.dim() - 1))


def _chunk_rows(elements_per_row: int) -> int:
    return max(1, CHUNK_ELEMENTS // elements_per_row)


def _chunks(rows: int, elements_per_row: int) -> Iterator[slice]:
    size = _chunk_rows(elements_per_row)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


# max_j W LeakyReLU(own_i + other_j)


@operation("bpfn::propagate_max")
def _propagate_max(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    implementation = propagate_max_with_torch
    if backend.runs_triton(own, other, weight):
        from bpfn_cli.ops.triton.neighborhood import propagate_max_with_triton as implementation
    elif native.runs_native(own, other) and neighbors.shape[-1] <= native.MOST_NEIGHBORS:
        implementation = propagate_max_with_native
    return implementation(own, other, neighbors, weight, with_argmax)


def propagate_max_with_torch(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """`propagate_max` in plain torch, on any device.

    Returns: (R, D), and with `with_argmax` which neighbor the maximum came from, (R, D); otherwise (0,).
    """
    (rows, k), channels = neighbors.shape, own.shape[1]
    largest, argmax = _propagate_max_shape(own, other, neighbors, weight, with_argmax)
    for part in _chunks(rows, k * max(weight.shape)):
        inner = _inner(own[part], other, neighbors[part])
        outer = multiply(inner.view(-1, channels), weight.t()).view(-1, k, len(weight))
        if with_argmax:
            largest[part], argmax[part] = outer.max(dim=1)
        else:
            largest[part] = outer.amax(dim=1)
    return largest, argmax


def propagate_max_with_native(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """`propagate_max_with_torch` with C loops before and after the product."""
    neighbors = native.checked_rows(neighbors, len(own), len(other))
    (rows, k), (outputs, channels) = neighbors.shape, weight.shape
    native.check_shapes(own=(own, (rows, channels)), other=(other, (len(other), channels)))
    own, other = own.contiguous(), other.contiguous()
    largest, argmax = _propagate_max_shape(own, other, neighbors, weight, with_argmax)
    if native.fuses(own, other, weight):
        native.propagate(own, other, neighbors, weight, LEAKY_SLOPE, largest, argmax if with_argmax else None)
        return largest, argmax
    inner = own.new_empty(min(rows, _chunk_rows(k * max(weight.shape))), k, channels)
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


@_propagate_max.register_fake
def _propagate_max_shape(
    own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    rows, k = neighbors.shape
    shape = (rows, weight.shape[0])
    return own.new_empty(shape), own.new_empty(shape if with_argmax else (0,), dtype=argmax_type(k))


@operation("bpfn::propagate_max_backward")
def _propagate_max_backward(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if backend.runs_triton(gradient, own, other, weight):
        from bpfn_cli.ops.triton.neighborhood import propagate_max_backward_with_triton

        return propagate_max_backward_with_triton(gradient, own, other, neighbors, weight, argmax)
    if native.runs_native(gradient, own, other) and argmax.dtype == torch.uint8:
        single = native.propagate_backward(gradient, own, other, neighbors, weight.to(own.dtype), argmax, LEAKY_SLOPE)
        return single[0], single[1], single[2].to(weight.dtype)
    return propagate_max_backward_with_torch(gradient, own, other, neighbors, weight, argmax)


def propagate_max_backward_with_torch(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `own`, `other` and `weight` from that of the maximum (R, D) and its `argmax` (R, D).

    Only the neighbor of the maximum gets a gradient: `embedding_bag` adds D rows of W for each i, where a dense
    product would multiply k D rows, nearly all of them zero.
    """
    (rows, k), channels = neighbors.shape, own.shape[1]
    own_gradient, other_gradient = own.new_empty(own.shape), other.new_zeros(other.shape)
    weight_gradient, single = own.new_zeros(weight.shape), weight.to(own.dtype)
    for part in _chunks(rows, k * max(weight.shape)):
        inner = _inner(own[part], other, neighbors[part]).view(-1, channels)
        received = gradient[part]
        maxima = argmax[part] + torch.arange(0, len(inner), k, device=inner.device)[:, None]  # as rows of `inner`
        weight_gradient += _weighted_sums(maxima.t().contiguous(), inner, received.t().contiguous())
        order, counts = _channels_by_neighbor(argmax[part]), torch.bincount(maxima.flatten(), minlength=len(inner))
        starts, ordered = counts.cumsum(0) - counts, received.gather(1, order).flatten()
        inner_gradient = _weighted_sums(order.flatten(), single, ordered, starts)
        # The activation keeps the sign, so its output determines the slope.
        inner_gradient = torch.ops.aten.leaky_relu_backward(inner_gradient, inner, LEAKY_SLOPE, True)
        torch.sum(inner_gradient.view(-1, k, channels), 1, out=own_gradient[part])
        other_gradient.index_add_(0, neighbors[part].flatten(), inner_gradient)
    return own_gradient, other_gradient, weight_gradient.to(weight.dtype)


def _weighted_sums(rows: Tensor, matrix: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Sum `rows` of a matrix times `weights`: per row of `rows` (2D), or from each of `starts` to the next (1D)."""
    return F.embedding_bag(rows, matrix, offsets=starts, mode="sum", per_sample_weights=weights)


def _channels_by_neighbor(argmax: Tensor) -> Tensor:
    """Channels (r, D) of each row, ordered by their `argmax` (r, D)."""
    channels = argmax.shape[1]
    keys = argmax.to(torch.int32) * channels + torch.arange(channels, dtype=torch.int32, device=argmax.device)
    # NumPy sorts short rows of integers some twenty times faster.
    keys = torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.device.type == "cpu" else keys.sort(dim=1).values
    return (keys % channels).long()


@_propagate_max_backward.register_fake
def _(
    gradient: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, argmax: Tensor
) -> tuple[Tensor, ...]:
    return own.new_empty(own.shape), other.new_empty(other.shape), weight.new_empty(weight.shape)


def _save_propagate_max(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_propagate_max(ctx, gradient: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    own, other, weight = _propagate_max_backward(gradient.contiguous(), *ctx.saved_tensors)
    return own, other, None, weight, None


_propagate_max.register_autograd(_differentiate_propagate_max, setup_context=_save_propagate_max)


# sum_(m, c) matrix[m, c] sum_j weights[i, j, m] [offsets[i, j], features[j]]_c


@operation("bpfn::convolve_neighbors")
def _convolve_neighbors(
    offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor
) -> Tensor:
    middle, channels, outputs = matrix.shape
    result = features.new_empty(len(neighbors), outputs)
    mixing = _mixing(offsets, features, weights, neighbors)
    if isinstance(mixing, _NativeMixing) and native.fuses(features, matrix):
        mixing.convolve(matrix, result)
        return result
    flat = matrix.reshape(-1, outputs).t().contiguous().t()  # as `multiply` wants it
    for part in _chunks(len(neighbors), max(middle, neighbors.shape[1]) * channels):
        result[part] = multiply(mixing.mix(part), flat)
    return result


class _TorchMixing:
    """sum_j weights[i, j, m] [offsets[i, j], features[j]] for parts of the rows i, (r, m (3 + C)), and its gradients.

    After `start_backward` and `mix_backward` of all parts, `gradients` holds those of offsets, features and weights.
    """

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
        """Add the gradient (r, m (3 + C)) of a part of the rows."""
        gradient = gradient.view(len(gradient), self.weights.shape[2], -1)
        torch.bmm(self._grouped(part), gradient.transpose(1, 2), out=self.weights_gradient[part])
        grouped_gradient = self.weights[part] @ gradient
        self.offsets_gradient[part] = grouped_gradient[..., :3]
        self.padded_gradient.index_add_(0, self.neighbors[part].flatten(), grouped_gradient.flatten(0, 1))

    @property
    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.offsets_gradient, self.padded_gradient[:, 3:].contiguous(), self.weights_gradient

    def _grouped(self, part: slice) -> Tensor:
        """[offset, feature] of each neighbor, (r, k, 3 + C)."""
        neighbors = self.neighbors[part]
        grouped = self.padded.index_select(0, neighbors.flatten()).view(*neighbors.shape, -1)
        grouped[..., :3] = self.offsets[part]
        return grouped


class _NativeMixing:
    """`_TorchMixing` with C loops."""

    def __init__(self, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor):
        self.neighbors = native.checked_rows(neighbors, len(offsets), len(features))
        rows = self.neighbors.shape
        native.check_shapes(offsets=(offsets, (*rows, 3)), weights=(weights, (*rows, weights.shape[-1])))
        self.offsets, self.features, self.weights = (x.contiguous() for x in (offsets, features, weights))

    def mix(self, part: slice) -> Tensor:
        offsets, weights, neighbors = self.offsets[part], self.weights[part], self.neighbors[part]
        mixed = offsets.new_empty(len(neighbors), weights.shape[2], 3 + self.features.shape[1])
        native.mix(offsets, self.features, weights, neighbors, mixed)
        return mixed.flatten(1)

    def convolve(self, matrix: Tensor, result: Tensor) -> None:
        """All rows times a matrix (m, 3 + C, D). Raises: ShapeError."""
        expected = self.weights.shape[2], 3 + self.features.shape[1], matrix.shape[2]
        native.check_shapes(matrix=(matrix, expected))
        native.convolve(self.offsets, self.features, self.weights, self.neighbors, matrix, result)

    def start_backward(self) -> None:
        self.gradients = torch.empty_like(self.offsets), torch.zeros_like(self.features), torch.empty_like(self.weights)

    def mix_backward(self, part: slice, gradient: Tensor) -> None:
        inputs = self.offsets[part], self.features, self.weights[part], self.neighbors[part]
        offsets, features, weights = self.gradients
        native.mix_backward(gradient.contiguous(), *inputs, (offsets[part], features, weights[part]))


def _mixing(offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor) -> _TorchMixing | _NativeMixing:
    fits = max(weights.shape[1:]) <= native.MOST_NEIGHBORS
    chosen = _NativeMixing if fits and native.runs_native(offsets, features, weights) else _TorchMixing
    return chosen(offsets, features, weights, neighbors)


@_convolve_neighbors.register_fake
def _(offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor) -> Tensor:
    return features.new_empty(neighbors.shape[0], matrix.shape[2])


@operation("bpfn::convolve_neighbors_backward")
def _convolve_neighbors_backward(
    gradient: Tensor, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    middle, channels, outputs = matrix.shape
    flat, mixing = matrix.reshape(-1, outputs), _mixing(offsets, features, weights, neighbors)
    matrix_gradient = features.new_zeros(flat.shape[::-1])  # transposed: the product then copies its smaller factor
    mixing.start_backward()
    for part in _chunks(len(neighbors), max(middle, neighbors.shape[1]) * channels):
        received = gradient[part]
        add_product(matrix_gradient, received.t(), mixing.mix(part).to(flat.dtype))
        mixing.mix_backward(part, multiply(received, flat.t()))
    return *mixing.gradients, matrix_gradient.t().contiguous().view(matrix.shape).to(matrix.dtype)


@_convolve_neighbors_backward.register_fake
def _(gradient: Tensor, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (offsets, features, weights, matrix))


def _save_convolve_neighbors(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_convolve_neighbors(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
    offsets, features, weights, matrix = _convolve_neighbors_backward(gradient.contiguous(), *ctx.saved_tensors)
    return offsets, features, weights, None, matrix


_convolve_neighbors.register_autograd(_differentiate_convolve_neighbors, setup_context=_save_convolve_neighbors)
