# SPDX-License-Identifier: MIT
"""Matrix products by oneDNN, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfn_cli.ops import products
from bpfn_cli.ops.products import add_product, linear, multiply


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradients(function, *inputs: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    result.backward(random(*result.shape, seed=8, dtype=result.dtype))
    return [result.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("shape", [(50, 7), (3, 20, 7), (2, 5, 4, 7), (1, 7)])
@pytest.mark.parametrize("slope", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_is_that_of_torch(shape: tuple[int, ...], slope: float, dtype: torch.dtype, has_bias: bool) -> None:
    inputs = [random(*shape, dtype=dtype), random(5, 7, seed=1, dtype=dtype)]
    inputs += [random(5, seed=2, dtype=dtype)] if has_bias else []

    def found(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias, slope)

    def expected(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.leaky_relu(F.linear(x, weight, bias), slope)

    for one, other in zip(with_gradients(found, *inputs), with_gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_linear_by_hand() -> None:
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -4.0], [5.0, 6.0]]), torch.tensor([1.0, 1.0])
    torch.testing.assert_close(linear(x, weight, bias, 0.1), torch.tensor([[-0.4, 18.0]]))


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_multiply_takes_views(turned: tuple[bool, bool]) -> None:
    left = random(30, 40).t() if turned[0] else random(40, 30)
    right = random(20, 30, seed=1).t() if turned[1] else random(30, 20, seed=1)
    torch.testing.assert_close(multiply(left, right), left @ right, rtol=1e-5, atol=1e-5)
    every_other = random(80, 30)[::2]
    torch.testing.assert_close(multiply(every_other, right), every_other @ right, rtol=1e-5, atol=1e-5)


def test_weights_that_are_part_of_a_matrix_are_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = []
    original = torch.ops.mkldnn._linear_pointwise

    def watched(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        layouts.append(weight.is_contiguous() or weight.t().is_contiguous())
        return original(x, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", watched)
    monkeypatch.setattr(products, "_is_intel", lambda: False)
    part, x = random(5, 20, seed=1)[:, 3:10], random(9, 7)
    torch.testing.assert_close(linear(x, part, None), F.linear(x, part), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(multiply(x, part.t()), x @ part.t(), rtol=1e-5, atol=1e-5)
    assert layouts == [True, True]


@pytest.mark.parametrize("products_per_sum", [7, products.LONG_SUM])
@pytest.mark.parametrize("intel", [True, False])
def test_products_are_those_of_torch_by_either_library(
    products_per_sum: int, intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_is_intel", lambda: intel)
    left, right = random(9, products_per_sum), random(products_per_sum, 5, seed=1)
    expected = left.double() @ right.double()
    torch.testing.assert_close(multiply(left, right).double(), expected, rtol=1e-5, atol=1e-4)
    result = torch.ones(9, 5)
    add_product(result, left, right)
    torch.testing.assert_close(result.double(), 1 + expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("slope", [1.0, 0.1, 0.0])
def test_not_a_number_is_kept(slope: float) -> None:
    """A network that has diverged must not look sound."""
    x = random(4, 3)
    x[2, 1] = torch.nan
    assert torch.isnan(linear(x, random(5, 3, seed=1), random(5, seed=2), slope)[2]).all()
    assert torch.isnan(multiply(x, random(3, 5))[2]).all()


@pytest.mark.parametrize("bias", ["strided", "column", "expanded"])
def test_every_layout_of_a_bias_is_read_right(bias: str) -> None:
    given = {"strided": random(10)[::2], "column": random(5, 3)[:, 0], "expanded": random(1).expand(5)}[bias]
    x, weight = random(9, 7), random(5, 7, seed=1)
    torch.testing.assert_close(linear(x, weight, given), F.linear(x, weight, given), rtol=1e-5, atol=1e-5)


def test_unusual_shapes_are_torchs() -> None:
    weight = random(5, 7, seed=1)
    torch.testing.assert_close(linear(random(7), weight, None), F.linear(random(7), weight))
    assert torch.equal(linear(torch.ones(3, 0), torch.ones(2, 0), torch.ones(2)), torch.ones(3, 2))
    assert linear(torch.ones(0, 7), weight, None).shape == (0, 5)


def test_other_uses_of_torch_work() -> None:
    x, weight = random(9, 7), random(5, 7, seed=1)
    found = torch.func.grad(lambda w: linear(x, w, None, 0.1).square().sum())(weight)
    expected = torch.func.grad(lambda w: F.leaky_relu(F.linear(x, w), 0.1).square().sum())(weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, None).dtype == torch.bfloat16
    with torch.no_grad():
        traced = torch.jit.trace(lambda value: linear(value, weight, None, 0.1), x)
    torch.testing.assert_close(traced(x), linear(x, weight, None, 0.1), rtol=1e-5, atol=1e-5)


def test_a_default_type_and_device_do_not_hide_onednn() -> None:
    expected = products._has_onednn()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert products._has_onednn.__wrapped__() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_multiply_reduces_the_precision_where_the_right_factor_has_less() -> None:
    left, right = random(8, 16), random(16, 4, seed=1).bfloat16()
    found = multiply(left, right)
    assert found.dtype == torch.float32
    assert torch.equal(found, (left.bfloat16() @ right).float())


def test_large_products_are_as_exact_as_float32_allows() -> None:
    """No shorter type behind it: TensorFloat-32 and bfloat16 would be a thousand times off."""
    left, right = random(300, 2000), random(2000, 200, seed=1)
    exact = left.double() @ right.double()
    error = (multiply(left, right).double() - exact).abs().max()
    assert error < 20 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_without_onednn_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = random(9, 7), random(5, 7, seed=1)

    def refuse(*_: object) -> Tensor:
        raise AssertionError("oneDNN was called")

    expected = F.linear(x, weight)
    monkeypatch.setattr(products, "_multiply_transposed", refuse)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(x, weight, None), expected)
    monkeypatch.setenv("BPFN_ONEDNN", "0")
    assert torch.equal(linear(x, weight, None), expected)
    assert torch.equal(multiply(x, weight.t()), x @ weight.t())


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_an_operation_that_is_gone_or_changed_is_not_used(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(products, "_multiply_transposed", fail)
    assert products._has_onednn.__wrapped__() is False
    monkeypatch.setattr(products, "_multiply_transposed", lambda *_: torch.zeros(1, 2))
    assert products._has_onednn.__wrapped__() is False
