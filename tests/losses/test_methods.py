# SPDX-License-Identifier: MIT
"""Each loss with numbers calculated by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import POINTS, SMALLER, TINY, TOY_BATCH, G, S, T, batch_of, measure, network, objective, outputs, toy, value

from bpfn_cli.errors import UsageError
from bpfn_cli.losses import build_losses, supervised_loss
from bpfn_cli.losses.feature.mobilebert import attention_distance, attention_logits
from bpfn_cli.losses.features import FeatureDistance, Norm, Reduction
from bpfn_cli.losses.imitability import phi
from bpfn_cli.losses.relation.pairwise import similarities
from bpfn_cli.losses.relation.rkd import angles, pair_distances
from bpfn_cli.losses.response.adversarial import AdversarialSettings, Adversary, Critic, gradient_penalty
from bpfn_cli.losses.response.bounded import gates
from bpfn_cli.losses.response.localization import (
    distribution_focal_loss,
    expectation,
    residual_truth,
    shifted,
    softened_divergence,
)
from bpfn_cli.losses.response.weighted import class_weights
from bpfn_cli.losses.supervised import measured
from bpfn_cli.losses.term import total
from bpfn_cli.models import BASELINE, slim
from bpfn_cli.ops import motion_residual, rigid_motion
from bpfn_cli.structures import FlowBatch, FlowPyramid


def own_and_teacher(name: str, **options: object) -> float:
    return value(name, toy([S] * 4), toy([T] * 4), TOY_BATCH, **options)  # type: ignore[arg-type]


# --- basic ---


@pytest.mark.parametrize(
    # d = (0.1, 0.1): sums 0.2, 0.02; smooth L1 of 0.1 is 0.005 a point. Level 0 weighs 0.02.
    ("norm", "expected"),
    [("l2", 0.02 * 0.2), ("sq", 0.02 * 0.02), ("smooth_l1", 0.02 * 0.01)],
)
def test_basic_by_hand(norm: str, expected: float) -> None:
    assert own_and_teacher("basic", norm=norm, levels=[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["basic", "ail", "weighted"])
def test_target_is_the_teachers_finest_flow_or_that_of_the_level(name: str) -> None:
    # The finest flow of the teacher is T; its coarser flow of one point errs by 1 m. The student's is G everywhere.
    own, other = toy([G, G[:, :1]]), toy([T, G[:, :1] + torch.tensor([1.0, 0.0, 0.0])])
    batch = FlowBatch(S, S, G, ("a",))
    options = {"levels": [1], "eta": "batch"} if name == "ail" else {"levels": [1]}
    flows = {"flows": [*own.flows, G[:, :1], G[:, :1]]}, {"flows": [*other.flows, *other.flows[1:] * 2]}
    indices = {level: torch.zeros(1, 1, dtype=torch.long) for level in (1, 2, 3)}
    own, other = (replace(x, **y, sample_indices1=indices) for x, y in zip((own, other), flows, strict=True))
    assert value(name, own, other, batch, **options) == pytest.approx(0.04 * 0.0, abs=1e-9)  # T is exact at point 0
    if name != "ail":  # whose weight of the worst error is 0
        assert value(name, own, other, batch, target="level", **options) == pytest.approx(0.04 * 1.0)


# --- hints ---


def hint_value(norm: Norm, own: Tensor, other: Tensor) -> float:
    module = FeatureDistance("embedding", (0,), norm, TINY, TINY)
    return float(total(module(toy([own]), toy([other]))))


def test_hint_distance_by_hand() -> None:
    target = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    own = target.clone()
    own[:, :, 2] += 0.6  # one of four channels
    assert hint_value("l1", own, target) == pytest.approx(0.15, rel=1e-5)
    assert hint_value("l2", own, target) == pytest.approx(0.09, rel=1e-5)


def test_fvu_is_zero_for_perfect_one_for_the_mean_and_free_of_units() -> None:
    generator = torch.Generator().manual_seed(0)
    own, target = torch.randn(2, 3, 20, 4, generator=generator).unbind()
    apart = hint_value("fvu", own, target)
    assert hint_value("fvu", target, target) == 0
    mean = target.mean(dim=(0, 1), keepdim=True).expand_as(target)
    assert hint_value("fvu", mean, target) == pytest.approx(1)
    assert hint_value("fvu", 7 * own, 7 * target) == pytest.approx(apart, rel=1e-5)
    assert hint_value("fvu", own + 5, target + 5) == pytest.approx(apart, rel=1e-4)


@cache
def outputs_of(first: int, end: int) -> tuple[FlowPyramid, FlowPyramid]:
    """Of student and teacher, for some of three samples."""
    part = batch_of(3).of_samples(first, end)
    with torch.no_grad():
        return network(SMALLER, 1)(part.pc1, part.pc2), network()(part.pc1, part.pc2)


@pytest.mark.parametrize("reduction", get_args(Reduction))
@pytest.mark.parametrize("name", ["hint", "bihint", "bridge"])
def test_hint_of_a_batch_is_the_mean_over_its_parts(name: str, reduction: Reduction) -> None:
    """As a step adds up the gradients of parts that are computed one after another, or by several processes."""
    torch.manual_seed(2)
    losses = build_losses([name], SMALLER, TINY, {name: {"reduction": reduction}})
    batch = batch_of(3)

    def found(part: FlowBatch) -> float:
        first = batch.names.index(part.names[0])
        with torch.no_grad():
            return float(losses.measure(*outputs_of(first, first + len(part.names)), part)[name].value)

    in_two_processes = [replace(batch.of_samples(0, 1), whole=3), replace(batch.of_samples(1, 3), first=1, whole=3)]
    for parts in (batch.parts(2), in_two_processes, in_two_processes[1].parts(2) + in_two_processes[:1]):
        mean = sum(found(part) * len(part.names) for part in parts) / 3
        assert mean == pytest.approx(found(batch), rel=1e-4)


def test_reductions_of_a_hint_by_hand() -> None:
    # Two levels of 2 and 1 points with 3 channels that differ by 2 everywhere; the first expanded feature of TINY has
    # 2 x 2 x 6 elements.
    own = toy([torch.zeros(2, points, 3) for points in (2, 1)], [torch.ones(2, points, 3) for points in (2, 1)])
    other = toy(own.flows, [torch.full((2, points, 3), 3.0) for points in (2, 1)])

    def distance(norm: Norm, reduction: Reduction) -> float:
        module = FeatureDistance("encoder_source", (0, 1), norm, TINY, TINY, reduction=reduction)
        return float(total(module(own, other)))

    assert TINY.levels[0].expanded == 6
    assert [distance(norm, "mean") for norm in ("l1", "l2", "half_l2")] == [2, 4, 2]
    assert [distance(norm, "sum") for norm in ("l1", "l2", "half_l2")] == [36, 72, 36]
    assert distance("half_l2", "numel") == pytest.approx(36 / 24)
    with pytest.raises(UsageError, match="norm fvu is a fraction and has no reduction sum"):
        FeatureDistance("source", (0,), "fvu", TINY, TINY, reduction="sum")


@pytest.mark.parametrize("name", ["hint", "bihint", "aht", "gan-compression", "mobilebert"])
def test_levels_count_equally_whatever_the_size_of_their_features(name: str) -> None:
    own, guide, batch = outputs(TINY)

    def larger(output: FlowPyramid) -> FlowPyramid:
        fields = {
            field: [tensor * 10**level for level, tensor in enumerate(getattr(output, field))]
            for field in ("bfe_source", "bfe_target")
        }
        return replace(output, **fields)  # type: ignore[arg-type]

    options = {"lambda_critic": 0.0} if name == "gan-compression" else {}
    plain = value(name, own, guide, batch, TINY, **options)
    assert value(name, larger(own), larger(guide), batch, TINY, **options) == pytest.approx(plain, rel=1e-4)


def test_relative_distance_by_hand() -> None:
    # Values 0, 2 of two points: spread 1 in l1 and l2. The student is off by 0.5.
    other = toy([torch.zeros(1, 2, 3)], [torch.tensor([[[0.0], [2.0]]])])
    own = toy(other.flows, [other.bfe_embedding[0] + 0.5])
    for norm, expected in (("l1", 0.5), ("l2", 0.25), ("half_l2", 0.25)):
        module = FeatureDistance("embedding", (0,), norm, TINY, TINY, reduction="relative")  # type: ignore[arg-type]
        module.adapters.clear()
        assert float(total(module(own, other))) == pytest.approx(expected)


def test_hints_reach_the_encoder_alone() -> None:
    student, teacher, batch = network(SMALLER, 1), network(), batch_of()
    output = student(batch.pc1, batch.pc2)
    with torch.no_grad():
        guide = teacher(batch.pc1, batch.pc2)
    measure("bihint", output, guide, batch, branches="encoder", levels=[3]).value.backward()
    reached = {name.partition(".")[0] for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert reached == {"level0", "level0_1", "level0_2", "level1", "level1_0", "level1_1"} | {
        "level2", "level2_0", "level2_1", "level3", "level3_0", "level3_1"
    }  # fmt: skip


# --- both ways ---


@pytest.mark.parametrize(("name", "reaches"), [("hint", False), ("bihint", True)])
def test_plain_hint_gives_the_target_projection_of_level_0_exactly_no_gradient(name: str, reaches: bool) -> None:
    student, teacher, batch = network(SMALLER, 1), network(), batch_of()
    output = student(batch.pc1, batch.pc2)
    with torch.no_grad():
        guide = teacher(batch.pc1, batch.pc2)
    measure(name, output, guide, batch).value.backward()
    target, source = student.cross0.cross_t2.weight.grad, student.cross0.cross_t1.weight.grad
    assert source is not None
    assert bool(source.abs().sum() > 0)
    assert (target is not None and bool(target.abs().sum() > 0)) == reaches


def test_bihint_is_the_mean_of_its_branches() -> None:
    own, guide, batch = outputs(TINY)
    plain = value("hint", own, guide, batch, TINY)
    assert value("bihint", own, guide, batch, TINY, branches="src") == pytest.approx(plain)
    exact_target = replace(guide, bfe_target=own.bfe_target)
    assert value("bihint", own, exact_target, batch, TINY) == pytest.approx(plain / 2)
    assert value("hint", own, exact_target, batch, TINY) == plain
    assert value("bihint", own, exact_target, batch, TINY, branches="src+tgt+emb") == pytest.approx(
        (plain + value("hint", own, guide, batch, TINY, feature="embedding")) / 3
    )


def test_bihint_is_the_same_whatever_the_order_of_target_points() -> None:
    own, guide, batch = outputs(TINY)

    def turned(output: FlowPyramid) -> FlowPyramid:
        return replace(output, bfe_target=[x.flip(1) for x in output.bfe_target])

    expected = value("bihint", own, guide, batch, TINY)
    assert value("bihint", turned(own), turned(guide), batch, TINY) == pytest.approx(expected, rel=1e-6)


# --- bridge ---


@pytest.mark.parametrize("mix", [False, True])
def test_bridge_is_a_fixed_projection_unless_it_is_trained(mix: bool) -> None:
    own, guide, batch = outputs(SMALLER)
    fixed, trained = (objective("bridge", mix=mix, trained=trained) for trained in (False, True))
    assert fixed.adapters() == []
    assert len(trained.adapters()) == (4 if mix else 2)
    for one in (fixed, trained):
        feature = own.encoder_source[3].clone().requires_grad_()
        one.measure(replace(own, encoder_source=[*own.encoder_source[:3], feature]), guide, batch)[
            "bridge"
        ].value.backward()
        assert feature.grad is not None and bool(feature.grad.abs().sum() > 0)
    assert all(parameter.grad is not None for parameter in trained.adapters())
    restored = objective("bridge", mix=mix)
    for parameter in restored.parameters():
        parameter.data.fill_(0)
    restored.load_state_dict(fixed.state_dict())
    assert float(restored.measure(own, guide, batch)["bridge"].value) == pytest.approx(
        float(fixed.measure(own, guide, batch)["bridge"].value)
    )


def test_a_side_of_the_bridge_depends_on_the_other_cloud_only_through_the_mix() -> None:
    _, guide, _ = outputs(SMALLER)
    turned = replace(guide, encoder_target=[x.flip(1) for x in guide.encoder_target])
    for mix in (False, True):
        term = objective("bridge", mix=mix).terms[0]
        one, other = (term._through_bridge(output).encoder_source[3] for output in (guide, turned))
        assert torch.equal(one, other) != mix


# --- attention by the teacher's error ---


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("paper", [0.75, 0.375, -0.25]), ("minmax", [1.0, 0.625, 0.0]), ("p95", [0.8, 0.5, 0.0])],
)
def test_phi_by_hand(kind: str, expected: list[float]) -> None:
    errors = torch.tensor([0.02, 0.05, 0.10])
    found = phi(errors, kind, errors.min(), errors.max(), errors.max())
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["paper", "minmax", "p95"])
def test_phi_is_1_where_the_teacher_errs_the_same_everywhere(kind: str) -> None:
    errors = torch.full((4,), 0.03)
    assert phi(errors, kind, errors.min(), errors.max(), errors.max()).tolist() == [1, 1, 1, 1]


def test_one_outlier_makes_the_papers_phi_1_everywhere_and_not_that_of_the_quantile() -> None:
    errors = torch.cat([torch.linspace(0.01, 0.1, 99), torch.tensor([1000.0])])
    least, greatest, q95 = errors.min(), errors.max(), errors.sort().values[95]
    assert float(phi(errors, "paper", least, greatest, q95)[:99].min()) > 0.999
    assert float(phi(errors, "p95", least, greatest, q95)[:99].min()) < 0.05


def test_attentive_losses_with_phi_1_are_the_plain_ones() -> None:
    own, guide, batch = outputs(TINY)
    constant = replace(batch, flow=torch.zeros_like(batch.flow))
    still = replace(guide, flows=[torch.full_like(flow, 0.1) for flow in guide.flows])  # the same error everywhere
    assert value("ail", own, still, constant, TINY) == pytest.approx(value("basic", own, still, constant, TINY))
    assert value("aht", own, still, constant, TINY) == pytest.approx(value("hint", own, still, constant, TINY))


@pytest.mark.parametrize("granularity", ["point", "sample"])
def test_spread_is_that_of_the_training_scenes(granularity: str) -> None:
    teacher = network()
    batches = [batch_of(2, seed=seed) for seed in (1, 2)]

    def passes() -> object:
        with torch.no_grad():
            return iter([(teacher(batch.pc1, batch.pc2), batch) for batch in batches])

    one = objective("ail", TINY, granularity=granularity, phi="minmax")
    assert one.terms[0].needs_preparation()
    one.prepare(passes)  # type: ignore[arg-type]
    assert not one.terms[0].needs_preparation()
    errors = torch.cat([torch.linalg.vector_norm(o.flows[0] - b.flow, dim=-1) for o, b in passes()])  # type: ignore[attr-defined]
    expected = errors if granularity == "point" else errors.square().mean(dim=1)
    least, greatest, q95 = one.terms[0].imitability.spread[0].tolist()
    assert (least, greatest) == (pytest.approx(float(expected.min())), pytest.approx(float(expected.max())))
    assert least < q95 <= greatest
    # Saved with the objective, so that a training that goes on does not look again.
    other = objective("ail", TINY, granularity=granularity, phi="minmax")
    other.load_state_dict(one.state_dict())
    assert not other.terms[0].needs_preparation()


def test_weight_of_a_batch_is_that_of_the_reports() -> None:
    teacher, batches = network(), [batch_of(2, seed=seed) for seed in (1, 2, 3)]
    with torch.no_grad():
        seen = [(teacher(batch.pc1, batch.pc2), batch) for batch in batches]
    one = objective("ail", TINY, granularity="batch", phi="paper")
    one.prepare(lambda: iter(seen))
    errors = [float(supervised_loss(output, batch)) for output, batch in seen]
    own, (guide, batch) = network(TINY, 1)(batches[0].pc1, batches[0].pc2), seen[0]
    weight = 1 - errors[0] / (max(errors) - min(errors))
    plain = value("basic", own, guide, batch, TINY)
    assert float(one.measure(own, guide, batch)["ail"].value.detach()) == pytest.approx(weight * plain, rel=1e-5)


def test_ail_divides_phi_by_its_mean_over_the_training_scenes_but_not_that_of_the_paper() -> None:
    own, guide, batch = outputs(TINY)
    for kind in ("minmax", "p95", "paper"):
        one = objective("ail", TINY, phi=kind, levels=[0])
        one.prepare(lambda: iter([(guide, batch)]))
        weights = one.terms[0].imitability(guide, batch)[0]
        mean = 1.0 if kind == "paper" else float(weights.mean())
        expected = 0.02 * (weights / mean * (own.flows[0] - guide.flows[0]).norm(dim=-1)).sum(dim=1).mean()
        found = one.measure(own, guide, batch)["ail"].value.detach()
        assert float(found) == pytest.approx(float(expected), rel=0.02)  # the mean is that of every other point


def test_quantiles_of_phi_are_logged_and_no_gradient_goes_through_it() -> None:
    own, guide, batch = outputs(TINY)
    found = measure("ail", own, guide, batch, TINY)
    quantiles = [float(found.figures[f"phi_q{name}"]) for name in ("05", "50", "95")]
    assert quantiles == sorted(quantiles)
    assert 0 <= quantiles[0] < quantiles[2] <= 1
    trained = replace(guide, flows=[flow.clone().requires_grad_() for flow in guide.flows])
    weights = objective("ail", TINY).terms[0].imitability(trained, batch)
    assert not any(weight.requires_grad for weight in weights.values())


def test_attention_is_0_where_the_true_flow_is_unknown() -> None:
    own, guide, batch = outputs(TINY)
    valid = torch.zeros(batch.flow.shape[:2], dtype=torch.bool)
    assert value("ail", own, guide, replace(batch, valid=valid), TINY) == 0


# --- the teacher as a bound ---


@pytest.mark.parametrize(
    # e_s = (0.1, 0.1), e_t = (0, 0.1414): squares 0.01 against 0 and 0.02.
    ("gate", "m", "expected"),
    [
        ("squared", 0.0, [True, False]),
        ("squared", 0.02, [True, True]),
        ("epe", 0.0, [True, False]),
        ("epe", 0.05, [True, True]),
        ("epe", 0.02, [True, False]),
    ],
)
def test_gates_by_hand(gate: str, m: float, expected: list[bool]) -> None:
    own, other = (torch.linalg.vector_norm(x - G, dim=-1) for x in (S, T))
    assert gates(own, other, gate, m)[0].tolist() == expected


@pytest.mark.parametrize(("m", "mean"), [(0.0, 0.005), (0.02, 0.010), (1e6, 0.010)])
def test_bounded_by_hand(m: float, mean: float) -> None:
    # Level 0 weighs 0.02 and sums two points.
    found = measure("bounded", toy([S] * 4), toy([T] * 4), TOY_BATCH, mode="gt", m=m, levels=[0])
    assert float(found.value) == pytest.approx(0.02 * 2 * mean, rel=1e-5)
    assert found.active is not None
    assert float(found.active) == (0.5 if m == 0 else 1.0)


def test_bounded_by_a_margin_without_end_is_the_squared_loss() -> None:
    own, guide, batch = outputs(TINY)
    squares = {
        level: torch.linalg.vector_norm(own.flows[level] - truth, dim=-1).square()
        for level, truth in enumerate(truths(own, batch))
    }
    found = value("bounded", own, guide, batch, TINY, mode="gt", m=1e9)
    assert found == pytest.approx(float(measured(squares).value), rel=1e-5)


def truths(output: FlowPyramid, batch: FlowBatch) -> list[Tensor]:
    found = [batch.flow]
    for level in (1, 2, 3):
        index = output.sample_indices1[level][..., None].expand(-1, -1, 3)
        found.append(found[-1].gather(1, index))
    return found


@pytest.mark.parametrize("mode", ["imitate", "gt"])
def test_bounded_gives_no_gradient_where_the_gate_is_shut(mode: str) -> None:
    flow = S.clone().requires_grad_()
    measure("bounded", toy([flow] * 4, [S] * 4), toy([T] * 4), TOY_BATCH, mode=mode, levels=[0]).value.backward()
    assert flow.grad is not None
    assert bool(flow.grad[0, 0].abs().sum() > 0)
    assert flow.grad[0, 1].tolist() == [0, 0, 0]


def test_bounded_imitates_the_teacher() -> None:
    # Only the first point passes; there ||s - t|| = 0.1.
    assert own_and_teacher("bounded", levels=[0]) == pytest.approx(0.02 * 0.1, rel=1e-5)


def test_bounded_by_a_perfect_teacher_is_active_wherever_the_student_errs() -> None:
    own = torch.cat([S, G], dim=1)
    batch = FlowBatch(own, own, torch.cat([G, G], dim=1), ("a",))
    found = measure("bounded", toy([own] * 4), toy([batch.flow] * 4), batch)
    assert found.active is not None
    assert float(found.active) == 0.5


# --- classes of motion ---


def test_class_weights_by_hand() -> None:
    moving = torch.zeros(1, 10, dtype=torch.bool)
    moving[0, 3] = True
    free = class_weights(moving, clip=(0, 100))[0]
    assert float(free[3]) == pytest.approx(5)
    assert float(free[0]) == pytest.approx(0.5556, abs=1e-4)
    assert float(free.sum()) == pytest.approx(10)
    known = torch.ones(1, 10, dtype=torch.bool)
    known[0, 5:] = False  # one of five that count moves
    some = class_weights(moving, known, clip=(0, 100))[0]
    assert some.tolist() == pytest.approx([0.625, 0.625, 0.625, 2.5, 0.625, 0, 0, 0, 0, 0])
    clipped = class_weights(torch.nn.functional.one_hot(torch.tensor([0]), 100).bool())[0]
    assert float(clipped.sum()) == pytest.approx(100)
    assert float(clipped[0] / clipped[1]) == pytest.approx(5 / 0.50505, rel=1e-3)  # 50 is cut to 5


def test_class_weights_of_one_class_or_of_two_equal_ones_are_1() -> None:
    moving = torch.tensor([[True, False] * 4, [True] * 8, [False] * 8])
    assert class_weights(moving).tolist() == [[1.0] * 8] * 3


def rotation(angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])


def test_rigid_motion_is_found_and_leaves_no_residual() -> None:
    points = torch.rand(2, 200, 3, generator=torch.Generator().manual_seed(0)) * 20
    flow = points @ rotation(0.1).T + torch.tensor([0.5, -0.2, 1.0]) - points
    turn, shift = rigid_motion(points.double(), flow.double())
    assert torch.allclose(turn.float(), rotation(0.1).expand(2, 3, 3), atol=1e-5)
    assert torch.allclose(shift[:, 0].float(), torch.tensor([0.5, -0.2, 1.0]).expand(2, 3), atol=1e-4)
    assert float(motion_residual(points, flow).max()) < 1e-5
    assert torch.allclose(torch.linalg.det(turn), torch.ones(2, dtype=torch.float64))


def test_objects_that_move_do_not_bend_the_motion_of_the_camera() -> None:
    points = torch.rand(1, 1000, 3, generator=torch.Generator().manual_seed(0)) * 20
    flow = points @ rotation(0.05).T + torch.tensor([0.3, 0.0, 0.5]) - points
    flow[:, :300] += torch.tensor([0.4, 0.1, -0.3])
    residual = motion_residual(points, flow)[0]
    assert float(residual[300:].max()) < 1e-3
    assert float((residual[:300] - math.sqrt(0.26)).abs().max()) < 1e-3


def test_weighted_is_basic_in_a_scene_that_only_the_camera_moves_through() -> None:
    own, guide, batch = outputs(TINY)
    still = replace(batch, flow=torch.tensor([0.1, 0, 0.2]).expand_as(batch.flow).contiguous())
    assert value("weighted", own, guide, still, TINY) == pytest.approx(value("basic", own, guide, still, TINY))
    half = still.flow.clone()
    half[:, :100] += 1.0
    moving = replace(batch, flow=half)
    found = measure("weighted", own, guide, moving, TINY)
    assert float(found.figures["moving_share"]) == pytest.approx(100 / POINTS)
    assert float(found.value) != pytest.approx(value("basic", own, guide, moving, TINY), rel=1e-3)


def test_fixed_class_weights_by_hand() -> None:
    # The first 100 points move; the student is off by 0.1 m everywhere, at level 0 with weight 0.02.
    _, guide, batch = outputs(TINY)
    flow = torch.zeros_like(batch.flow)
    flow[:, :100] += 1.0
    off = torch.tensor([0.1, 0.0, 0.0])
    own = replace(guide, flows=[each + off for each in guide.flows])

    def weighted(**options: float) -> float:
        return value("weighted", own, guide, replace(batch, flow=flow), TINY, levels=[0], **options) / 0.002

    assert weighted(w_moving=3.0, w_still=0.5) == pytest.approx(3 * 100 + 0.5 * (POINTS - 100), rel=1e-4)
    assert weighted(w_still=1.5) == pytest.approx(100 + 1.5 * (POINTS - 100), rel=1e-4)
    assert weighted(w_moving=1.0, w_still=1.0) == pytest.approx(POINTS, rel=1e-4)


# --- relations ---

X = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
Y = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])


def test_relations_of_two_triangles_by_hand() -> None:
    # Distances 1, 1, sqrt 2 and 2, 1, sqrt 5: means 1.138 and 1.745.
    assert float(pair_distances(X)[0, 0, 1]) == pytest.approx(1 / 1.138071, rel=1e-5)
    assert float(pair_distances(Y)[0, 0, 1]) == pytest.approx(2 / 1.745356, rel=1e-5)
    distance = F.huber_loss(pair_distances(X), pair_distances(Y))
    assert float(distance) == pytest.approx(0.018484, abs=1e-6)
    assert float(distance) * 9 / 6 == pytest.approx(0.027727, abs=1e-6)  # over the three pairs
    assert float(F.huber_loss(angles(X), angles(Y))) == pytest.approx(0.0038012, abs=1e-7)


def test_relations_are_the_same_for_a_flow_that_is_scaled_turned_and_shifted() -> None:
    own, guide, batch = outputs(TINY)
    same = [3 * flow @ rotation(0.7).T + 2 for flow in guide.flows]
    assert value("rkd", replace(guide, flows=same), guide, batch, TINY) < 1e-9
    assert value("rkd", own, guide, batch, TINY) > 1e-4


def test_relations_of_coinciding_points_have_a_finite_gradient() -> None:
    x = torch.zeros(1, 5, 3)
    x[0, 3:] = 0.5
    x.requires_grad_()
    (pair_distances(x).square().sum() + angles(x).sum()).backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_relations_need_no_adapter_between_features_of_other_widths() -> None:
    own, guide, batch = outputs(SMALLER)
    assert value("rkd", own, guide, batch, of="source", level=1) > 0
    assert not list(objective("rkd", of="source").parameters())


# --- localization ---


def test_distribution_focal_loss_by_hand() -> None:
    reach = torch.tensor(0.16)
    assert float(distribution_focal_loss(torch.zeros(1, 33), torch.tensor([0.033]), reach)) == pytest.approx(
        math.log(33)
    )
    # 3 bins at -1, 0, 1: 0.25 lies a quarter of the way from the second to the third.
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    log_p = logits.log_softmax(dim=-1)[0]
    found = distribution_focal_loss(logits, torch.tensor([0.25]), torch.tensor(1.0))
    assert float(found) == pytest.approx(-0.75 * float(log_p[1]) - 0.25 * float(log_p[2]), rel=1e-6)
    beyond = distribution_focal_loss(logits, torch.tensor([7.0]), torch.tensor(1.0))
    assert float(beyond) == pytest.approx(-float(log_p[2]), rel=1e-6)


def test_expectation_of_one_bin_is_its_center_and_logits_may_be_shifted() -> None:
    logits = torch.full((3, 5), -1e4)
    for row, bin in enumerate((0, 2, 4)):
        logits[row, bin] = 0
    assert expectation(logits, torch.tensor(0.2)).tolist() == pytest.approx([-0.2, 0.0, 0.2])
    own, other = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    plain = softened_divergence(own, other, 10.0)
    assert torch.allclose(softened_divergence(own + 3, other - 2, 10.0), plain, atol=1e-5)


def test_softened_divergence_by_hand() -> None:
    found = softened_divergence(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]]), 10.0)
    assert float(found) == pytest.approx(0.4626, abs=5e-5)


def test_distribution_moves_along_its_bins() -> None:
    # Bins at -0.2, -0.1, 0, 0.1, 0.2: a shift of 0.1 moves all by one bin, one of 0.05 by half.
    logits, reach = torch.tensor([[1.0, 5.0, 2.0, 0.0, 3.0]]), torch.tensor(0.2)
    assert shifted(logits, torch.tensor([0.1]), reach)[0].tolist() == pytest.approx([1, 1, 5, 2, 0], abs=1e-5)
    assert shifted(logits, torch.tensor([-0.1]), reach)[0].tolist() == pytest.approx([5, 2, 0, 3, 3], abs=1e-5)
    assert shifted(logits, torch.tensor([0.05]), reach)[0].tolist() == pytest.approx([1, 3, 3.5, 1, 1.5], abs=1e-5)


def test_localization_compares_distributions_of_the_same_flow() -> None:
    # The teacher adds a residual of 0.1 to a coarse flow that exceeds the student's by 0.05: 0.15 for the student.
    own, guide, batch = outputs(TINY)
    one = objective("localization", TINY, levels=[2], bins=5)
    term = one.terms[0]
    term.reaches.fill_(0.2)
    term.fitted.fill_(True)
    for heads, logits in ((term.teacher_heads, [0.0, 0, 0, 4, 0]), (term.own_heads, [0.0, 0, 0, 2, 2])):
        torch.nn.init.zeros_(heads["2"].weight)
        heads["2"].bias.data.copy_(torch.tensor(logits).repeat(3))
    flows = [torch.full_like(flow, 0.3) for flow in guide.flows]
    teacher = replace(guide, flows=flows)
    student = replace(own, flows=[flow - 0.05 for flow in flows])
    assert float(one.measure(student, teacher, batch)["localization"].figures["divergence"]) == pytest.approx(
        0, abs=1e-4
    )
    assert float(one.measure(teacher, teacher, batch)["localization"].figures["divergence"]) > 0.5


def test_residual_truth_is_what_is_missing_from_the_coarser_flow() -> None:
    own, _, batch = outputs(TINY)
    with_pyramid, without = residual_truth(own, batch), residual_truth(replace(own, pyramid=None), batch)
    for one, other in zip(with_pyramid, without, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    truth = truths(own, batch)
    assert torch.equal(with_pyramid[3], truth[3])
    assert not torch.allclose(with_pyramid[0], truth[0])


def test_heads_of_the_teacher_are_fitted_and_those_of_the_student_learn_later() -> None:
    teacher, batches = network(), [batch_of(seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        seen = [(teacher(batch.pc1, batch.pc2), batch) for batch in batches]

    def passes() -> object:
        return iter(seen)

    one = objective("localization", TINY, head_epochs=20)
    term = one.terms[0]
    own, drawn = [
        {k: v.clone() for k, v in heads.state_dict().items()} for heads in (term.own_heads, term.teacher_heads)
    ]
    (output, batch), *_ = passes()  # type: ignore[misc]
    term.reaches.copy_(term._reaches_of(output, batch))
    before = sum(float(part) for part in term._focal(term.teacher_heads, output, batch, term.reaches).values())
    one.prepare(passes)  # type: ignore[arg-type]
    after = sum(float(part) for part in term._focal(term.teacher_heads, output, batch, term.reaches).values())
    assert after < before - 0.1
    assert all(torch.equal(own[k], v) for k, v in term.own_heads.state_dict().items())
    assert not all(torch.equal(drawn[k], v) for k, v in term.teacher_heads.state_dict().items())
    assert not any(parameter.requires_grad for parameter in term.teacher_heads.parameters())
    assert {id(p) for p in one.adapters()} == {id(p) for p in term.own_heads.parameters()}


# --- structure ---


def test_pairwise_by_hand() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    y = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    apart = (similarities(x, True) - similarities(y, True)).square().mean()
    assert float(apart) == pytest.approx(2 / 9, rel=1e-6)


def test_pairwise_does_not_see_the_length_of_features() -> None:
    own, guide, batch = outputs(SMALLER)
    generator = torch.Generator().manual_seed(0)
    lengths = [1 + torch.rand(*x.shape[:2], 1, generator=generator) for x in own.bfe_source]
    longer = replace(own, bfe_source=[x * a for x, a in zip(own.bfe_source, lengths, strict=True)])
    assert value("pairwise", longer, guide, batch) == pytest.approx(value("pairwise", own, guide, batch), rel=1e-4)


def test_critic_is_the_same_whatever_the_order_of_points() -> None:
    torch.manual_seed(0)
    critic, points, flow = Critic(), torch.rand(2, 9, 3), torch.rand(2, 9, 3)
    order = torch.randperm(9)
    assert torch.allclose(critic(points, flow), critic(points[:, order], flow[:, order]), atol=1e-6)


class Slope(nn.Module):
    """D(x) = slope <w, x> with ||w|| = 1."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, points: Tensor, flow: Tensor) -> Tensor:
        return self.slope * flow.flatten(1).sum(dim=1) / math.sqrt(flow[0].numel())


@pytest.mark.parametrize(("slope", "penalty"), [(1.0, 0.0), (3.0, 4.0), (0.0, 1.0)])
def test_gradient_penalty_by_hand(slope: float, penalty: float) -> None:
    found = gradient_penalty(Slope(slope), torch.rand(2, 4, 3), torch.rand(2, 4, 3))
    assert float(found.detach()) == pytest.approx(penalty, abs=1e-6)


def test_critic_is_fixed_in_the_students_step_and_learns_in_its_own() -> None:
    own, guide, batch = outputs(TINY)
    one = objective("adversarial", TINY)
    critic = one.terms[0].adversary.critic
    before = [parameter.clone() for parameter in critic.parameters()]
    flow = own.flows[0].clone().requires_grad_()
    one.measure(replace(own, flows=[flow, *own.flows[1:]]), guide, batch)["adversarial"].value.backward()
    assert flow.grad is not None
    assert bool(flow.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert one.adapters() == []
    one.before_step(own, guide, batch)
    assert not all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_critic_learns_to_tell_student_from_teacher() -> None:
    own, guide, batch = outputs(TINY)
    torch.manual_seed(0)
    adversary = Adversary(AdversarialSettings(lr=1e-3, rescale=False))
    for _ in range(60):
        adversary.learn(own, guide, batch)
    assert float(adversary.score(guide, batch).mean()) > float(adversary.score(own, batch).mean()) + 0.01


def test_push_of_the_critic_has_norm_1_whatever_its_slope() -> None:
    own, _, batch = outputs(TINY, size=2)
    torch.manual_seed(0)
    adversary = Adversary(AdversarialSettings())
    for steepness in (1.0, 50.0):
        with torch.no_grad():
            adversary.critic.score.weight *= steepness
        flow = own.flows[0].clone().requires_grad_()
        adversary.score(replace(own, flows=[flow, *own.flows[1:]]), batch).sum().backward()
        assert flow.grad is not None
        assert flow.grad.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)


def test_critic_takes_the_truth_as_real_where_it_is_known() -> None:
    own, guide, batch = outputs(TINY)
    half = torch.arange(POINTS)[None] < POINTS // 2
    mixed = replace(guide, flows=[torch.where(half[..., None], batch.flow, guide.flows[0]), *guide.flows[1:]])
    weights = []
    for real, teacher in (("truth", guide), ("teacher", mixed), ("teacher", guide)):
        torch.manual_seed(0)
        adversary = Adversary(AdversarialSettings(real=real))
        adversary.learn(own, teacher, replace(batch, valid=half))
        weights.append(adversary.critic.per_point[0].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_critic_goes_on_where_it_was() -> None:
    own, guide, batch = outputs(TINY)
    one, other = objective("adversarial", TINY), objective("adversarial", TINY)
    one.before_step(own, guide, batch)
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.before_step(own, guide, batch)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# --- GAN compression ---


def test_adapters_of_gan_compression_are_always_there_and_get_gradients() -> None:
    own, guide, batch = outputs(TINY)
    one = objective("gan-compression", TINY)
    one.measure(own, guide, batch)["gan-compression"].value.backward()
    assert len(one.adapters()) == 8
    assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in one.adapters())
    hint = value("hint", own, guide, batch, TINY, norm="l2")
    assert value("gan-compression", own, guide, batch, TINY, lambda_critic=0.0) == pytest.approx(0.01 * hint)


# --- MobileBERT ---


def test_attention_sums_to_1_and_a_constant_in_all_targets_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 1, 6, 4, generator=generator)
    neighbors = torch.tensor([[[i, (i + 1) % 6, (i + 3) % 6] for i in range(6)]])
    logits = attention_logits(source, target, neighbors)
    assert torch.allclose(logits.softmax(dim=-1).sum(-1), torch.ones(1, 6))
    # <u1, u2> / sqrt(4) by hand for the first point and its second neighbor.
    assert float(logits[0, 0, 1]) == pytest.approx(float(source[0, 0] @ target[0, 1]) / 2, rel=1e-5)
    shifted = attention_logits(source, target + torch.tensor([1.0, -2.0, 0.5, 3.0]), neighbors)
    assert float(attention_distance(shifted, logits)) == pytest.approx(0, abs=1e-6)


def test_attention_is_over_the_teachers_neighbors() -> None:
    own, guide, batch = outputs(TINY)
    moved = replace(guide, bfe_neighbors=[n.roll(1, dims=1) for n in guide.bfe_neighbors])
    other = replace(own, bfe_neighbors=[])
    expected = value("mobilebert", own, guide, batch, TINY)
    assert value("mobilebert", other, guide, batch, TINY) == expected
    assert value("mobilebert", own, moved, batch, TINY) != expected


def test_levels_are_unlocked_from_the_coarsest_and_locked_ones_give_no_gradient() -> None:
    own, guide, batch = outputs(TINY)
    one = objective("mobilebert", TINY, progressive=2)
    unlocked = []
    for epoch in range(8):
        one.begin_epoch(epoch, 8)
        unlocked.append(one.terms[0].unlocked)
    assert unlocked == [(3,), (3,), (3, 2), (3, 2), (3, 2, 1), (3, 2, 1), (3, 2, 1, 0), (3, 2, 1, 0)]
    one.begin_epoch(2, 8)
    features = [x.clone().requires_grad_() for x in own.bfe_source]
    one.measure(replace(own, bfe_source=features), guide, batch)["mobilebert"].value.backward()
    assert [x.grad is not None for x in features] == [False, False, True, True]


# --- what leaves with the student ---


@pytest.mark.parametrize("name", ["hint", "bihint", "gan-compression", "localization"])
def test_adapters_are_no_part_of_the_student(name: str) -> None:
    student = network(SMALLER, 1)
    one = objective(name)
    assert list(one.adapters())
    own = {id(parameter) for parameter in student.parameters()}
    assert not own & {id(parameter) for parameter in one.parameters()}


def test_loss_of_the_toy_by_hand_with_gamma() -> None:
    output, guide = toy([S] * 4), toy([T] * 4)
    terms = build_losses(["basic"], slim(BASELINE, "x", c_mid=2), BASELINE, {"gamma": 0.3})(output, guide, TOY_BATCH)
    assert float(terms["supervised"]) == pytest.approx(0.7 * float(supervised_loss(output, TOY_BATCH)))
    assert float(terms["basic"]) == pytest.approx(0.3 * 0.3 * 0.2, rel=1e-5)
