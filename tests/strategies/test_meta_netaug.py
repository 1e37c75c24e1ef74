# SPDX-License-Identifier: MIT
"""A teacher that learns to teach, and a student inside wider networks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from test_every_strategy import made, same
from torch import Tensor
from torch.func import functional_call
from toys import POINTS, SMALLER, TINY, batch_of, network

from bpfn_cli.errors import UsageError
from bpfn_cli.losses import build_losses
from bpfn_cli.models import BASELINE, VARIANTS, Separable, build_model, slim
from bpfn_cli.strategies import STRATEGIES
from bpfn_cli.strategies.meta import MetaStrategy, meta_gradient, moved
from bpfn_cli.strategies.netaug import NetaugStrategy, widened

# --- meta ---


def test_gradient_of_the_teacher_by_hand() -> None:
    # s = theta x, t = phi x, squared, alpha 1, theta 0, phi 1, x 1, eta 0.1; meta_val at (1, 2):
    # theta' = 0.2, v = 2 (0.2 - 2) = -3.6, d theta' / d phi = 0.2, so -0.72.
    theta, phi = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (0.0, 1.0))
    seen: list[float] = []

    def meta_val() -> Tensor:
        seen.append(float(theta.detach()))
        return (theta - 2).square().sum()

    def lesson() -> Tensor:
        return (theta - phi).square().sum()

    (found,) = meta_gradient([theta], [phi], lesson, meta_val, eta=0.1, epsilon=0.01)
    assert seen == pytest.approx([0.2])
    assert float(found) == pytest.approx(-0.72, abs=1e-12)
    assert float(theta.detach()) == 0


def test_gradient_of_the_teacher_is_that_of_second_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, phi, x = (torch.randn(4, dtype=torch.float64, generator=generator) for _ in range(3))
    theta.requires_grad_()
    phi.requires_grad_()

    def lesson(parameter: Tensor) -> Tensor:
        return (torch.tanh(parameter * x) - torch.sin(phi * x)).square().sum()

    def meta_val(parameter: Tensor) -> Tensor:
        return (parameter - 1).square().sum()

    (inner,) = torch.autograd.grad(lesson(theta), theta, create_graph=True)
    (exact,) = torch.autograd.grad(meta_val(theta - 0.1 * inner), phi)
    (found,) = meta_gradient([theta], [phi], lambda: lesson(theta), lambda: meta_val(theta), eta=0.1, epsilon=1e-4)
    assert torch.allclose(found, exact, rtol=1e-6)


def test_parameters_come_back_bit_for_bit_even_after_an_error() -> None:
    parameter = torch.tensor([0.1, 1e9])
    before = parameter.clone()
    with pytest.raises(ZeroDivisionError), moved([parameter], [torch.tensor([1e-3, 3.3])], 7.7):
        assert not torch.equal(parameter, before)
        raise ZeroDivisionError
    assert torch.equal(parameter, before)


def test_teacher_moves_and_the_student_is_what_it_was() -> None:
    strategy = made("meta", losses=("basic",))
    assert isinstance(strategy, MetaStrategy)
    strategy.step(batch_of(), 1e-3)
    assert strategy.teacher is not None
    student, optimizer = copy.deepcopy(strategy.student.state_dict()), copy.deepcopy(strategy.optimizer.state_dict())
    teacher = copy.deepcopy(strategy.teacher.network.state_dict())
    strategy.update_teacher(batch_of(seed=1), 1e-3)
    assert same(strategy.student.state_dict(), student)
    assert same(strategy.optimizer.state_dict(), optimizer)
    assert not same(strategy.teacher.network.state_dict(), teacher)
    assert all(parameter.grad is None for parameter in strategy.teacher.network.parameters())
    assert not any(parameter.requires_grad for parameter in strategy.teacher.network.parameters())


def test_teacher_that_may_not_move_is_basic_distillation() -> None:
    states = []
    for name, options in (("plain", {}), ("meta", {"teacher_lr": 0.0})):
        strategy = made(name, losses=("basic",), **options)
        for step in range(2):
            strategy.step(batch_of(seed=step), 1e-3)
        states.append(strategy.student.state_dict())
    assert same(*states)


def test_teacher_moves_every_so_many_steps() -> None:
    strategy = made("meta", losses=("basic",), every=2)
    assert strategy.teacher is not None
    moves = []
    for step in range(3):
        before = copy.deepcopy(strategy.teacher.network.state_dict())
        strategy.step(batch_of(seed=step), 1e-3)
        moves.append(not same(strategy.teacher.network.state_dict(), before))
    assert moves == [True, False, True]


def test_losses_that_do_not_depend_smoothly_on_the_teacher_are_refused() -> None:
    with pytest.raises(UsageError, match="no term of --loss adversarial is differentiable in the teacher"):
        made(
            "meta",
            losses=("adversarial",),
        ).trial_step(batch_of(), 1e-3)


# --- netaug ---

SMALL = replace(SMALLER, bn=True)


def augmented(**options: float) -> NetaugStrategy:
    strategy = made("netaug", losses=("none",), **options)
    assert isinstance(strategy, NetaugStrategy)
    return strategy


@pytest.mark.parametrize("student", ["weightnet48", "half", "weightnet4", "half_bottleneck"])
def test_widest_network_has_the_sizes_of_the_teacher(student: str) -> None:
    own = VARIANTS[student]
    widest = widened(own, BASELINE, 1.0)
    for level, other in zip(widest.levels, BASELINE.levels, strict=True):
        assert (level.width, level.embedding, level.c_mid) == (other.width, other.embedding, other.c_mid)
    assert (widest.bn, widest.separable, widest.bottleneck) == (own.bn, own.separable, own.bottleneck)
    assert widened(own, BASELINE, 0.0).levels == own.levels


def test_c_mid_grows_where_no_map_is_separable() -> None:
    own = slim(BASELINE, "own", c_mid=4, separable=Separable(encoder=(3,), estimators=(0,)))
    assert [level.c_mid for level in widened(own, BASELINE, 1.0).levels] == [4, 16, 16, 4, 16]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_widths_of_separable_networks_are_multiples_of_c_mid(share: float) -> None:
    own = slim(VARIANTS["declinear"], "own", width=0.5)
    for level in widened(own, BASELINE, share).levels[1:]:
        assert level.width % level.c_mid == 0


def test_wider_networks_hold_the_students_weights_where_slicing_finds_them() -> None:
    strategy = augmented(choices=3)
    own = dict(strategy.student.named_parameters())
    for wider in strategy.wider:
        weights = strategy.weights_of(wider)
        name = "flow0.pointconv_list.1.linear.weight"  # flattened as channel * c_mid + w: a prefix would be wrong
        small, c_mid = strategy.student.variant.levels[0].c_mid, wider.structure.variant.levels[0].c_mid
        cut = weights[name].unflatten(1, (-1, c_mid))[: own[name].shape[0], :, :small].flatten(1)
        assert torch.equal(cut, own[name])
    widest = strategy.weights_of(strategy.wider[-1])
    assert {key for key, _ in strategy.widest.named_parameters()} <= widest.keys()


def test_part_of_the_widest_is_the_student_by_itself() -> None:
    """All of a wider network that is not the student set to zero gives the student's output."""
    student = SMALLER
    wide = slim(SMALLER, "w", c_mid=3)
    kind = STRATEGIES["netaug"]
    objective = build_losses(["none"], student)
    network_ = build_model(student, POINTS)
    strategy = kind(network_, None, objective, weight_decay=0, clip_norm=None, largest=wide)
    assert isinstance(strategy, NetaugStrategy)
    with torch.no_grad():
        for parameter in strategy.widest.parameters():
            parameter.zero_()
    batch = batch_of()
    weights = strategy.weights_of(strategy.wider[-1])
    structure = strategy.wider[-1].structure.eval()
    network_.eval()
    with torch.no_grad():
        expected = network_(batch.pc1, batch.pc2)
        found = functional_call(structure, weights, (batch.pc1, batch.pc2))
    for one, other in zip(found.flows, expected.flows, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_without_weight_it_is_training_from_scratch_and_the_student_keeps_its_size() -> None:
    plain, none, some = made("plain", losses=("none",)), augmented(alpha=0.0), augmented()
    for step in range(2):
        for each in (plain, none, some):
            each.step(batch_of(seed=step), 1e-3)
    assert same(none.student.state_dict(), plain.student.state_dict())
    assert not same(some.student.state_dict(), plain.student.state_dict())
    assert sum(p.numel() for p in some.student.parameters()) == sum(p.numel() for p in plain.student.parameters())


def test_running_statistics_are_those_of_the_student_alone() -> None:
    plain, some = made("plain", losses=("none",)), augmented()
    for each in (plain, some):
        each.step(batch_of(), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(plain.student.buffers(), some.student.buffers(), strict=True))


def test_both_gradients_reach_the_student_and_the_rest_learns_too() -> None:
    strategy = augmented(choices=1)
    before = copy.deepcopy(strategy.widest.state_dict())
    terms = strategy.step(batch_of(), 1e-3)
    assert terms["augmented"].weight == 1
    assert not same(strategy.widest.state_dict(), before)


def test_no_wider_network_in_the_second_half() -> None:
    strategy = augmented()
    for epoch, expected in ((0, True), (4, True), (5, False), (9, False)):
        strategy.begin_epoch(epoch, 10)
        assert ("augmented" in strategy.step(batch_of(), 1e-3)) == expected


def test_student_that_nothing_is_wider_than_is_refused() -> None:
    with pytest.raises(UsageError, match="tiny is nowhere wider than tiny"):
        STRATEGIES["netaug"](
            network(TINY), None, build_losses(["none"], TINY), weight_decay=0, clip_norm=None, largest=TINY
        )
    with pytest.raises(UsageError, match="needs a larger variant"):
        STRATEGIES["netaug"](network(TINY), None, build_losses(["none"], TINY), weight_decay=0, clip_norm=None)
