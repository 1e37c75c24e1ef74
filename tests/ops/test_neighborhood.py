# SPDX-License-Identifier: MIT
"""Operations on neighborhoods, against the formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bpfn_cli.ops import convolve_neighbors, flatten_indices, native, neighborhood, propagate_max


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graph(rows: int, k: int, others: int) -> Tensor:
    return torch.randint(0, others, (rows, k), generator=torch.Generator().manual_seed(9))


def propagate_max_in_full(own: Tensor, other: Tensor, neighbors: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.leaky_relu(own[:, None] + other[neighbors], 0.1), weight).max(dim=1).values


def convolve_in_full(offsets: Tensor, features: Tensor, weights: Tensor, neighbors: Tensor, matrix: Tensor) -> Tensor:
    grouped = torch.cat([offsets, features[neighbors]], dim=-1)
    return torch.einsum("rkc,rkm,mcd->rd", grouped, weights, matrix)


def propagation(rows: int = 23, k: int = 5, others: int = 17, inner: int = 6, outer: int = 4) -> list[Tensor]:
    return [random(rows, inner), random(others, inner, seed=1), graph(rows, k, others), random(outer, inner, seed=2)]


def convolution(
    rows: int = 23, k: int = 5, others: int = 17, channels: int = 6, middle: int = 3, outputs: int = 4
) -> list[Tensor]:
    return [
        random(rows, k, 3),
        random(others, channels, seed=1),
        random(rows, k, middle, seed=2),
        graph(rows, k, others),
        random(middle, 3 + channels, outputs, seed=3),
    ]


CASES = [
    (propagate_max, propagate_max_in_full, propagation),
    (convolve_neighbors, convolve_in_full, convolution),
]
IDS = ["propagate_max", "convolve_neighbors"]


def backwards(tensor: Tensor) -> Tensor:
    """The same numbers, the first dimension lying closest in memory."""
    order = range(tensor.dim() - 1, -1, -1)
    return tensor.permute(*order).contiguous().permute(*order)


def values_and_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    result = function(*leaves)
    result.backward(random(*result.shape, seed=8).to(result.dtype))
    return [result.detach(), *(x.grad for x in leaves if x.is_floating_point())]


def test_propagate_max_by_hand() -> None:
    own, other = torch.tensor([[1.0], [-3.0]]), torch.tensor([[0.0], [2.0]])
    neighbors = torch.tensor([[0, 1], [0, 1]])
    weight = torch.tensor([[2.0], [-1.0]])
    # Row 0: sums 1, 3; activated 1, 3; times 2 and -1. Row 1: sums -3, -1; activated -0.3, -0.1.
    expected = torch.tensor([[6.0, -1.0], [-0.2, 0.3]])
    torch.testing.assert_close(propagate_max(own, other, neighbors, weight), expected)


def test_convolve_neighbors_by_hand() -> None:
    offsets = torch.tensor([[[1.0, 0, 0], [0, 2, 0]]])
    features, neighbors = torch.tensor([[5.0], [7.0]]), torch.tensor([[1, 0]])
    weights = torch.tensor([[[1.0, 10], [2, 20]]])
    # Grouped: [1 0 0 7], [0 2 0 5]. First weights: [1 4 0 17], second ten times that.
    matrix = torch.zeros(2, 4, 1)
    matrix[0, :, 0] = torch.tensor([1.0, 1, 1, 1])
    matrix[1, 3, 0] = 1.0
    expected = torch.tensor([[22.0 + 170.0]])
    torch.testing.assert_close(convolve_neighbors(offsets, features, weights, neighbors, matrix), expected)


@pytest.mark.parametrize("elements", [1, 100, 1 << 20], ids=["one row a chunk", "few rows", "one chunk"])
@pytest.mark.parametrize(("function", "in_full", "inputs"), CASES, ids=IDS)
def test_equals_the_formula_in_values_and_gradients_for_every_chunk_size(
    function, in_full, inputs, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighborhood, "CHUNK_ELEMENTS", elements)
    for found, expected in zip(
        values_and_gradients(function, inputs()), values_and_gradients(in_full, inputs()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("function", "in_full", "inputs"), CASES, ids=IDS)
def test_gradients_are_those_of_finite_differences(function, in_full, inputs) -> None:
    leaves = [x.requires_grad_() if x.is_floating_point() else x for x in inputs(rows=4, k=3, others=5)]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize(("function", "in_full", "inputs"), CASES, ids=IDS)
def test_one_row_one_neighbor_one_channel(function, in_full, inputs) -> None:
    small = inputs(1, 1, 1, 1, 1)
    torch.testing.assert_close(function(*small), in_full(*small))


@pytest.mark.parametrize(("function", "in_full", "inputs"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_keep_their_type(function, in_full, inputs, dtype: torch.dtype) -> None:
    reduced = [x.to(dtype) if x.is_floating_point() else x for x in inputs()]
    expected = in_full(*[x.double() if x.is_floating_point() else x for x in reduced])
    for found in values_and_gradients(function, reduced):
        assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(function(*reduced).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("function", "in_full", "inputs"), CASES, ids=IDS)
def test_operators_are_well_registered(function, in_full, inputs) -> None:
    leaves = [x.requires_grad_() if x.is_floating_point() else x for x in inputs()]
    operator = getattr(torch.ops.bpfn, function.__name__).default
    extra = (True,) if function is propagate_max else ()
    torch.library.opcheck(operator, (*leaves, *extra))


@pytest.mark.parametrize("by_torch", [False, True], ids=["as usual", "by torch"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, backwards], ids=["contiguous", "backwards"])
@pytest.mark.parametrize(("function", "in_full", "inputs"), CASES, ids=IDS)
def test_results_lie_in_memory_as_a_compiler_is_told(
    function, in_full, inputs, layout, by_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_torch:
        monkeypatch.setattr(native, "runs_native", lambda *tensors: False)
    operands = [layout(x) for x in inputs()]
    forward = getattr(torch.ops.bpfn, function.__name__)
    backward = getattr(torch.ops.bpfn, f"{function.__name__}_backward")
    extra = (True,) if function is propagate_max else ()

    def results(operands: list[Tensor]) -> list[Tensor]:
        first = forward(*operands, *extra)
        result, *argmax = first if extra else (first,)
        return [result, *argmax, *backward(torch.ones_like(result), *operands, *argmax)]

    with FakeTensorMode() as mode:
        told = results([mode.from_tensor(x) for x in operands])
    for found, expected in zip(results(operands), told, strict=True):
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)


def test_gradient_of_tied_neighbors_is_given_once() -> None:
    own, other = torch.zeros(1, 2, dtype=torch.float64), random(3, 2)
    other[2] = other[0]
    neighbors = torch.tensor([[0, 1, 2]])
    _, _, gradient, _ = values_and_gradients(propagate_max, [own, other, neighbors, random(4, 2, seed=2)])
    twice = values_and_gradients(propagate_max, [own, other[:2], neighbors[:, :2], random(4, 2, seed=2)])[2]
    torch.testing.assert_close(gradient[0] + gradient[2], twice[0])
    torch.testing.assert_close(gradient[1], twice[1])


@pytest.mark.parametrize("k", [256, 257, 300])
def test_many_neighbors_keep_their_numbers(k: int) -> None:
    inputs = propagation(rows=3, k=k, others=400)
    for found, expected in zip(
        values_and_gradients(propagate_max, inputs), values_and_gradients(propagate_max_in_full, inputs), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_nothing_is_kept_where_no_gradient_is_needed() -> None:
    own, other, neighbors, weight = propagation()
    assert torch.ops.bpfn.propagate_max(own, other, neighbors, weight, False)[1].numel() == 0
    with torch.no_grad():
        assert propagate_max(own.requires_grad_(), other, neighbors, weight).grad_fn is None


def test_flatten_indices_counts_clouds() -> None:
    indices = torch.tensor([[[0, 2]], [[1, 0]]])
    assert flatten_indices(indices, 5).tolist() == [[[0, 2]], [[6, 5]]]
