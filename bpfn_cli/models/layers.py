# SPDX-License-Identifier: MIT
"""The building blocks of Bi-PointFlowNet, with the parameter names of the published checkpoint.

They compute what the published blocks do, with the linear maps moved to where there are fewest points;
`models/reference.py` has the published order of operations. All take and return (B, N, C).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfn_cli.models.fake_quantization import quantizer_of
from bpfn_cli.models.variants import WEIGHTNET_HIDDEN
from bpfn_cli.ops import convolve_neighbors, flatten_indices, gather, propagate_max
from bpfn_cli.ops.batch_norm import BatchNorm1d, BatchNorm2d
from bpfn_cli.ops.precision import in_matrix_precision
from bpfn_cli.ops.products import LEAKY_SLOPE, linear

LARGEST_FLOW = 200.0  # metres a flow estimator may add at one level


def activate(x: Tensor, slope: float = LEAKY_SLOPE) -> Tensor:
    """Scale negative values by `slope`, in place. On a view this costs copies in the backward pass."""
    return x if slope == 1 else F.leaky_relu_(x, slope)


def matrix(layer: nn.Module) -> Tensor:
    """The (out, in) matrix of a linear layer or 1x1 convolution, rounded if it has a quantizer."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    quantizer = quantizer_of(layer)
    return weight.flatten(1) if quantizer is None else quantizer.weight(weight.flatten(1))


def apply_linear(layer: nn.Module, x: Tensor, slope: float = 1.0) -> Tensor:
    """Apply a linear layer or 1x1 convolution to the last dimension of `x`; scale negative results by `slope`."""
    if (quantizer := quantizer_of(layer)) is not None:
        x = quantizer(x)
    return linear(x, matrix(layer), layer.bias, slope)  # type: ignore[arg-type]


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of rows (R, C) to the last dimension of `x`."""
    return function(x.flatten(0, -2)).view(*x.shape[:-1], -1)


def apply_norm(norm: nn.Module | None, x: Tensor, slope: float = 1.0) -> Tensor:
    """Apply a batch norm module to the last dimension of `x`, then scale negative values; None is the identity."""
    if norm is None:
        return activate(x, slope)
    rows = x.flatten(0, -2)
    if isinstance(norm, nn.BatchNorm2d):
        rows = rows[:, :, None, None]
    rows = activate(norm(rows), slope)  # before `reshape`, which gives a view
    return rows if rows.shape == x.shape else rows.reshape(x.shape)


def norm_as_affine(norm: nn.Module | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Scale and shift that a batch norm applies in evaluation mode; None: no norm."""
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

    def __init__(
        self, inputs: int, outputs: int, bn: bool, dimensions: int = 1, slope: float = LEAKY_SLOPE, groups: int = 1
    ):
        """`slope`: of the LeakyReLU; 0 for ReLU, 1 for no activation."""
        super().__init__()
        convolution, norm = (nn.Conv1d, BatchNorm1d) if dimensions == 1 else (nn.Conv2d, BatchNorm2d)
        layers: list[nn.Module] = [convolution(inputs, outputs, 1, groups=groups)]
        layers += [norm(outputs)] if bn else []
        self.composed_module = nn.Sequential(*layers, nn.Identity() if slope == 1 else nn.LeakyReLU(slope))
        self.slope = slope

    @property
    def linear(self) -> nn.Module:
        return self.composed_module[0]

    @property
    def norm(self) -> nn.Module | None:
        return self.composed_module[1] if len(self.composed_module) == 3 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return apply_linear(self.linear, x, self.slope)
        return by_rows(lambda rows: self.finish(apply_linear(self.linear, rows)), x)

    def finish(self, x: Tensor) -> Tensor:
        """Apply what follows the linear map: batch norm and activation."""
        return apply_norm(self.norm, x, self.slope)


class DepthwiseBlock(PointwiseBlock):
    """Scale and shift of each channel, optional batch norm, ReLU."""

    def __init__(self, channels: int, bn: bool):
        super().__init__(channels, channels, bn, slope=0, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.linear.weight.flatten(), self.linear.bias  # type: ignore[operator]
        return by_rows(lambda rows: self.finish(torch.addcmul(shift, rows, scale)), x)  # type: ignore[arg-type]


class BottleneckBlock(nn.Module):
    """Two pointwise blocks with `outputs / factor` channels in between, in place of one."""

    def __init__(self, inputs: int, outputs: int, bn: bool, factor: int):
        super().__init__()
        hidden = max(1, outputs // factor)
        self.reduce = PointwiseBlock(inputs, hidden, bn)
        self.expand = PointwiseBlock(hidden, outputs, bn)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.reduce(x))


class ResidualBlock(nn.Module):
    """ReLU(x + F(x) + D(x)) in place of a pointwise block with as many outputs as inputs.

    F is three 1x1 convolutions with `hidden` channels in between and ReLU after the first two; D is a depthwise block.
    """

    def __init__(self, channels: int, bn: bool, hidden: int):
        super().__init__()
        self.narrow = PointwiseBlock(channels, hidden, bn, slope=0)
        self.middle = PointwiseBlock(hidden, hidden, bn, slope=0)
        self.widen = PointwiseBlock(hidden, channels, bn, slope=1)
        self.depthwise = DepthwiseBlock(channels, bn)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.widen(self.middle(self.narrow(x))) + self.depthwise(x))


class WeightNet(nn.Module):
    """Offsets to c_mid weights: three 1x1 convolutions with ReLU.

    The published checkpoint has `mlp_bns` even if batch norm is off: they are kept and not applied.
    """

    def __init__(self, c_mid: int, bn: bool):
        super().__init__()
        widths = (3, WEIGHTNET_HIDDEN, WEIGHTNET_HIDDEN, c_mid)
        self.bn = bn
        self.mlp_convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.mlp_bns = nn.ModuleList(BatchNorm2d(width) for width in widths[1:])

    def forward(self, offsets: Tensor) -> Tensor:
        """(B, N, k, 3) metres to (B, N, k, c_mid)."""
        return by_rows(self._mix, offsets)

    def _mix(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            if self.bn:
                x = apply_norm(norm, apply_linear(convolution, x), slope=0)
            else:
                x = apply_linear(convolution, x, slope=0)
        return x


class PointConv(nn.Module):
    """Convolution over neighbors whose weights are a function of their offsets.

    It aggregates `[offset, feature]^T WeightNet(offset)` and applies a linear map. Source: PointConv, CVPR 2019.
    """

    def __init__(self, inputs: int, outputs: int, c_mid: int, bn: bool, norm: bool, separable: bool):
        """`bn` applies to the WeightNet, `norm` to the output."""
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
        """Convolve features (B, M, C) at `points` (B, M, 3) to `queries` (B, N, 3).

        Args: neighbors: (B, N, k) indices into `points`.
        Returns: (B, N, outputs).
        """
        offsets = gather(points, neighbors) - queries[:, :, None]
        weights = self.weightnet(offsets)
        if not self.separable and quantizer_of(self.linear) is not None:
            grouped = torch.cat([offsets, gather(features, neighbors)], dim=-1)
            mixed = (grouped.transpose(2, 3) @ weights).flatten(2)
            return apply_norm(self.bn_linear, apply_linear(self.linear, mixed), LEAKY_SLOPE)
        on_features, kernel, bias = self.kernel()
        features = features if on_features is None else linear(features, on_features, None)
        rows = flatten_indices(neighbors, features.shape[1])
        offsets, features, weights, rows = (x.flatten(0, 1) for x in (offsets, features, weights, rows))
        x = convolve_neighbors(offsets, features, weights, rows, kernel)
        return apply_norm(self.bn_linear, x.add_(bias), LEAKY_SLOPE).view(*neighbors.shape[:2], -1)

    def kernel(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """What is computed from the weights alone: a map of the features (C', C), if any; then the kernel
        (c_mid, 3 + C', outputs) of an ordinary convolution, and its bias.

        Both separable maps act on channels, so the part on features comes before the sum over neighbors, where points
        are fewer.
        """
        if not self.separable:
            kernel = self.linear.weight.view(self.linear.out_features, -1, self.c_mid).permute(2, 1, 0)
            return None, in_matrix_precision(kernel), self.linear.bias
        mixing = matrix(self.pointwise) * self.conv.weight.flatten()
        on_offsets, on_features = mixing.tensor_split([3], dim=1)
        # What remains of the map, (3 + channels, channels), is the same for each of the c_mid weights.
        rest = torch.cat([on_offsets.t(), torch.eye(len(mixing), dtype=mixing.dtype, device=mixing.device)])
        each = torch.eye(self.c_mid, dtype=mixing.dtype, device=mixing.device)
        bias = matrix(self.pointwise) @ self.conv.bias + self.pointwise.bias  # type: ignore[operator]
        return on_features, torch.einsum("xc,ab->axcb", rest, each).flatten(2), bias.repeat_interleave(self.c_mid)


class Correlation(NamedTuple):
    """The layers of max_j block(LeakyReLU(norm(other_j + own_i + position(q_j - p_i)))) over neighbors j of point i."""

    position: nn.Module
    norm: nn.Module | None
    block: PointwiseBlock


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
        self, pc1: Tensor, pc2: Tensor, features1: Tensor, features2: Tensor, *neighbors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the bidirectional features of both clouds, and the embedding at the source points.

        Args:
            pc1, pc2: (B, N, 3), (B, M, 3) metres; pc2 warped towards pc1. features1, features2: (B, N, C), (B, M, C).
            neighbors: (B, N, k) in pc2 of the points of pc1; (B, M, k) the other way; the first again, to embed.
        Returns: (B, N, width), (B, M, width), (B, N, width).
        """
        first = Correlation(self.pos1, self.bn1, self.mlp1[0])  # type: ignore[arg-type]
        second = Correlation(self.pos2, self.bn2, self.mlp2[0])  # type: ignore[arg-type]
        own1, other2 = self.project(self.cross_t11, features1), self.project(self.cross_t22, features2)
        to_source = self.correlate(pc1, pc2, own1, other2, neighbors[0], first)
        own2, other1 = self.project(self.cross_t11, features2), self.project(self.cross_t22, features1)
        to_target = self.correlate(pc2, pc1, own2, other1, neighbors[1], first)
        source, target = self.project(self.cross_t1, to_source), self.project(self.cross_t2, to_target)
        return source, target, self.correlate(pc1, pc2, source, target, neighbors[2], second)

    def project(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply a 1x1 convolution to (B, N, C)."""
        return apply_linear(layer, x)

    def correlate(
        self, queries: Tensor, points: Tensor, own: Tensor, other: Tensor, neighbors: Tensor, layers: Correlation
    ) -> Tensor:
        """Correlate `own` (B, N, C) at `queries` with `other` (B, M, C) at the neighbors among `points`: (B, N, C)."""
        position, norm, block = layers
        # `position` is linear, so it is applied to points; the maximum comes before bias and activation.
        center = points.mean(dim=1, keepdim=True)  # keeps the two parts of each offset small
        own = own + apply_linear(position, center - queries)
        other = other + linear(points - center, matrix(position), None)
        if norm is not None and self.training:  # batch statistics are over all neighbors
            x = apply_norm(norm, gather(other, neighbors) + own[:, :, None], LEAKY_SLOPE)
            x = block.finish(apply_linear(block.linear, x))
            return x.max(dim=2).values  # its backward pass takes less than half of that of `amax`
        scale, shift = norm_as_affine(norm)
        if scale is not None and shift is not None:
            own, other = own * scale + shift, other * scale
        weight, bias = fold_norm(matrix(block.linear), block.linear.bias, block.norm)  # type: ignore[arg-type]
        if (quantizer := quantizer_of(block.linear)) is not None:
            inner = quantizer(activate(gather(other, neighbors) + own[:, :, None]))
            return activate(linear(inner, weight, None).max(dim=2).values + bias)
        rows = flatten_indices(neighbors, other.shape[1]).flatten(0, 1)
        x = propagate_max(own.flatten(0, 1), other.flatten(0, 1), rows, in_matrix_precision(weight))
        return activate(x.add_(bias)).view(*own.shape[:2], -1)


class FlowEstimator(nn.Module):
    """Features and embedding of the source points to a flow."""

    def __init__(self, inputs: int, width: int, outputs: int, c_mid: int, bn: bool, separable: bool):
        super().__init__()
        self.pointconv_list = nn.ModuleList(
            PointConv(before, width, c_mid, bn, norm=True, separable=separable) for before in (inputs, width)
        )
        self.mlp_convs = nn.ModuleList([PointwiseBlock(width, width, bn), PointwiseBlock(width, outputs, bn)])
        self.fc = nn.Conv1d(outputs, 3, 1)

    def forward(self, points: Tensor, features: Tensor, *neighbors: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate features (B, N, outputs) and flow (B, N, 3) metres.

        Args:
            points: (B, N, 3) metres. features: (B, N, C).
            neighbors: (B, N, k) inside `points`, one for each of the two convolutions.
        """
        for convolution, graph in zip(self.pointconv_list, neighbors, strict=True):
            features = convolution(points, points, features, graph)
        for block in self.mlp_convs:
            features = block(features)
        return features, self.project(features).clamp(-LARGEST_FLOW, LARGEST_FLOW)

    def project(self, features: Tensor) -> Tensor:
        """Apply the last layer: (B, N, outputs) to (B, N, 3)."""
        return apply_linear(self.fc, features)
