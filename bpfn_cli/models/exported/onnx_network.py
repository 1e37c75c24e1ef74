# SPDX-License-Identifier: MIT
"""The network as an ONNX graph: what `BiPointFlowNet` computes in evaluation mode, for one pair of clouds.

Batch norms are folded into the linear maps. A value (N, C) has no batch dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bpfn_cli.errors import UsageError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.exported.onnx_graph import Recorder
from bpfn_cli.models.layers import (
    LARGEST_FLOW,
    BidirectionalFlowEmbedding,
    BottleneckBlock,
    Correlation,
    DepthwiseBlock,
    FlowEstimator,
    PointConv,
    PointwiseBlock,
    ResidualBlock,
    fold_norm,
    matrix,
    norm_as_affine,
)
from bpfn_cli.ops.interpolation import SMALLEST_DISTANCE
from bpfn_cli.ops.products import LEAKY_SLOPE
from bpfn_cli.structures import LEVELS

BLOCK = 16  # queries whose distances to all points are in memory at a time: of 8,192 points 0.5 MB, which a cache holds


class Cloud(NamedTuple):
    """Geometry and encoder features of a cloud: levels 0 to 4; `up` and `own` of levels 0 to 3."""

    points: list[str]
    up: list[tuple[str, str]]  # three neighbors at the next coarser level, and their weights
    own: list[str]  # neighbors in the same level
    features: list[str]


def record_network(
    model: BiPointFlowNet, points: int | None, about: dict[str, str], stored: str = "float32"
) -> onnx.ModelProto:
    """The graph of a network: `pc1`, `pc2` (1, N, 3) to `flow` (1, N, 3), in metres.

    Args: points: N; None: any. about: metadata. stored: type of the weights in the file.
    """
    with torch.no_grad():
        flow = (network := _Network(model, Recorder(stored))).flow()
    shape: list[int | str] = [1, points or "N", 3]
    return network.graph.model({"pc1": shape, "pc2": list(shape)}, {"flow": flow}, about)


class _Network:
    def __init__(self, model: BiPointFlowNet, graph: Recorder):
        self.model, self.variant, self.graph, self.op = model, model.variant, graph, graph.op
        self._names = {module: name for name, module in model.named_modules()}

    def flow(self) -> str:
        """Record everything; the flow (1, N, 3)."""
        clouds = self.op("Concat", "pc1", "pc2", axis=0)
        with self.graph.scope("geometry"):
            sampled = self.op("Split", self._sample(clouds), self._ints(1, 1), axis=0, outputs=2)
        source, target = (
            self._cloud(self._squeeze(name), self._squeeze(rows))
            for name, rows in zip(("pc1", "pc2"), sampled, strict=True)
        )
        return self.op("Unsqueeze", self._decode(source, target), self._ints(0))

    # Geometry

    def _sample(self, clouds: str) -> str:
        """Farthest points of level 1 of both clouds (2, N, 3): (2, N_1)."""
        op, constant, body = self.op, self.graph.constant, self.graph.body()
        last = body.op("Expand", body.op("Unsqueeze", "last", body.constant([1, 2])), body.constant([1, 1, 3]))
        offset = body.op("Sub", clouds, body.op("GatherElements", clouds, last, axis=1))
        x, y, z = body.op("Split", body.op("Mul", offset, offset), body.constant([1, 1, 1]), axis=2, outputs=3)
        distance = body.op("Squeeze", body.op("Add", body.op("Add", x, y), z), body.constant([2]))
        nearest = body.op("Min", "nearest", distance)
        chosen = body.op("ArgMax", nearest, axis=1, keepdims=0)  # the first of equal ones
        found, again = body.op("Identity", chosen), body.op("Identity", chosen)
        rows, first = op("Shape", clouds, start=0, end=2), constant([0, 0])
        infinite = op("Expand", constant([np.inf], np.float32), rows)
        steps = op("Sub", self._coarser(op("Shape", clouds, start=1, end=2), 1), constant([1]))
        ticks = op("Expand", constant([0]), steps)
        states = [(infinite, "nearest", nearest), (first, "last", found)]
        others = self.graph.scan(body, states, [(ticks, "tick")], again)
        whole = op("Concat", self._unsqueeze(first, 0), others, axis=0)
        return op("Transpose", whole, perm=[1, 0])

    def _coarser(self, size: str, level: int) -> str:
        """Points of `level` from those of the next finer one, (1,)."""
        return self.op("Div", size, self._ints(self.variant.levels[level].reduction))

    def _knn(self, queries: str, points: str, k: int) -> str:
        """As `ops.knn`: (N, k). At a tie, the lower index."""
        op, body = self.op, self.graph.body()
        axes = op("Split", op("Transpose", points, perm=[1, 0]), self._ints(1, 1, 1), axis=0, outputs=3)
        parts = body.op("Split", "block", body.constant([1, 1, 1]), axis=1, outputs=3)
        offsets = [body.op("Sub", part, axis) for part, axis in zip(parts, axes, strict=True)]
        x, y, z = (body.op("Mul", offset, offset) for offset in offsets)
        distance = body.op("Add", body.op("Add", x, y), z)
        _, found = body.op("TopK", distance, body.constant([k]), axis=1, largest=0, sorted=1, outputs=2)
        count = op("Shape", queries, start=0, end=1)
        missing = op("Mod", op("Neg", count), self._ints(BLOCK))
        padding = op("Concat", self._ints(0, 0), missing, self._ints(0), axis=0)
        blocks = op("Reshape", op("Pad", queries, padding), self._ints(-1, BLOCK, 3))
        found = self.graph.scan(body, [], [(blocks, "block")], found)
        return self._first(op("Reshape", found, self._ints(-1, k)), count)

    def _first(self, rows: str, count: str) -> str:
        return self.op("Slice", rows, self._ints(0), count, self._ints(0))

    def _offsets(self, queries: str, points: str, neighbors: str) -> str:
        """(N, k, 3)."""
        return self.op("Sub", self._gather(points, neighbors), self._unsqueeze(queries, 1))

    def _three_nearest(self, queries: str, points: str) -> tuple[str, str]:
        """Neighbors (N, 3), and weights (N, 3, 1) inverse to their distance."""
        neighbors = self._knn(queries, points, 3)
        offsets = self._offsets(queries, points, neighbors)
        square = self.op("ReduceSum", self.op("Mul", offsets, offsets), self._ints(2), keepdims=1)
        least = self.graph.constant(SMALLEST_DISTANCE, np.float32)
        weight = self.op("Reciprocal", self.op("Max", self.op("Sqrt", square), least))
        return neighbors, self.op("Div", weight, self.op("ReduceSum", weight, self._ints(1), keepdims=1))

    def _interpolate(self, values: str, up: tuple[str, str]) -> str:
        weighted = self.op("Mul", self._gather(values, up[0]), up[1])
        return self.op("ReduceSum", weighted, self._ints(1), keepdims=0)

    def _warp(self, source: str, target: str, flow: str) -> str:
        moved = self._three_nearest(target, self.op("Add", source, flow))
        return self.op("Sub", target, self._interpolate(flow, moved))

    # The network

    def _cloud(self, cloud: str, samples: str) -> Cloud:
        """Encode a cloud (N, 3) with the indices of its level 1."""
        points, up = [cloud], []
        features = [self._encode(self.model.level0_1, self._encode(self.model.level0, cloud))]
        for level, (expand, downsample, refine) in enumerate(self.model.encoder_stages(), start=1):
            finer = points[-1]
            with self.graph.scope("geometry"):
                size = self._coarser(self.op("Shape", finer, start=0, end=1), level)
                points.append(self._gather(finer, samples) if level == 1 else self._first(finer, size))
                neighbors = self._knn(points[level], finer, self.variant.encoder_neighbors)
                up.append(self._three_nearest(finer, points[level]))
            x = self._encode(expand, features[-1])
            with self.graph.scope(self._names[downsample]):
                x = self._convolve(downsample, points[level], finer, x, neighbors)
            features.append(x if refine is None else self._encode(refine, x))
        with self.graph.scope("geometry"):
            own = [self._knn(each, each, self.variant.estimator_neighbors) for each in points[:LEVELS]]
        return Cloud(points, up, own, features)

    def _decode(self, source: Cloud, target: Cloud) -> str:
        model, op, k = self.model, self.op, self.variant.embedding_neighbors
        coarse, flow, estimated = [source.features[LEVELS], target.features[LEVELS]], "", ""
        for level in reversed(range(LEVELS)):
            pc1, pc2 = source.points[level], target.points[level]
            features = []
            for cloud, values in zip((source, target), coarse, strict=True):
                context = self._context(model.context_blocks()[level], values, cloud.up[level])
                features.append(op("Concat", cloud.features[level], context, axis=1))
            with self.graph.scope(f"geometry{level}"):
                if flow:
                    flow, estimated = (self._interpolate(each, source.up[level]) for each in (flow, estimated))
                    pc2 = self._warp(pc1, pc2, flow)
                forward, backward = self._knn(pc1, pc2, k), self._knn(pc2, pc1, k)
            with self.graph.scope(f"cross{level}"):
                cross = getattr(model, f"cross{level}")
                *coarse, embedding = self._embed(cross, pc1, pc2, *features, forward, backward)
            with self.graph.scope(f"flow{level}"):
                inputs = [source.features[level], *([estimated] if flow else []), embedding]
                estimator = getattr(model, f"flow{level}")
                x = op("Concat", *inputs, axis=1)
                estimated, added = self._estimate(estimator, pc1, x, source.own[level])
                flow = op("Add", flow, added) if flow else added
        return flow

    def _context(self, block: PointwiseBlock, coarse: str, up: tuple[str, str]) -> str:
        # The weights sum to one, so the linear map may come first, where there are fewer points.
        with self.graph.scope(self._names[block]):
            x = self._interpolate(self._linear(coarse, *self._folded(block), block.linear), up)
            return self._activate(x, block.slope)

    def _embed(
        self, cross: BidirectionalFlowEmbedding, pc1: str, pc2: str, features1: str, features2: str, *graphs: str
    ) -> tuple[str, str, str]:
        forward, backward = graphs
        first = Correlation(cross.pos1, cross.bn1, cross.mlp1[0])  # type: ignore[arg-type]
        second = Correlation(cross.pos2, cross.bn2, cross.mlp2[0])  # type: ignore[arg-type]
        own1, other1 = (self._layer(layer, features1) for layer in (cross.cross_t11, cross.cross_t22))
        own2, other2 = (self._layer(layer, features2) for layer in (cross.cross_t11, cross.cross_t22))
        to_source = self._correlate(pc1, pc2, own1, other2, forward, first)
        to_target = self._correlate(pc2, pc1, own2, other1, backward, first)
        source, target = self._layer(cross.cross_t1, to_source), self._layer(cross.cross_t2, to_target)
        return source, target, self._correlate(pc1, pc2, source, target, forward, second)

    def _correlate(self, queries: str, points: str, own: str, other: str, neighbors: str, layers: Correlation) -> str:
        position, norm, block = layers
        op = self.op
        center = op("ReduceMean", points, self._ints(0), keepdims=1)
        own = op("Add", own, self._layer(position, op("Sub", center, queries)))
        other = op("Add", other, self._linear(op("Sub", points, center), matrix(position), of=position))
        scale, shift = norm_as_affine(norm)
        if scale is not None and shift is not None:
            factor = self._weight(scale)
            own = op("Add", op("Mul", own, factor), self._weight(shift))
            other = op("Mul", other, factor)
        inner = op("Add", self._gather(other, neighbors), self._unsqueeze(own, 1))
        weight, bias = self._folded(block)
        outer = self._linear(self._activate(inner), weight, of=block.linear)
        return self._activate(op("Add", op("ReduceMax", outer, self._ints(1), keepdims=0), self._weight(bias)))

    def _estimate(self, estimator: FlowEstimator, points: str, x: str, neighbors: str) -> tuple[str, str]:
        for convolution in estimator.pointconv_list:
            x = self._convolve(convolution, points, points, x, neighbors)  # type: ignore[arg-type]
        for block in estimator.mlp_convs:
            x = self._block(block, x)
        limits = (self.graph.constant(limit, np.float32) for limit in (-LARGEST_FLOW, LARGEST_FLOW))
        return x, self.op("Clip", self._layer(estimator.fc, x), *limits)

    # Layers

    def _convolve(self, layer: PointConv, queries: str, points: str, features: str, neighbors: str) -> str:
        op = self.op
        offsets = weights = self._offsets(queries, points, neighbors)
        for convolution, norm in zip(layer.weightnet.mlp_convs, layer.weightnet.mlp_bns, strict=True):
            folded = fold_norm(matrix(convolution), convolution.bias, norm if layer.weightnet.bn else None)  # type: ignore[arg-type]
            weights = op("Relu", self._linear(weights, *folded, convolution))
        on_features, kernel, bias = layer.kernel()
        if on_features is not None:
            features = self._linear(features, on_features, of=layer.pointwise)
        grouped = op("Concat", offsets, self._gather(features, neighbors), axis=2)
        mixed = op("MatMul", op("Transpose", weights, perm=[0, 2, 1]), grouped)
        flat, outputs = kernel.shape[0] * kernel.shape[1], kernel.shape[2]
        folded = fold_norm(kernel.reshape(flat, outputs).t(), bias, layer.bn_linear)
        of = layer.conv if layer.separable else layer.linear
        return self._activate(self._linear(op("Reshape", mixed, self._ints(-1, flat)), *folded, of))

    def _encode(self, block: nn.Module, x: str) -> str:
        with self.graph.scope(self._names[block]):
            return self._block(block, x)

    def _block(self, block: nn.Module, x: str) -> str:
        """Any block of the encoder that works on each point by itself."""
        if isinstance(block, BottleneckBlock):
            return self._block(block.expand, self._block(block.reduce, x))
        if isinstance(block, ResidualBlock):
            deep = self._block(block.widen, self._block(block.middle, self._block(block.narrow, x)))
            return self.op("Relu", self.op("Sum", x, deep, self._block(block.depthwise, x)))
        if not isinstance(block, PointwiseBlock):
            raise UsageError(f"--format onnx: no operator for {type(block).__name__}; use another format")
        weight, bias = self._folded(block)
        if isinstance(block, DepthwiseBlock):
            x = self.op("Add", self.op("Mul", x, self._weight(weight.flatten())), self._weight(bias))
        else:
            x = self._linear(x, weight, bias, block.linear)
        return self._activate(x, block.slope)

    def _folded(self, block: PointwiseBlock) -> tuple[Tensor, Tensor]:
        return fold_norm(matrix(block.linear), block.linear.bias, block.norm)  # type: ignore[arg-type]

    def _layer(self, layer: nn.Module, x: str) -> str:
        return self._linear(x, matrix(layer), layer.bias, layer)  # type: ignore[arg-type]

    def _linear(self, x: str, weight: Tensor, bias: Tensor | None = None, of: nn.Module | None = None) -> str:
        """x (..., C) times a weight (D, C) transposed, plus bias. of: the layer, which names the product."""
        right, name = self._weight(weight.t()), self._names[of] if of else ""
        y = self.op("MatMul", x, right, name=name)
        return y if bias is None else self.op("Add", y, self._weight(bias))

    def _activate(self, x: str, slope: float = LEAKY_SLOPE) -> str:
        if slope == 0:
            return self.op("Relu", x)
        return x if slope == 1 else self.op("LeakyRelu", x, alpha=slope)

    # Small pieces

    def _weight(self, tensor: Tensor) -> str:
        return self.graph.weight(tensor.detach().cpu().numpy())

    def _ints(self, *values: int) -> str:
        return self.graph.constant(values)

    def _gather(self, values: str, rows: str) -> str:
        return self.op("Gather", values, rows, axis=0)

    def _unsqueeze(self, x: str, axis: int) -> str:
        return self.op("Unsqueeze", x, self._ints(axis))

    def _squeeze(self, x: str) -> str:
        return self.op("Squeeze", x, self._ints(0))
