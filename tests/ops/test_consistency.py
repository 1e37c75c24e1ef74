# SPDX-License-Identifier: MIT
"""What a flow is measured by without its true values: by hand, gradients, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bpfn_cli.ops import backward_errors, confidence, nearest_squares, roughness

FIRST = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [5, 0, 0]]])
SECOND = torch.tensor([[[0.0, 0.5, 0], [4, 0, 0]]])


def test_squared_distance_to_the_nearest_point_by_hand() -> None:
    assert nearest_squares(FIRST, SECOND).tolist() == [[0.25, 1.25, 1.0]]
    assert nearest_squares(SECOND, FIRST).tolist() == [[0.25, 1.0]]


def test_roughness_by_hand_is_the_mean_over_the_neighbors_without_the_point_itself() -> None:
    flow = torch.tensor([[[1.0, 0, 0], [1, 2, 0], [1, 0, 3]]])
    # With one neighbor: the points at 0 and 1 have each other, the one at 5 has that at 1.
    assert roughness(FIRST, flow, 2).tolist() == [[4.0, 4.0, 13.0]]
    # With two, every point has both others; more neighbors than points are the same.
    assert roughness(FIRST, flow, 3).tolist() == roughness(FIRST, flow, 9).tolist() == [[6.5, 8.5, 11.0]]
    assert roughness(FIRST, torch.ones(1, 3, 3), 9).tolist() == [[0.0, 0.0, 0.0]]
    assert roughness(FIRST[:, :1], flow[:, :1], 9).tolist() == [[0.0]]


def test_forward_backward_error_by_hand() -> None:
    pc1 = torch.tensor([[[0.0, 0, 0], [10, 0, 0], [0, 10, 0]]])
    flow = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]])
    backward = torch.tensor([[[-1.0, 0, 0], [-1, 0.3, 0], [-4, 0, 4]]])
    found = backward_errors(pc1, flow, pc1 + flow, backward)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.3, 5.0]]), rtol=1e-5, atol=1e-5)


def test_confidence_by_hand() -> None:
    assert confidence(torch.tensor([0.0, 0.1, 0.3]), 0.1).tolist() == pytest.approx([1, 0.5, 0.1])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_gradients_are_exact_in_float64() -> None:
    first, second, flow = drawn(2, 12, 3), drawn(2, 9, 3, seed=1), drawn(2, 12, 3, seed=2)
    backward, options = drawn(2, 9, 3, seed=3), {"eps": 1e-7, "atol": 1e-6, "rtol": 1e-6}
    assert torch.autograd.gradcheck(nearest_squares, (first, second), **options)
    assert torch.autograd.gradcheck(lambda flow: roughness(first.detach(), flow, 4), (flow,), **options)
    assert torch.autograd.gradcheck(
        lambda flow, backward: backward_errors(first.detach(), flow, second.detach(), backward),
        (flow, backward),
        **options,
    )
    assert torch.autograd.gradcheck(lambda errors: confidence(errors, 0.1), (drawn(5),), **options)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return found


def largest(points: int) -> int:
    first, second, flow, backward = (drawn(1, points, 3, seed=seed).float() for seed in range(4))
    with LargestTensor() as seen:
        value = nearest_squares(first + flow, second).sum() + roughness(first, flow).sum()
        (value + backward_errors(first, flow, second, backward).sum()).backward()
    return seen.numbers


def test_memory_is_linear_in_the_points() -> None:
    """A matrix of all distances would have 4096 numbers a point."""
    assert largest(4096) <= 2 * largest(2048) <= 4096 * 64
