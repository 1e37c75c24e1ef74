# SPDX-License-Identifier: MIT
"""Properties of every strategy: exact resume, and no trace of a trial step or a failed step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import SMALLER, TINY, batch_of, network

from bpfn_cli.errors import NonFiniteError, UsageError
from bpfn_cli.losses import build_losses
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.strategies import STRATEGIES, PlainStrategy, Strategy, Teacher
from bpfn_cli.structures import FlowBatch

WITH_NORM = replace(SMALLER, bn=True)


def meta_val(number: int) -> Iterable[FlowBatch]:
    return iter([batch_of(seed=100 + number)])


def made(name: str, losses: tuple[str, ...] = ("hint",), **options: Any) -> Strategy:
    """A strategy with a small student and teacher, after its first epoch has begun."""
    kind = STRATEGIES[name]
    objective = build_losses(losses, WITH_NORM, TINY, {"calibration_step": 1})
    strategy = kind(
        network(WITH_NORM, 1),
        Teacher(network()) if losses != ("none",) else None,
        objective,
        weight_decay=1e-4,
        clip_norm=None,
        options=kind.settings(**options),
        meta_val=meta_val,
        largest=replace(TINY, bn=True),
        seed=3,
    )
    strategy.begin_epoch(1, 4)
    return strategy


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{prefix}.{key}").items()}
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)), prefix)
    return {prefix: state}


def same(first: Any, second: Any) -> bool:
    one, other = flat(first), flat(second)
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_the_strategies_are_those_of_the_specification() -> None:
    assert list(STRATEGIES) == ["plain", "self", "online", "meta", "netaug"]


def moving(name: str, critic: bool) -> Strategy:
    """A strategy with much state: the teacher of `meta` moves in each step, and a critic is trained beside."""
    return made(name, ("hint", *["adversarial"] * critic), **({"every": 1} if name == "meta" else {}))


EACH_STATE = [(name, name == "plain") for name in STRATEGIES]
EACH_STATE += [pytest.param(name, True, marks=pytest.mark.slow) for name in STRATEGIES if name != "plain"]


@pytest.mark.parametrize(("name", "critic"), EACH_STATE)
def test_resumed_training_equals_the_uninterrupted_one(name: str, critic: bool) -> None:
    whole = moving(name, critic)
    for step in range(2):
        whole.step(batch_of(seed=step), 1e-3)
    state = copy.deepcopy(whole.state_dict())
    whole.step(batch_of(seed=2), 1e-3)
    resumed = moving(name, critic)
    resumed.load_state_dict(state)
    assert same(resumed.state_dict(), state)
    resumed.step(batch_of(seed=2), 1e-3)
    assert same(resumed.state_dict(), whole.state_dict())
    assert not same(resumed.state_dict(), state)


@pytest.mark.parametrize(("name", "critic"), EACH_STATE)
def test_trial_step_is_undone(name: str, critic: bool) -> None:
    strategy = moving(name, critic)
    strategy.step(batch_of(), 1e-3)
    before = copy.deepcopy(strategy.state_dict())
    drawn = torch.get_rng_state()
    assert strategy.teacher is not None
    forwards = strategy.teacher.forwards
    assert strategy.trial_step(batch_of(seed=1), 1e-3, epochs=4) > 0
    assert strategy.teacher.forwards == forwards
    assert same(strategy.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("name", STRATEGIES)
def test_building_and_stepping_leaves_the_main_generator_alone(name: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    student, teacher = network(WITH_NORM, 1), network()
    torch.manual_seed(7)
    kind = STRATEGIES[name]
    objective = build_losses(["adversarial"], WITH_NORM, TINY)
    strategy = kind(
        student,
        Teacher(teacher),
        objective,
        weight_decay=0,
        clip_norm=None,
        meta_val=meta_val,
        largest=replace(TINY, bn=True),
    )
    strategy.step(batch_of(), 1e-3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", STRATEGIES)
def test_terms_are_reported_with_their_shares(name: str) -> None:
    strategy = made(name, losses=("basic",))
    terms = strategy.step(batch_of(), 1e-3, measure_gradients=True)
    assert {"supervised", "basic"} <= terms.keys()
    assert sum(term.gradient_share or 0 for term in terms.values()) == pytest.approx(1)
    for term in terms.values():
        assert term.weighted == pytest.approx(term.raw * term.weight, rel=1e-5)
    assert all(term.gradient_share is None for term in strategy.step(batch_of(), 1e-3).values())


def poison_truth(batch: FlowBatch, student: BiPointFlowNet) -> FlowBatch:
    flow = batch.flow.clone()
    flow[0, 0, 0] = torch.nan
    return replace(batch, flow=flow)


def poison_gradient(batch: FlowBatch, student: BiPointFlowNet) -> FlowBatch:
    student.flow0.fc.weight.register_hook(lambda gradient: gradient * torch.nan)
    return batch


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    ("poison", "expected"), [(poison_truth, r"term \w+ is nan"), (poison_gradient, "the gradient is nan")]
)
def test_step_that_is_not_finite_changes_nothing_and_names_the_samples(
    poison: Callable[[FlowBatch, BiPointFlowNet], FlowBatch], expected: str, name: str
) -> None:
    strategy = made(name, losses=("basic",))
    networks = [copy.deepcopy(network.state_dict()) for network in strategy.networks()]
    with pytest.raises(NonFiniteError, match=f"{expected} for the samples scene0"):
        strategy.step(poison(batch_of(), strategy.student), 1e-3)
    assert strategy.steps == 0
    assert all(same(before, now.state_dict()) for before, now in zip(networks, strategy.networks(), strict=True))


@pytest.mark.parametrize("name", ["plain", "online", "meta"])
@pytest.mark.parametrize("loss", ["localization", "weighted"])
def test_truth_that_is_not_finite_is_named_by_losses_that_look_things_up_by_it(name: str, loss: str) -> None:
    strategy = made(name, losses=(loss,), **({"weight": 1.0} if name == "online" else {}))
    strategy.objective.calibrated = True
    for act in (strategy.step, strategy.trial_step):
        with pytest.raises(NonFiniteError, match="term supervised is nan for the samples scene0"):
            act(poison_truth(batch_of(), strategy.student), 1e-3)


def test_step_uses_the_given_learning_rate() -> None:
    """Adam's first step moves every weight with a clear gradient by the learning rate."""
    student = network(SMALLER, 1)
    before = student.flow0.fc.bias.detach().clone()
    strategy = PlainStrategy(student, None, build_losses(["none"], SMALLER), weight_decay=0, clip_norm=None)
    strategy.step(batch_of(), 0.0125)
    torch.testing.assert_close((student.flow0.fc.bias - before).abs(), torch.full((3,), 0.0125), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "losses", "options", "expected"),
    [
        ("meta", ("none",), {}, "updates a teacher: give a --loss that has one"),
        ("online", ("none",), {"target": "general"}, "needs held-out scenes"),
    ],
)
def test_strategies_say_what_they_need(
    name: str, losses: tuple[str, ...], options: dict[str, Any], expected: str
) -> None:
    kind = STRATEGIES[name]
    with pytest.raises(UsageError, match=expected):
        kind(
            network(SMALLER, 1),
            None,
            build_losses(losses, SMALLER),
            weight_decay=0,
            clip_norm=None,
            options=kind.settings(**options),
        )


def test_step_left_out_at_the_calibration_leaves_hints_to_be_calibrated() -> None:
    strategy = made("plain", ("hint",))
    strategy.step(batch_of(), 1e-3)
    assert not strategy.objective.calibrated
    bias = strategy.student.flow0.fc.bias
    hook = bias.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match=r"term supervised, its gradient, is nan for the samples \w+"):
        strategy.step(batch_of(seed=1), 1e-3)
    hook.remove()
    assert not strategy.objective.calibrated
    strategy.step(batch_of(seed=2), 1e-3)
    assert strategy.objective.calibrated and float(strategy.objective.kappas[0]) > 0
