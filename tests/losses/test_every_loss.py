# SPDX-License-Identifier: MIT
"""Properties that every loss must have."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from toys import SMALLER, TINY, batch_of, measure, network, objective, outputs, value

from bpfn_cli.errors import ShapeError
from bpfn_cli.losses import LOSSES, Card, DistillationLoss, build_losses
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.strategies import PlainStrategy, Teacher
from bpfn_cli.strategies.gradient_checks import course_of
from bpfn_cli.strategies.loss_checks import IDENTITIES, Pair, check_losses, keeps_share, needs_teacher
from bpfn_cli.structures import FlowBatch, FlowPyramid

ALL = tuple(LOSSES)
FOLLOW_THE_FINEST = {"basic", "ail", "weighted"}
NEVER_ZERO = {"localization", "adversarial", "gan-compression", "bridge", "chamfer"} | FOLLOW_THE_FINEST
TAUGHT = tuple(name for name in LOSSES if LOSSES[name].needs_teacher)
FROM_THE_BATCH = {"ail", "aht", "localization"}  # spread of errors, reach of bins: of the batch, until prepared


def test_the_losses_are_those_of_the_specification() -> None:
    names = (
        "basic hint bihint bridge ail aht bounded weighted rkd localization pairwise adversarial gan-compression "
        "mobilebert chamfer"
    )
    assert " ".join(ALL) == names


@pytest.mark.parametrize("name", ALL)
def test_zero_where_student_equals_teacher(name: str) -> None:
    _, teacher, batch = outputs()
    assert (value(name, copy.copy(teacher), teacher, batch, TINY) == 0) == (name not in NEVER_ZERO)
    assert bool(LOSSES[name].card.never_zero) == (name in NEVER_ZERO)


def test_parts_of_the_losses_that_have_no_zero() -> None:
    _, guide, batch = outputs(TINY)
    for name in FOLLOW_THE_FINEST:
        assert value(name, guide, guide, batch, TINY, target="level") == 0
        assert value(name, guide, guide, batch, TINY, levels=[0]) == 0
    assert value("gan-compression", guide, guide, batch, TINY, lambda_critic=0.0) == 0
    # With the same heads, localization is left with the distribution focal loss alone.
    one = objective("localization", TINY)
    term = one.terms[0]
    term.teacher_heads.load_state_dict(term.own_heads.state_dict())
    found = one.measure(guide, guide, batch)["localization"]
    assert float(found.figures["divergence"]) == 0
    assert float(found.figures["focal"]) > 0


@pytest.mark.parametrize("name", ALL)
def test_teacher_stays_as_it_is(name: str) -> None:
    teacher, student = network(), network(SMALLER, 1)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    one = build_losses([name], SMALLER, TINY, {"calibration_step": 0})
    strategy = PlainStrategy(student, Teacher(teacher), one, weight_decay=0, clip_norm=None)
    strategy.step(batch_of(), 1e-3)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_no_gradient_flows_into_teacher_outputs(name: str) -> None:
    teacher, student, batch = network(), network(seed=1), batch_of()
    guide = teacher(batch.pc1, batch.pc2)
    measure(name, student(batch.pc1, batch.pc2), guide, batch, TINY).value.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


def permuted(output: FlowPyramid, orders: list[Tensor]) -> FlowPyramid:
    """The same output with the source points of each level in another order."""
    indices = {}
    for level, index in output.sample_indices1.items():
        if level < len(orders):
            position = torch.argsort(orders[level - 1])  # where a point of the level above has gone
            indices[level] = position[index][:, orders[level]]
        else:
            indices[level] = index
    turned = output.mapped(lambda level, tensor: tensor[:, orders[level]])
    return replace(
        turned,
        bfe_target=output.bfe_target,
        bfe_neighbors=[n[:, order] for n, order in zip(output.bfe_neighbors, orders, strict=True)],
        sample_indices1=indices,
        pyramid=None,
    )


@pytest.mark.parametrize("name", ALL)
def test_joint_permutation_of_points_changes_nothing(name: str) -> None:
    own, guide, batch = outputs()
    generator = torch.Generator().manual_seed(5)
    # Levels below the finest keep their order, which is that of their sampling.
    first = torch.randperm(own.flows[0].shape[1], generator=generator)
    orders = [first, *(torch.arange(flow.shape[1]) for flow in own.flows[1:])]
    turned = replace(batch, pc1=batch.pc1[:, first], flow=batch.flow[:, first])
    one = objective(name)
    plain = one.measure(replace(own, pyramid=None), replace(guide, pyramid=None), batch)[name].value.detach()
    other = one.measure(permuted(own, orders), permuted(guide, orders), turned)[name].value.detach()
    assert float(other) == pytest.approx(float(plain), rel=1e-5)


@cache
def outputs_of(rows: tuple[int, ...]) -> tuple[FlowPyramid, FlowPyramid, FlowBatch]:
    part, batch = list(rows), batch_of(2)
    chosen = replace(batch, pc1=batch.pc1[part], pc2=batch.pc2[part], flow=batch.flow[part])
    with torch.no_grad():
        own, other = (net(chosen.pc1, chosen.pc2) for net in (network(SMALLER, 1), network()))
    return own, other, chosen


@pytest.mark.parametrize("name", ALL)
def test_value_does_not_depend_on_the_order_or_split_of_samples(name: str) -> None:
    one = objective(name)

    def of(part: list[int]) -> float:
        return float(one.measure(*outputs_of(tuple(part)))[name].value.detach())

    whole = of([0, 1])
    assert of([1, 0]) == pytest.approx(whole, rel=1e-5)
    if name not in FROM_THE_BATCH:
        assert (of([0]) + of([1])) / 2 == pytest.approx(whole, rel=1e-5)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.build(network(SMALLER, 1), network())


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_slope_along_a_random_direction(name: str, pair: Pair) -> None:
    passed, detail = IDENTITIES["gradient"](name, pair)
    assert passed, detail


TRAINS_PARTS = ("bihint", "aht", "localization", "adversarial", "gan-compression", "mobilebert")  # for long
EACH_COURSE = [pytest.param(name, marks=pytest.mark.slow if name in TRAINS_PARTS else ()) for name in ALL]


@pytest.mark.parametrize("name", EACH_COURSE)
def test_loss_keeps_its_share_of_the_gradient_and_gets_it_from_the_teacher(name: str, pair: Pair) -> None:
    """While the student's error falls from 0.6 to 0.03 m."""
    found = course_of(name, pair.states)
    assert keeps_share(found), found.shares
    assert needs_teacher(found) == LOSSES[name].needs_teacher, found.cosines


def test_share_of_a_squared_loss_falls_if_kappa_is_set_only_once(pair: Pair) -> None:
    found = course_of("bounded", pair.states, {"recalibrate_every": 0, "bounded": {"mode": "gt"}})
    assert not keeps_share(found)
    assert found.shares == sorted(found.shares, reverse=True)


class MostlyTruth(DistillationLoss):
    """The supervised loss again, with a little of the teacher."""

    card = Card(compares="flows", formula="R(||s - g||) + R(||s - t||) / 100", source="this test")

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        distances = [(student.flows[0] - aim).norm(dim=-1).sum(dim=1).mean() for aim in (batch.flow, teacher.flows[0])]
        return distances[0] + distances[1] / 100


def test_loss_to_which_the_teacher_adds_little_is_found(pair: Pair) -> None:
    found = course_of(f"{__name__}:MostlyTruth", pair.states)
    assert keeps_share(found)
    assert not needs_teacher(found)


def train_steps(names: list[str], options: dict[str, float], teacher: BiPointFlowNet | None) -> dict[str, Tensor]:
    student = network(SMALLER, 1)
    one = build_losses(names, SMALLER, TINY if teacher else None, options)
    guide = None if teacher is None else Teacher(teacher)
    strategy = PlainStrategy(student, guide, one, weight_decay=1e-4, clip_norm=None)
    strategy.step(batch_of(), 1e-3)
    return {**student.state_dict(), "next draw": torch.rand(4)}


@cache
def trained_from_scratch() -> dict[str, Tensor]:
    return train_steps(["none"], {}, None)


@pytest.mark.parametrize("name", ALL)
def test_weight_zero_is_training_from_scratch_bit_for_bit(name: str) -> None:
    scratch = trained_from_scratch()
    distilled = train_steps([name], {"w_gt": 1.0, "w_kd": 0.0, "w_hint": 0.0}, network())
    assert all(torch.equal(scratch[key], distilled[key]) for key in scratch)


@pytest.mark.parametrize("fault", ["missing", "empty"])
@pytest.mark.parametrize("name", ALL)
def test_output_that_is_missing_is_an_error(name: str, fault: str) -> None:
    own, guide, batch = outputs(TINY)
    one = objective(name, TINY)
    for field in one.terms[0].reads() - {"bfe_neighbors"}:
        tensors = getattr(guide, field)
        broken = tensors[:0] if fault == "missing" else [tensor[:, :0] for tensor in tensors]
        with pytest.raises(ShapeError, match="missing or empty"):
            one.measure(own, replace(guide, **{field: broken}), batch)


@pytest.mark.parametrize("name", sorted(set(TAUGHT) - {"adversarial"}))
def test_points_that_do_not_match_are_an_error(name: str) -> None:
    own, guide, batch = outputs(TINY)
    cut = replace(
        guide,
        flows=[flow[:, :-1] for flow in guide.flows],
        bfe_source=[tensor[:, :-1] for tensor in guide.bfe_source],
        encoder_source=[tensor[:, :-1] for tensor in guide.encoder_source],
        encoder_target=[tensor[:, :-1] for tensor in guide.encoder_target],
        estimator_features=[tensor[:, :-1] for tensor in guide.estimator_features],
    )
    with pytest.raises(ShapeError):
        objective(name, TINY).measure(own, cut, batch)


@pytest.mark.parametrize("name", TAUGHT)
def test_different_samples_are_an_error(name: str) -> None:
    own, guide, batch = outputs(TINY)
    turned = {**own.sample_indices1, 1: own.sample_indices1[1].flip(1)}
    with pytest.raises(ShapeError, match="different points at level 1"):
        objective(name, TINY).measure(replace(own, sample_indices1=turned), guide, batch)


@pytest.mark.parametrize("name", ALL)
def test_values_beside_the_scalar(name: str) -> None:
    found = measure(name, *outputs())
    assert found.unit
    assert found.value.dim() == 0
    assert torch.isfinite(found.value)
    if found.levels and name != "gan-compression":
        parts = sum(part.detach() for part in found.levels.values())
        assert float(parts) == pytest.approx(float(found.value.detach()), rel=1e-5)
    if found.active is not None:
        assert 0 <= float(found.active) <= 1


@pytest.mark.parametrize("name", ALL)
def test_card_says_what_it_is(name: str) -> None:
    kind = LOSSES[name]
    assert kind.card.formula and kind.card.source and kind.card.compares
    for option, field in getattr(kind.settings, "__pydantic_fields__", {}).items():
        assert field.description, f"{name}.{option} has no meaning"


def test_checks_for_users_pass_on_this_pair_and_find_a_broken_loss(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    good = list(check_losses(["bounded"], pair))
    assert [check.passed for check in good] == [True] * (len(IDENTITIES) + 2 + 3)
    kind = LOSSES["pairwise"]
    forward = kind.forward

    def shifted(self: object, student: FlowPyramid, teacher: FlowPyramid, batch: object) -> object:
        found = forward(self, student, teacher, batch)  # type: ignore[arg-type]
        return replace(found, value=found.value + 0.5)  # type: ignore[type-var]

    monkeypatch.setattr(kind, "forward", shifted)
    without_a_step = IDENTITIES.keys() - {"teacher unchanged", "weight 0 is scratch"}
    assert [what for what in without_a_step if IDENTITIES[what]("pairwise", pair)[0] is False] == [
        "zero at the teacher"
    ]


class TeachesNothing(DistillationLoss):
    """Compares the student with itself."""

    card = Card(compares="nothing", formula="0", source="this test")

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        return (student.flows[0] - student.flows[0]).abs().mean()


class Vector(TeachesNothing):
    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        return student.flows[0] - teacher.flows[0]


def test_checks_find_a_loss_that_does_not_look_at_its_teacher_and_one_that_is_no_scalar(pair: Pair) -> None:
    found = {check.name: check.passed for check in check_losses([f"{__name__}:TeachesNothing"], pair)}
    assert found["uses the teacher"] is False
    assert found["missing hint raises"] is False
    assert found["share of the gradient"] is False
    assert found["teacher's part of it"] is False
    assert not any(check.passed for check in check_losses([f"{__name__}:Vector"], pair))


@pytest.mark.parametrize("name", ALL)
def test_hand_values_of_a_loss(name: str) -> None:
    values = list(LOSSES[name].hand_values())
    assert values
    for what, computed, expected in values:
        assert computed == pytest.approx(expected, rel=1e-4, abs=1e-9), what
