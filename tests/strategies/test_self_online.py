# SPDX-License-Identifier: MIT
"""Students that teach themselves, or each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_every_strategy import made, same
from torch import Tensor
from toys import SMALLER, TINY, batch_of, network, outputs

from bpfn_cli.errors import UsageError
from bpfn_cli.losses import build_losses, supervised_loss
from bpfn_cli.losses.supervised import LEVEL_WEIGHTS, at_levels, errors_to_truth
from bpfn_cli.strategies import STRATEGIES, PlainStrategy
from bpfn_cli.strategies.online import OnlineStrategy, best_share, general_weights
from bpfn_cli.strategies.self_distillation import self_terms


def trained(name: str, **options: Any) -> dict[str, Tensor]:
    """The student after two steps from scratch."""
    strategy = made(name, losses=("none",), **options)
    for step in range(2):
        strategy.step(batch_of(seed=step), 1e-3)
    return strategy.student.state_dict()


# --- self ---


def test_truth_and_finest_flow_reach_a_level_by_the_same_indices() -> None:
    own, _, batch = outputs(TINY)
    truth = at_levels(own, batch.flow)
    index = own.sample_indices1[1]
    for level in (1, 2, 3):
        if level > 1:
            index = index.gather(1, own.sample_indices1[level])
        assert torch.equal(truth[level], batch.flow.gather(1, index[..., None].expand(-1, -1, 3)))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_terms_by_hand(alpha: float) -> None:
    own, _, batch = outputs(TINY)
    supervised, flow, features = self_terms(own, batch, alpha)
    errors = errors_to_truth(own, batch)
    finest = at_levels(own, own.flows[0])
    expected = LEVEL_WEIGHTS[0] * float(errors[0].sum())
    apart, squares = 0.0, 0.0
    for level in (1, 2, 3):
        expected += (1 - alpha) * LEVEL_WEIGHTS[level] * float(errors[level].sum())
        apart += alpha * LEVEL_WEIGHTS[level] * float((own.flows[level] - finest[level]).norm(dim=-1).sum())
        mine, best = own.estimator_features[level], at_levels(own, own.estimator_features[0])[level]
        squares += float((mine - best).square().sum())
    assert float(supervised.value) == pytest.approx(expected, rel=1e-5)
    assert float(flow.value) == pytest.approx(apart, rel=1e-5)
    assert float(features.value) == pytest.approx(squares, rel=1e-5)
    if alpha == 0:
        assert float(supervised.value) == pytest.approx(float(supervised_loss(own, batch)))


def test_finest_level_gets_no_gradient_from_teaching() -> None:
    own, _, batch = outputs(TINY)
    flows = [flow.clone().requires_grad_() for flow in own.flows]
    features = [feature.clone().requires_grad_() for feature in own.estimator_features]
    _, flow, feature = self_terms(replace(own, flows=flows, estimator_features=features), batch, 0.5)
    (flow.value + feature.value).backward()
    assert [x.grad is not None for x in flows] == [False, True, True, True]
    assert [x.grad is not None for x in features] == [False, True, True, True]


def test_without_weights_it_is_training_from_scratch() -> None:
    scratch = trained("plain")
    assert same(trained("self", alpha=0.0, feature_weight=0.0), scratch)
    assert not same(trained("self"), scratch)


def test_features_get_rho_of_the_supervised_gradient_and_keep_it_when_resumed() -> None:
    strategy = made("self", losses=("none",), start=0.0)
    strategy.objective.options = replace(strategy.objective.options, recalibrate_every=3)
    batch, shares, weights = batch_of(), [], []
    for _ in range(4):
        terms = strategy.step(batch, 1e-4, measure_gradients=True)
        shares.append(terms["self_features"].gradient_share / terms["supervised"].gradient_share)
        weights.append(terms["self_features"].weight)
    assert [shares[0], shares[3]] == pytest.approx([0.3, 0.3], rel=1e-3)
    assert weights[0] == weights[1] == weights[2] != weights[3]
    other = made("self", losses=("none",), start=0.0)
    other.load_state_dict(strategy.state_dict())
    assert other.step(batch, 1e-4)["self_features"].weight == weights[3]


def test_features_of_different_widths_are_refused() -> None:
    levels = tuple(replace(level, estimator_features=8 + number) for number, level in enumerate(TINY.levels))
    wide = replace(TINY, levels=levels)  # type: ignore[arg-type]
    objective, options = build_losses(("none",), wide), STRATEGIES["self"].settings()
    with pytest.raises(UsageError, match=r"strategy self: .*differ \(8, 9, 10, 11\); make them equal"):
        STRATEGIES["self"](network(wide), None, objective, weight_decay=0, clip_norm=None, options=options, seed=0)


def test_feature_weight_of_the_paper_is_used_as_it_is() -> None:
    terms = made("self", losses=("none",), start=0.0, feature_weight=1e-6).step(batch_of(), 1e-3)
    assert terms["self_features"].weight == 1e-6


def test_it_starts_after_a_tenth_of_the_epochs() -> None:
    strategy = made("self", losses=("none",))
    for epoch, expected in ((0, False), (1, False), (2, True), (19, True)):
        strategy.begin_epoch(epoch, 20)
        assert ("self_flow" in strategy.step(batch_of(), 1e-3)) == expected


# --- online ---


def test_best_mix_of_two_by_hand() -> None:
    # C = [[0.04, 0.01], [0.01, 0.02]]: C^-1 1 is (0.01, 0.03) / 0.0007; the mix errs 0.0175, less than 0.02.
    covariance = torch.tensor([[0.04, 0.01], [0.01, 0.02]], dtype=torch.float64)
    weights = general_weights(covariance)
    assert weights.tolist() == pytest.approx([0.25, 0.75])
    assert float(weights @ covariance @ weights) == pytest.approx(0.0175)


def test_mix_of_peers_never_has_a_negative_share_and_alike_ones_share_equally() -> None:
    assert general_weights(torch.tensor([[1.0, 0.5], [0.5, 0.1]])).tolist() == [0.0, 1.0]
    assert general_weights(torch.full((2, 2), 0.3)).tolist() == pytest.approx([0.5, 0.5])
    assert general_weights(torch.zeros(2, 2)).tolist() == [0.5, 0.5]


def test_linear_share_by_hand() -> None:
    # s = (0.3, -0.1), g = 0: 0.25 * 0.3 - 0.75 * 0.1 = 0.
    first, second, truth = (torch.tensor([[[x, 0.0, 0.0]]]) for x in (0.3, -0.1, 0.0))
    share = best_share(first, second, truth)
    assert share.tolist() == pytest.approx([0.25])
    assert float((share * first + (1 - share) * second).abs().max()) < 1e-7
    assert best_share(first, first, truth).tolist() == [0.5]
    assert best_share(first, 2 * first, truth).tolist() == [1.0]


def test_linear_share_counts_the_known_points_alone() -> None:
    first = torch.tensor([[[0.3, 0, 0], [9.0, 0, 0]]])
    second = torch.tensor([[[-0.1, 0, 0], [-7.0, 0, 0]]])
    known = torch.tensor([[True, False]])
    assert best_share(first, second, torch.zeros(1, 2, 3), known).tolist() == pytest.approx([0.25])


@pytest.mark.parametrize("target", ["naive", "linear", "general", "pointbest"])
def test_peers_that_are_one_teach_each_other_nothing(target: str) -> None:
    strategy = made("online", losses=("none",), target=target)
    assert isinstance(strategy, OnlineStrategy)
    strategy.peer.load_state_dict(strategy.student.state_dict())
    terms = strategy.step(batch_of(), 1e-3)
    assert terms["online"].raw == pytest.approx(0, abs=1e-5)
    assert terms["peer_online"].raw == pytest.approx(0, abs=1e-5)
    assert terms["supervised"].raw == terms["peer_supervised"].raw


@pytest.mark.parametrize("target", ["naive", "linear", "general", "pointbest"])
def test_target_is_at_least_as_good_as_either_peer(target: str) -> None:
    strategy = made("online", losses=("none",), target=target)
    assert isinstance(strategy, OnlineStrategy)
    batch = batch_of()
    strategy.begin_epoch(1, 4)
    with torch.no_grad():
        own, other = (net.eval()(batch.pc1, batch.pc2) for net in strategy.networks())
    aim = strategy.targets(own, other, batch)
    errors = [(x - batch.flow).square().sum() for x in (own.flows[0], other.flows[0], aim[0])]
    if target == "naive":
        assert any(torch.equal(aim[0], x.flows[0]) for x in (own, other))
    if target != "general":  # that is the best on other scenes
        assert float(errors[2]) <= float(min(errors[:2])) * (1 + 1e-5)
    if target == "general":
        assert strategy.mix.sum() == pytest.approx(1)


def test_first_peer_without_weight_is_the_student_from_scratch() -> None:
    strategy = STRATEGIES["online"](
        network(SMALLER, 1),
        None,
        build_losses(["none"], SMALLER),
        weight_decay=1e-4,
        clip_norm=1.0,
        options=STRATEGIES["online"].settings(weight=0.0),
    )
    plain = PlainStrategy(network(SMALLER, 1), None, build_losses(["none"], SMALLER), weight_decay=1e-4, clip_norm=1.0)
    for step in range(2):
        for each in (strategy, plain):
            each.step(batch_of(seed=step), 1e-3)
    assert same(strategy.student.state_dict(), plain.student.state_dict())
    assert not same(strategy.networks()[1].state_dict(), plain.student.state_dict())


def test_teacher_is_run_once_for_both_peers() -> None:
    strategy = made("online", losses=("basic",))
    assert strategy.teacher is not None
    strategy.step(batch_of(), 1e-3)
    assert strategy.teacher.forwards == 1
