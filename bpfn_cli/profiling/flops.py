# SPDX-License-Identifier: MIT
"""FLOPs of the fast path: the matrix products that it still has to compute."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bpfn_cli.losses.supervised import supervised_loss
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.profiling.workload import Case
from bpfn_cli.structures import FlowBatch

Shape = tuple[int, ...]


def count_matrix_flops(case: Case) -> int:
    """FLOPs (two per multiply-accumulate) of the matrix products of one pass, by torch's counter, on shapes only.

    Our own operators add theirs, including those that the backward pass repeats. Neighbor search and sampling compare
    numbers and count as nothing.
    """
    shape = (case.batch, case.points, 3)
    with torch.device("meta"):
        model = BiPointFlowNet(case.variant, case.points).train(case.training)
        batch = FlowBatch(torch.empty(shape), torch.empty(shape), torch.empty(shape), names=())
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter, torch.set_grad_enabled(case.training):
        output = model(batch.pc1, batch.pc2)
        if case.training:
            supervised_loss(output, batch).backward()
    return int(counter.get_total_flops())


def _propagate_max(own: Shape, other: Shape, neighbors: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    (rows, k), (outputs, channels) = neighbors, weight
    return 2 * rows * k * channels * outputs


def _propagate_max_backward(gradient: Shape, own: Shape, *_: Any, **__: Any) -> int:
    """Two sums over channels, for the weights and for the input; only the maxima take part."""
    (rows, outputs), channels = gradient, own[1]
    return 2 * 2 * rows * outputs * channels


def _convolve_neighbors(*shapes: Shape, aggregates: int = 1, linear_maps: int = 1, **_: Any) -> int:
    (rows, k), (middle, channels, outputs) = shapes[-2:]  # of the neighbors and the matrix
    return 2 * rows * middle * channels * (aggregates * k + linear_maps * outputs)


def _convolve_neighbors_backward(*shapes: Shape, **_: Any) -> int:
    """The aggregate again, the gradients of its two factors, and those of the two factors of the linear map."""
    return _convolve_neighbors(*shapes, aggregates=3, linear_maps=2)


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.bpfn.propagate_max: _propagate_max,
    torch.ops.bpfn.propagate_max_backward: _propagate_max_backward,
    torch.ops.bpfn.convolve_neighbors: _convolve_neighbors,
    torch.ops.bpfn.convolve_neighbors_backward: _convolve_neighbors_backward,
}
