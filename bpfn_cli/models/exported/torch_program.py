# SPDX-License-Identifier: MIT
"""Programs of `torch.export`, which torch runs without bpfn.

The operators of bpfn are replaced by plain torch; loops are torch's `scan`, so that a program stays short.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfn_cli.choices import Storage
from bpfn_cli.errors import CheckpointError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.exported.base import Format, Request, Runner, stored_as
from bpfn_cli.ops.products import LEAKY_SLOPE

BLOCK = 256  # queries whose distances to all points are in memory at a time


class TorchProgram(Format):
    """`torch.export.load(FILE).module()(pc1, pc2)`."""

    name = "torch"
    suffix = ".pt2"
    title = "program, run by torch"
    any_points = False

    def write(self, model: BiPointFlowNet, request: Request) -> bytes:
        """The content of the file."""
        network = _Stored(model, request.stored)
        shape = 2, 1, request.points or model.num_points, 3
        clouds = torch.rand(shape, generator=torch.Generator().manual_seed(0)).unbind()
        content = io.BytesIO()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
            program = torch.export.export(network, clouds, strict=False)
            plain = program.run_decompositions({**torch.export.default_decompositions(), **_plain_operators()})
            torch.export.save(plain, content)
        return content.getvalue()

    def read(self, content: bytes, name: str) -> Runner:
        """The network in a file that this process wrote: loading one from elsewhere might run code."""
        logging.getLogger("torch._export").setLevel(logging.ERROR)  # it warns about symbols that our programs lack
        try:
            return torch.export.load(io.BytesIO(content)).module()
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{name}: torch {torch.__version__} cannot run it ({error})") from None


class _Stored(nn.Module):
    """The finest flow of a network whose weights become float32 when it runs."""

    def __init__(self, model: BiPointFlowNet, stored: Storage):
        super().__init__()
        self.network = stored_as(model, stored)

    def forward(self, pc1: Tensor, pc2: Tensor) -> Tensor:
        state = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        single = {name: x.float() if x.is_floating_point() else x for name, x in state.items()}
        return torch.func.functional_call(self.network, single, (pc1, pc2)).flows[0]


def _sample(points: Tensor, count: int) -> Tensor:
    def step(nearest: Tensor, last: Tensor, _: Tensor, points: Tensor) -> tuple[Tensor, ...]:
        square = (points - points.gather(1, last[:, None, None].expand(-1, 1, 3))) ** 2
        nearest = torch.minimum(nearest, square[..., 0] + square[..., 1] + square[..., 2])
        chosen = nearest.argmax(1)
        return nearest, chosen, chosen.to(torch.int32)  # outputs must not share memory

    from torch._higher_order_ops.scan import scan_op  # imports torch's compiler

    first = torch.zeros(len(points), dtype=torch.int64)
    state = torch.full(points.shape[:2], torch.inf), first
    *_, others = scan_op(step, state, (torch.zeros(count - 1),), (points,))
    return torch.cat([first[None], others.long()]).t()


def _knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    def step(done: Tensor, block: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        distance = (block[..., 0:1] - x) ** 2 + (block[..., 1:2] - y) ** 2 + (block[..., 2:3] - z) ** 2
        return done + 1, distance.topk(k, dim=-1, largest=False, sorted=True).indices

    from torch._higher_order_ops.scan import scan_op

    batch, count, _ = queries.shape
    blocks = F.pad(queries, (0, 0, 0, -count % BLOCK)).view(batch, -1, BLOCK, 3).transpose(0, 1)
    _, found = scan_op(step, (torch.zeros(1),), (blocks,), points[:, None].unbind(-1))
    return found.transpose(0, 1).reshape(batch, -1, k)[:, :count]


def _propagate_max(own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor, _: bool) -> tuple[Tensor, Tensor]:
    inner = F.leaky_relu(other[neighbors] + own[:, None], LEAKY_SLOPE)
    return (inner @ weight.t()).amax(1), own.new_empty(0, dtype=torch.uint8)


def _convolve_neighbors(
    offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor
) -> Tensor:
    grouped = torch.cat([offsets, features[neighbors]], -1)
    return (weights.transpose(1, 2) @ grouped).flatten(1) @ matrix.reshape(-1, matrix.shape[2])


def _plain_operators() -> dict[Any, Callable[..., Any]]:
    """What replaces the operators of bpfn."""
    ours = torch.ops.bpfn
    return {
        ours.farthest_point_sample.default: _sample,
        ours.knn.default: _knn,
        ours.propagate_max.default: _propagate_max,
        ours.convolve_neighbors.default: _convolve_neighbors,
    }
