# SPDX-License-Identifier: MIT
"""Batches without truth: which losses run, how they are weighted, and what replaces the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import SMALLER, TINY, TOY_BATCH, S, T, batch_of, measure, network, outputs, toy

from bpfn_cli.errors import DataError, UsageError
from bpfn_cli.losses import LOSSES, build_losses
from bpfn_cli.strategies import PlainStrategy, Teacher

NEED_TRUTH = {"ail", "aht", "bounded", "weighted", "localization"}
ALONE = {"basic", "chamfer"}  # those that determine the flow without labels
UNLABELED = replace(TOY_BATCH, flow=None)


def test_truth_that_is_unknown_is_an_error_not_zeros() -> None:
    with pytest.raises(DataError, match=r"^scenes a: their true flow is unknown; use scenes with labels$"):
        _ = UNLABELED.truth


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_runs_without_labels_or_says_before_training_that_it_needs_them(name: str) -> None:
    names = [name] if name in ALONE | NEED_TRUTH else ["basic", name]
    if name in NEED_TRUTH:
        with pytest.raises(UsageError, match=f"^loss {name} needs labels, which the training scenes do not have; use"):
            build_losses(["basic", name], SMALLER, TINY, has_truth=False)
        return
    objective = build_losses(names, SMALLER, TINY, {"calibration_step": 0}, has_truth=False)
    batch = replace(batch_of(), flow=None)
    own, other, _ = outputs()
    found = objective.measure(own, other, batch)
    labeled = build_losses(names, SMALLER, TINY).measure(own, other, batch_of())
    assert list(found) == names
    if not any(True for _ in objective.parameters()):  # no layers with random weights
        assert [float(found[name].value) for name in names] == [float(labeled[name].value) for name in names]


@pytest.mark.parametrize("name", ["adversarial", "gan-compression"])
def test_critic_that_is_shown_the_truth_needs_it(name: str) -> None:
    options = {name: {"real": "truth", **({"lambda_critic": 0.1} if name == "gan-compression" else {})}}
    with pytest.raises(UsageError, match=f"^loss {name} needs labels"):
        build_losses(["basic", name], SMALLER, TINY, options, has_truth=False)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        ([], {}, r"^the supervised loss \(--loss none\) needs labels"),
        (["hint"], {}, "^loss hint alone does not determine the flow without labels; add the loss basic or chamfer$"),
        (["basic"], {"w_gt": 1.0}, r"^objective\.w_gt 1: the training scenes have no labels; remove it$"),
        (["basic", "hint"], {"w_kd": 0.0}, r"^objective\.w_kd 0 leaves nothing to scale hints by"),
    ],
)
def test_objective_that_cannot_work_without_labels_is_refused(
    names: list[str], options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        build_losses(names, SMALLER, TINY, options, has_truth=False)


def test_weights_without_labels() -> None:
    """The teacher's share is 1; hints are scaled to the terms that determine the flow."""

    def weights(*names: str, **options: Any) -> dict[str, float]:
        objective = build_losses(names, TINY, TINY, options, has_truth=False)
        objective.kappas[:] = 0.5
        return {name: objective.weight(name) for name in names}

    assert weights("basic") == {"basic": 1}
    assert weights("basic", "hint", "chamfer") == {"basic": 1, "hint": 0.5, "chamfer": 0.5}
    assert weights("chamfer") == {"chamfer": 1}
    assert weights("chamfer", "hint") == {"chamfer": 1, "hint": 0.5}
    assert weights("basic", "hint", beta=0.8) == {"basic": pytest.approx(0.8), "hint": pytest.approx(0.2)}


def test_gradient_of_a_hint_is_scaled_to_that_of_the_teachers_flow() -> None:
    objective = build_losses(["basic", "chamfer"], SMALLER, TINY, {"rho": 0.3}, has_truth=False)
    student, batch = network(SMALLER, 1), replace(batch_of(), flow=None)
    with torch.no_grad():
        guide = network()(batch.pc1, batch.pc2)
    found = objective.measure(student(batch.pc1, batch.pc2), guide, batch)
    objective.calibrate(found, student.parameters())
    norms = {}
    for name, term in objective.weigh(found).items():
        gradients = torch.autograd.grad(term, list(student.parameters()), retain_graph=True, allow_unused=True)
        norms[name] = float(torch.cat([g.flatten() for g in gradients if g is not None]).norm())
    assert norms["chamfer"] == pytest.approx(0.3 * norms["basic"], rel=1e-4)


def test_loss_that_needs_no_teacher_trains_without_one() -> None:
    objective = build_losses(["chamfer"], SMALLER, None, has_truth=False)
    assert not objective.needs_teacher
    strategy = PlainStrategy(network(SMALLER, 1), None, objective, weight_decay=0, clip_norm=None)
    batch = replace(batch_of(), flow=None)
    values = [strategy.step(batch, 1e-3)["chamfer"].weighted for _ in range(4)]
    assert values[-1] < values[0]


# --- chamfer ------------------------------------------------------------------------------------------


def test_chamfer_by_hand() -> None:
    pc1 = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    pc2 = torch.tensor([[[0.0, 0.3, 0.4], [3, 0, 0]]])
    flow = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]]])
    batch = replace(UNLABELED, pc1=pc1, pc2=pc2)
    # Moved to x = 0 and 2: squares 0.25 and 1 there, the same back; the flows differ by 1 m, squared 1 at both points.
    options = {"levels": [0]}
    assert float(measure("chamfer", toy([flow] * 4), toy([T] * 4), batch, smoothness=0, **options).value) == (
        pytest.approx(0.02 * 2.5)
    )
    found = measure("chamfer", toy([flow] * 4), toy([T] * 4), batch, smoothness=0.5, **options)
    assert float(found.value) == pytest.approx(0.02 * (2.5 + 0.5 * 2))
    assert float(found.figures["nearest_m"]) == pytest.approx((0.5 + 1 + 0.5 + 1) / 4)
    assert found.unit == "weighted sum of m^2"


def test_chamfer_is_measured_at_the_points_of_each_level() -> None:
    pc1 = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    pc2 = torch.tensor([[[0.0, 0, 0], [1, 2, 0]]])
    zero = torch.zeros(1, 2, 3)
    batch = replace(UNLABELED, pc1=pc1, pc2=pc2)
    # Below level 0, cloud 1 has its first point, and cloud 2 its second one.
    output = toy([zero, zero[:, :1], zero[:, :1], zero[:, :1]])
    own = replace(output, sample_indices2={1: torch.tensor([[1]]), 2: torch.tensor([[0]]), 3: torch.tensor([[0]])})
    # (0, 0, 0) and (1, 2, 0): 5 m^2 there and back. At level 0 the squares are 0 and 1 there, and 0 and 4 back.
    assert float(measure("chamfer", own, own, batch, levels=[1, 2, 3]).value) == pytest.approx(0.28 * 10)
    assert float(measure("chamfer", own, own, batch, levels=[0]).value) == pytest.approx(0.02 * (1 + 4))


# --- confidence ---------------------------------------------------------------------------------------


def test_basic_weighted_by_confidence_by_hand() -> None:
    errors = torch.tensor([[[0.0], [0.1]]])
    guide = replace(toy([T] * 4), backward_errors=[errors] * 4)
    # S and T differ by 0.1 m at both points; the weights are 1 and 1/2; the levels' weights sum up to 0.3.
    found = measure("basic", toy([S] * 4), guide, UNLABELED, confidence_m=0.1)
    assert float(found.value) == pytest.approx(0.3 * (0.1 + 0.05), rel=1e-5)
    assert float(found.figures["confidence"]) == pytest.approx(0.75)
    assert float(measure("basic", toy([S] * 4), guide, UNLABELED).value) == pytest.approx(0.3 * 0.2, rel=1e-5)


def test_teacher_runs_back_only_where_its_confidence_is_used() -> None:
    for options, forwards in (({}, 1), ({"basic": {"confidence_m": 0.1}}, 2)):
        objective = build_losses(["basic"], SMALLER, TINY, options, has_truth=False)
        teacher = Teacher(network())
        strategy = PlainStrategy(network(SMALLER, 1), teacher, objective, weight_decay=0, clip_norm=None)
        strategy.step(replace(batch_of(), flow=None), 1e-3)
        assert (teacher.forwards, teacher.goes_back) == (forwards, forwards == 2)


def test_forward_backward_errors_of_a_teacher_are_those_of_its_two_flows() -> None:
    batch, teacher = batch_of(2), Teacher(network())
    teacher.goes_back = True
    with torch.no_grad():
        found = teacher(batch)
        back = network()(batch.pc2, batch.pc1).flows[0]
    ends = batch.pc1 + found.flows[0]
    distances = torch.cdist(ends, batch.pc2)
    near, rows = distances.topk(3, largest=False)
    weights = 1 / near.clamp_min(1e-10)
    returned = torch.stack([(w[..., None] * flow[r]).sum(1) for w, flow, r in zip(weights, back, rows, strict=True)])
    expected = (found.flows[0] + returned / weights.sum(-1, keepdim=True)).norm(dim=-1)
    torch.testing.assert_close(found.backward_errors[0][..., 0], expected, rtol=1e-3, atol=1e-3)
    first = found.sample_indices1[1]
    torch.testing.assert_close(found.backward_errors[1][..., 0], found.backward_errors[0][..., 0].gather(1, first))
