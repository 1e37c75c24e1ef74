# SPDX-License-Identifier: MIT
"""Rounding as int8 inference does it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_world import LEAST, tiny_network
from torch import nn

from bpfn_cli.errors import CheckpointError, UsageError
from bpfn_cli.models import VARIANTS, build_model, slim
from bpfn_cli.models.fake_quantization import (
    MOMENTUM,
    RANGES,
    FakeQuantizer,
    _some_values,
    add_quantizers,
    get_ranges,
    is_quantized,
    parse_ranges,
    quantizers,
    round_weights,
    set_ranges,
)


def quantizer(low: float, high: float) -> FakeQuantizer:
    made = FakeQuantizer().eval()
    made.low.fill_(low)
    made.high.fill_(high)
    return made


def test_input_is_rounded_to_256_steps_and_clipped_by_hand() -> None:
    x = torch.tensor([0.0, 0.0149, 0.0151, 2.0, 9.0, -0.517, -9.0], requires_grad=True)
    y = quantizer(-0.514, 2.036)(x)  # steps of 0.01, from -0.51 to 2.04
    assert torch.allclose(y, torch.tensor([0.0, 0.01, 0.02, 2.0, 2.04, -0.51, -0.51]), atol=1e-6)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_weights_have_a_scale_for_each_row_by_hand() -> None:
    weight = torch.tensor([[1.27, -0.514], [0.0127, 0.00006], [0, 0]], requires_grad=True)
    rounded = FakeQuantizer().weight(weight)
    assert torch.allclose(rounded, torch.tensor([[1.27, -0.51], [0.0127, 0.0001], [0, 0]]), atol=1e-7)
    rounded.sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())


def test_nothing_is_rounded_before_the_first_batch() -> None:
    x = torch.randn(9)
    assert torch.equal(FakeQuantizer().eval()(x), x)


def test_diverged_values_stay_so() -> None:
    for value in (torch.nan, torch.inf):
        assert not FakeQuantizer()(torch.tensor([1.0, value])).isfinite().all()
    assert bool(quantizer(0, 1)(torch.tensor([torch.nan])).isnan())
    assert bool(FakeQuantizer().weight(torch.tensor([[torch.nan, 1.0]])).isnan().any())


def test_range_follows_the_batches_in_training_alone() -> None:
    one = FakeQuantizer()
    one(torch.tensor([1.0, 3.0]))
    assert (float(one.low), float(one.high)) == (0, 3)  # always with 0
    one(torch.tensor([-1.0, 5.0]))
    assert (float(one.low), float(one.high)) == pytest.approx((-MOMENTUM, 3 + 2 * MOMENTUM))
    one.eval()(torch.tensor([100.0]))
    assert float(one.high) < 4


@pytest.mark.parametrize("shape", [(4, 1024, 512), (4, 512, 1024), (1, 64, 32, 1024), (3, 7, 9973)])
def test_range_takes_values_of_all_channels(shape: tuple[int, ...]) -> None:
    for axis in range(1, len(shape)):
        for channel in (0, shape[axis] // 2, shape[axis] - 1):
            x = torch.zeros(shape)
            x.select(axis, channel).fill_(1.0)
            share = float(_some_values(x).mean())
            assert share == pytest.approx(1 / shape[axis], rel=0.5), (axis, channel)


@pytest.mark.parametrize("name", [name for name, one in VARIANTS.items() if not one.separable.plain()])
def test_coordinates_and_weights_of_interpolations_stay_float(name: str) -> None:
    model = build_model(slim(VARIANTS[name], "small", width=0.25), LEAST)
    state = set(model.state_dict())
    add_quantizers(model)
    assert set(model.state_dict()) == state  # a checkpoint is that of the plain network
    kept = {
        layer
        for layer, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and layer not in quantizers(model)
    }
    parts = {layer for layer in kept if not layer.startswith("level0.")}
    assert len(kept) - len(parts) == 1  # the first layer
    assert {part for layer in parts for part in layer.split(".") if part in ("pos1", "pos2", "fc", "weightnet")} == {
        "pos1",
        "pos2",
        "fc",
        "weightnet",
    }
    assert len(parts) == 12 * 3 + 4 * 3  # three layers of 12 WeightNets; of 4 levels two positions, one flow
    assert not any(map(is_quantized, kept))


def test_separable_layers_are_refused() -> None:
    model = build_model(slim(VARIANTS["declinear"], "small", width=0.25, c_mid=2), LEAST)
    with pytest.raises(UsageError, match="separable, which cannot be quantized"):
        add_quantizers(model)


def test_rounded_weights_are_a_fixed_point() -> None:
    model = tiny_network()
    add_quantizers(model)
    before = copy.deepcopy(model.state_dict())
    round_weights(model)
    once = copy.deepcopy(model.state_dict())
    round_weights(model)
    assert any(not torch.equal(once[name], before[name]) for name in once)
    assert all(torch.equal(once[name], tensor) for name, tensor in model.state_dict().items())


def test_ranges_survive_the_metadata() -> None:
    model = tiny_network()
    add_quantizers(model)
    ranges = {name: (-float(index), 0.1 + index) for index, name in enumerate(quantizers(model))}
    set_ranges(model, ranges)
    found = get_ranges(model)
    assert found == {name: pytest.approx(ends) for name, ends in ranges.items()}
    assert parse_ranges({RANGES: {name: list(ends) for name, ends in found.items()}}, "f") == found
    assert parse_ranges({}, "f") is None


@pytest.mark.parametrize("value", [3, {"a": 3}, {"a": [1, 2]}, {"a": [0, float("nan")]}, {"a": ["x", 1]}, {"a": [0]}])
def test_invalid_ranges_are_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"f: int8_ranges .*is not a (table of ranges|range around 0)"):
        parse_ranges({RANGES: value}, "f")
