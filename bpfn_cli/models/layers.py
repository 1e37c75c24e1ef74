# SPDX-License-Identifier: MIT
"""The building blocks of Bi-PointFlowNet. Names of parameters are those of the published checkpoint.

Each block computes the same function in two ways: where `is_plain()`, operation by operation as published (the
reference, and what MACs are counted on); else with the linear maps moved to where there are fewest points.
All take and return (B, N, C).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfn_cli.models.variants import ESTIMATOR_FEATURES, ESTIMATOR_WIDTH
from bpfn_cli.ops import convolve_neighbors, flatten_indices, gather, is_plain, propagate_max
from bpfn_cli.ops.batch_norm import BatchNorm1d, BatchNorm2d
from bpfn_cli.ops.precision import in_matrix_precision
from bpfn_cli.ops.products import LEAKY_SLOPE, linear

LARGEST_FLOW = 200.0  # metres a flow estimator may add at one level
WEIGHTNET_HIDDEN = 8


def activate(x: Tensor) -> Tensor:
    """LeakyReLU, written over `x`. Of a view that costs copies in the backward pass."""
    return F.leaky_relu_(x, LEAKY_SLOPE)


def matrix(layer: nn.Module) -> Tensor:
    """The (out, in) matrix of a linear layer or 1x1 convolution."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.flatten(1)


def apply_linear(layer: nn.Module, x: Tensor, slope: float = 1.0) -> Tensor:
    """Apply a linear layer or 1x1 convolution to the last dimension of `x`; negative results times `slope`."""
    return linear(x, matrix(layer), layer.bias, slope)  # type: ignore[arg-type]


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of rows (R, C) to the last dimension of `x`."""
    return function(x.flatten(0, -2)).view(*x.shape[:-1], -1)


def apply_norm(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Apply a batch norm module to the last dimension of `x`; None does nothing."""
    if norm is None:
        return x
    rows = x.flatten(0, -2)
    if isinstance(norm, nn.BatchNorm2d):
        rows = rows[:, :, None, None]
    rows = norm(rows)
    return rows if rows.shape == x.shape else rows.reshape(x.shape)


def norm_as_affine(norm: nn.Module | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Scale and shift a batch norm in evaluation mode amounts to; None: no norm."""
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None or norm.running_mean is None:
        return None, None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def fold_norm(weight: Tensor, bias: Tensor, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Merge a batch norm in evaluation mode into the linear map before it."""
    scale, shift = norm_as_affine(norm)
    if scale is None or shift is None:
        return weight, bias
    return weight * scale[:, None], bias * scale + shift


class PointwiseBlock(nn.Module):
    """1x1 convolution with bias, optional batch norm, LeakyReLU: `composed_module`."""

    def __init__(self, inputs: int, outputs: int, bn: bool, dimensions: int = 1):
        super().__init__()
        convolution, norm = (nn.Conv1d, BatchNorm1d) if dimensions == 1 else (nn.Conv2d, BatchNorm2d)
        layers: list[nn.Module] = [convolution(inputs, outputs, 1)]
        layers += [norm(outputs)] if bn else []
        self.composed_module = nn.Sequential(*layers, nn.LeakyReLU(LEAKY_SLOPE))

    @property
    def linear(self) -> nn.Module:
        return self.composed_module[0]

    @property
    def bias(self) -> Tensor:
        bias: Tensor = self.linear.bias  # type: ignore[assignment]
        return bias

    @property
    def norm(self) -> nn.Module | None:
        return self.composed_module[1] if len(self.composed_module) == 3 else None

    def forward(self, x: Tensor) -> Tensor:
        if is_plain():
            return self.composed_module(x.transpose(1, 2)).transpose(1, 2)
        if self.norm is None:
            return apply_linear(self.linear, x, LEAKY_SLOPE)
        return by_rows(lambda rows: self.finish(apply_linear(self.linear, rows)), x)

    def finish(self, x: Tensor) -> Tensor:
        """What follows the linear map: batch norm and activation."""
        return activate(apply_norm(self.norm, x))


class BottleneckBlock(nn.Module):
    """Two pointwise blocks with `outputs / factor` channels in between, in place of one."""

    def __init__(self, inputs: int, outputs: int, bn: bool, factor: int):
        super().__init__()
        hidden = max(1, outputs // factor)
        self.reduce = PointwiseBlock(inputs, hidden, bn)
        self.expand = PointwiseBlock(hidden, outputs, bn)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.reduce(x))


class WeightNet(nn.Module):
    """Offsets to c_mid weights: three 1x1 convolutions with ReLU.

    The published checkpoint carries `mlp_bns` even where batch norm is off: kept, not applied.
    """

    def __init__(self, c_mid: int, bn: bool):
        super().__init__()
        widths = (3, WEIGHTNET_HIDDEN, WEIGHTNET_HIDDEN, c_mid)
        self.bn = bn
        self.mlp_convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.mlp_bns = nn.ModuleList(BatchNorm2d(width) for width in widths[1:])

    def forward(self, offsets: Tensor) -> Tensor:
        """(B, N, k, 3) metres to (B, N, k, c_mid)."""
        if is_plain():
            x = offsets.permute(0, 3, 2, 1)
            for convolution, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
                # A function, not a module: the published MACs leave it out.
                x = F.relu(norm(convolution(x)) if self.bn else convolution(x))
            return x.permute(0, 3, 2, 1)
        return by_rows(self._mix, offsets)

    def _mix(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = (
                F.relu(apply_norm(norm, apply_linear(convolution, x)))
                if self.bn
                else apply_linear(convolution, x, slope=0)
            )
        return x


class PointConv(nn.Module):
    """Convolution over neighbors with weights that are a function of their offsets.

    Source: PointConv, CVPR 2019; MODEL: aggregate `[offset, feature]^T WeightNet(offset)`, then a linear map.
    """

    def __init__(self, inputs: int, outputs: int, c_mid: int, bn: bool, norm: bool, separable: bool):
        """`bn` is for the WeightNet, `norm` for the output."""
        super().__init__()
        self.weightnet = WeightNet(c_mid, bn)
        self.c_mid = c_mid
        self.separable = separable
        if separable:
            self.conv = nn.Conv2d(inputs + 3, inputs + 3, 1, groups=inputs + 3)
            self.pointwise = nn.Conv2d(inputs + 3, outputs // c_mid, 1)
        else:
            self.linear = nn.Linear(c_mid * (inputs + 3), outputs)
        self.bn_linear = BatchNorm1d(outputs) if norm else None
        self.relu = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, queries: Tensor, points: Tensor, features: Tensor, neighbors: Tensor) -> Tensor:
        """Features (B, M, C) at `points` (B, M, 3) to features at `queries` (B, N, 3).

        Args:
            neighbors: (B, N, k) indices into `points`.
        Returns: (B, N, outputs).
        """
        offsets = gather(points, neighbors) - queries[:, :, None]
        weights = self.weightnet(offsets)
        if is_plain():
            grouped = torch.cat([offsets, gather(features, neighbors)], dim=-1)
            aggregate = grouped.transpose(2, 3) @ weights  # (B, N, C + 3, c_mid)
            x = self._mix_separably(aggregate) if self.separable else self.linear(aggregate.flatten(2))
            return self.relu(apply_norm(self.bn_linear, x))
        convolve = self._convolve_separably if self.separable else self._convolve
        rows = activate(apply_norm(self.bn_linear, convolve(offsets, features, weights, neighbors)))
        return rows.view(*neighbors.shape[:2], -1)

    def _mix_separably(self, aggregate: Tensor) -> Tensor:
        x = self.pointwise(self.conv(aggregate.permute(0, 2, 3, 1)))
        return x.permute(0, 3, 1, 2).flatten(2)

    def _convolve(self, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor) -> Tensor:
        """(B N, outputs)."""
        matrix = self.linear.weight.view(self.linear.out_features, -1, self.c_mid).permute(2, 1, 0)
        x = convolve_neighbors(
            offsets.flatten(0, 1),
            features.flatten(0, 1),
            weights.flatten(0, 1),
            flatten_indices(neighbors, features.shape[1]).flatten(0, 1),
            in_matrix_precision(matrix),
        )
        return x.add_(self.linear.bias)

    def _convolve_separably(self, offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor) -> Tensor:
        """(B N, outputs). Both maps are over channels, so they may come before the sum over neighbors, where
        points are fewer."""
        scale, shift = self.conv.weight.flatten(), self.conv.bias
        mixing = matrix(self.pointwise)
        of_offsets, of_features = (mixing * scale).split([3, features.shape[2]], dim=1)
        few = linear(features, of_features, None)
        # What is left of the map, (3 + channels, channels), is the same for each of the c_mid weights.
        rest = torch.cat([of_offsets.t(), torch.eye(few.shape[2], dtype=few.dtype, device=few.device)])
        each = torch.eye(self.c_mid, dtype=few.dtype, device=few.device)
        x = convolve_neighbors(
            offsets.flatten(0, 1),
            few.flatten(0, 1),
            weights.flatten(0, 1),
            flatten_indices(neighbors, few.shape[1]).flatten(0, 1),
            torch.einsum("xc,ab->axcb", rest, each).flatten(2),
        )
        constant = mixing @ shift + self.pointwise.bias  # type: ignore[operator]
        return x.add_(constant.repeat_interleave(self.c_mid))


class BidirectionalFlowEmbedding(nn.Module):
    """Bidirectional flow embedding: features pass to the other cloud, both ways, then into one embedding."""

    def __init__(self, inputs: int, width: int, bn: bool):
        super().__init__()
        self.cross_t11 = nn.Conv1d(inputs, width, 1)
        self.cross_t22 = nn.Conv1d(inputs, width, 1)
        self.pos1 = nn.Conv2d(3, width, 1)
        self.bias1 = nn.Parameter(torch.zeros(1, width, 1, 1))  # in the published checkpoint, unused
        self.bn1 = BatchNorm2d(width) if bn else None
        self.mlp1 = nn.Sequential(PointwiseBlock(width, width, bn, dimensions=2))
        self.cross_t1 = nn.Conv1d(width, width, 1)
        self.cross_t2 = nn.Conv1d(width, width, 1)
        self.pos2 = nn.Conv2d(3, width, 1)
        self.bias2 = nn.Parameter(torch.zeros(1, width, 1, 1))  # in the published checkpoint, unused
        self.bn2 = BatchNorm2d(width) if bn else None
        self.mlp2 = nn.Sequential(PointwiseBlock(width, width, bn, dimensions=2))
        self.relu = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(
        self,
        pc1: Tensor,
        pc2: Tensor,
        features1: Tensor,
        features2: Tensor,
        forth: Tensor,
        back: Tensor,
        again: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bidirectional features of source and target points, and the embedding at the source points.

        Args:
            pc1, pc2: (B, N, 3), (B, M, 3) metres; pc2 warped towards pc1.
            features1, features2: (B, N, C), (B, M, C).
            forth: (B, N, k) neighbors in pc2 of the points of pc1. back: (B, M, k) the other way.
            again: (B, N, k) as `forth`, for the embedding; the plain path searches it anew.
        Returns: (B, N, width), (B, M, width), (B, N, width).
        """
        correlate, apply = (
            (self._correlate_plain, _apply_conv1d) if is_plain() else (self._correlate_fast, apply_linear)
        )
        block1: PointwiseBlock = self.mlp1[0]  # type: ignore[assignment]
        block2: PointwiseBlock = self.mlp2[0]  # type: ignore[assignment]
        first, second = (self.pos1, self.bn1, block1), (self.pos2, self.bn2, block2)
        to_source = correlate(
            pc1, pc2, apply(self.cross_t11, features1), apply(self.cross_t22, features2), forth, *first
        )
        to_target = correlate(
            pc2, pc1, apply(self.cross_t11, features2), apply(self.cross_t22, features1), back, *first
        )
        source, target = apply(self.cross_t1, to_source), apply(self.cross_t2, to_target)
        return source, target, correlate(pc1, pc2, source, target, again, *second)

    def _correlate_plain(
        self,
        queries: Tensor,
        points: Tensor,
        own: Tensor,
        other: Tensor,
        neighbors: Tensor,
        position: nn.Conv2d,
        norm: nn.Module | None,
        block: PointwiseBlock,
    ) -> Tensor:
        """max_j MLP(LeakyReLU(norm(other_j + own_i + position(q_j - p_i)))) over the neighbors j of query i."""
        offsets = gather(points, neighbors) - queries[:, :, None]
        x = position(offsets.permute(0, 3, 2, 1))
        x = x + gather(other, neighbors).permute(0, 3, 2, 1) + own.transpose(1, 2)[:, :, None]
        x = block.composed_module(self.relu(norm(x) if norm is not None else x))
        return x.amax(dim=2).transpose(1, 2)

    def _correlate_fast(
        self,
        queries: Tensor,
        points: Tensor,
        own: Tensor,
        other: Tensor,
        neighbors: Tensor,
        position: nn.Conv2d,
        norm: nn.Module | None,
        block: PointwiseBlock,
    ) -> Tensor:
        """The same: `position` is linear, so it is applied to points; max comes before bias and activation."""
        center = points.mean(dim=1, keepdim=True)  # keeps the two parts of each offset small
        own = own + apply_linear(position, center - queries)
        other = other + linear(points - center, matrix(position), None)
        if norm is not None and self.training:  # batch statistics are those of all neighbors
            x = activate(apply_norm(norm, gather(other, neighbors) + own[:, :, None]))
            return block.finish(apply_linear(block.linear, x)).amax(dim=2)
        scale, shift = norm_as_affine(norm)
        if scale is not None and shift is not None:
            own, other = own * scale + shift, other * scale
        weight, bias = fold_norm(matrix(block.linear), block.bias, block.norm)
        rows = flatten_indices(neighbors, other.shape[1]).flatten(0, 1)
        x = propagate_max(own.flatten(0, 1), other.flatten(0, 1), rows, in_matrix_precision(weight))
        return activate(x.add_(bias)).view(*own.shape[:2], -1)


def _apply_conv1d(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a Conv1d module as it is, so that MACs counted on modules see the call."""
    return layer(x.transpose(1, 2)).transpose(1, 2)


class FlowEstimator(nn.Module):
    """Features and embedding of the source points to a flow."""

    def __init__(self, inputs: int, c_mid: int, bn: bool, separable: bool):
        super().__init__()
        self.pointconv_list = nn.ModuleList(
            PointConv(width, ESTIMATOR_WIDTH, c_mid, bn, norm=True, separable=separable)
            for width in (inputs, ESTIMATOR_WIDTH)
        )
        self.mlp_convs = nn.ModuleList(
            [
                PointwiseBlock(ESTIMATOR_WIDTH, ESTIMATOR_WIDTH, bn),
                PointwiseBlock(ESTIMATOR_WIDTH, ESTIMATOR_FEATURES, bn),
            ]
        )
        self.fc = nn.Conv1d(ESTIMATOR_FEATURES, 3, 1)

    def forward(self, points: Tensor, features: Tensor, *neighbors: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the estimator (B, N, 64) and flow (B, N, 3) metres.

        Args:
            points: (B, N, 3) metres. features: (B, N, C).
            neighbors: (B, N, k) inside `points`, one for each of the two convolutions; the plain path searches both.
        """
        for convolution, graph in zip(self.pointconv_list, neighbors, strict=True):
            features = convolution(points, points, features, graph)
        for block in self.mlp_convs:
            features = block(features)
        apply = _apply_conv1d if is_plain() else apply_linear
        return features, apply(self.fc, features).clamp(-LARGEST_FLOW, LARGEST_FLOW)
