# SPDX-License-Identifier: MIT
"""The optimizer step: the scale of the loss in float16."""

from __future__ import annotations

import pytest
import torch
from tiny_world import LEAST, tiny_network

from bpfn_cli.errors import NonFiniteError
from bpfn_cli.losses import build_losses
from bpfn_cli.precision import Precision
from bpfn_cli.strategies import PlainStrategy
from bpfn_cli.structures import FlowBatch


def batch() -> FlowBatch:
    pc1 = 20 * torch.rand(1, LEAST, 3, generator=torch.Generator().manual_seed(0))
    return FlowBatch(pc1, pc1.flip(1) + 0.2, torch.zeros(1, LEAST, 3), names=("a",))


def strategy_in(precision: Precision, scale: float | None = None) -> PlainStrategy:
    student = tiny_network(1)
    objective = build_losses(["none"], student.variant)
    strategy = PlainStrategy(student, None, objective, weight_decay=0, clip_norm=None, precision=precision)
    if scale is not None:
        strategy.load_state_dict(strategy.state_dict() | {"loss_scale": [scale, 0]})
    return strategy


def scale_of(strategy: PlainStrategy) -> float:
    return strategy.state_dict()["loss_scale"][0]


def gradient_of(strategy: PlainStrategy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in strategy.student.parameters() if p.grad is not None])


def test_float16_step_scales_the_loss_and_unscales_the_gradients() -> None:
    exact, half = strategy_in(Precision.float32), strategy_in(Precision.float16)
    for strategy in (exact, half):
        while not strategy.steps:  # steps that overflow are skipped, and the scale is halved
            strategy.step(batch(), 1e-3)
    expected, found = gradient_of(exact), gradient_of(half)
    assert scale_of(exact) == 1
    assert 1 < scale_of(half) <= 2**16
    assert float((expected - found).norm() / expected.norm()) < 0.05


def test_float16_step_is_skipped_and_the_scale_halved_if_gradients_overflow() -> None:
    strategy = strategy_in(Precision.float16, 2.0**40)
    before = [parameter.detach().clone() for parameter in strategy.student.parameters()]
    strategy.step(batch(), 1e-3)
    assert strategy.steps == 0
    assert strategy.state_dict()["loss_scale"] == [2**16, 0]  # never above
    assert all(torch.equal(*pair) for pair in zip(before, strategy.student.parameters(), strict=True))


def test_float16_scale_is_kept_in_the_state_and_restored() -> None:
    strategy = strategy_in(Precision.float16, 64.0)
    strategy.step(batch(), 1e-3)
    assert strategy.state_dict()["loss_scale"] == [64, 1]
    resumed = strategy_in(Precision.float16)
    resumed.load_state_dict(strategy.state_dict())
    assert resumed.state_dict()["loss_scale"] == [64, 1]


@pytest.mark.parametrize(("scale", "steps_before", "expected"), [(64.0, 1999, [128, 0]), (2.0**16, 1999, [2**16, 0])])
def test_float16_scale_doubles_after_2000_finite_steps(scale: float, steps_before: int, expected: list[float]) -> None:
    strategy = strategy_in(Precision.float16, scale)
    strategy.load_state_dict(strategy.state_dict() | {"loss_scale": [scale, steps_before]})
    weight = strategy.student.flow0.fc.weight
    strategy.optimizer.zero_grad()
    weight.grad = torch.zeros_like(weight)
    strategy.scaler.scale(torch.zeros(()))
    assert strategy._apply_gradients(batch(), 1e-3)
    assert strategy.state_dict()["loss_scale"] == expected


def test_float16_overflow_at_a_scale_of_1_is_an_error() -> None:
    strategy = strategy_in(Precision.float16, 1.0)
    strategy.student.flow0.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    for _ in range(2):  # the scaler can be used again after the error
        with pytest.raises(NonFiniteError, match=r"the gradient is (nan|inf) for the samples a"):
            strategy.step(batch(), 1e-3)
    assert strategy.state_dict()["loss_scale"] == [1, 0]
