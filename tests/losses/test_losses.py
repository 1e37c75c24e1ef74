# SPDX-License-Identifier: MIT
"""Hand numbers, and what must hold for every distillation term."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bpfn_cli.errors import NonFiniteError, ShapeError, UsageError
from bpfn_cli.losses import LOSSES, build_losses, supervised_loss
from bpfn_cli.losses.basic import BasicLoss, BasicSettings
from bpfn_cli.losses.supervised import reduce_levels
from bpfn_cli.losses.term import FeatureDistance
from bpfn_cli.models import BASELINE, BiPointFlowNet, build_model, slim
from bpfn_cli.strategies.plain import PlainStrategy
from bpfn_cli.structures import FlowBatch, FlowPyramid

TINY = slim(BASELINE, "tiny", width=0.1, c_mid=2)
SMALLER = slim(BASELINE, "smaller", width=0.05, c_mid=1)
ALL = tuple(LOSSES)


def batch_of(size: int = 1, seed: int = 0, points: int = 1024) -> FlowBatch:
    generator = torch.Generator().manual_seed(seed)
    pc1 = torch.rand(size, points, 3, generator=generator) * 8
    flow = 0.2 * torch.randn(size, points, 3, generator=generator)
    return FlowBatch(pc1, (pc1 + flow).flip(1), flow, tuple(f"scene{i}" for i in range(size)), (None,) * size)


def network(sizes: object = TINY, seed: int = 0) -> BiPointFlowNet:
    torch.manual_seed(seed)
    return build_model(sizes, 1024).eval()  # type: ignore[arg-type]


def toy(flows: list[Tensor], features: list[Tensor] | None = None, order: Tensor | None = None) -> FlowPyramid:
    """An output by hand; levels below 0 take the first points of the level above."""
    points = {level: flow.shape[1] for level, flow in enumerate(flows)}
    indices = {level: torch.arange(points[level]).expand(len(flows[0]), -1) for level in points if level}
    features = features if features is not None else [flow.clone() for flow in flows]
    return FlowPyramid(flows, indices, indices, features, features, features, features, pyramid=object())  # type: ignore[arg-type]


def points(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor([rows])


S = points((0.1, 0, 0), (0, 0.2, 0))
T = points((0, 0, 0), (0, 0.2, 0.1))
G = points((0, 0, 0), (0, 0.1, 0))


def test_points_without_a_known_flow_do_not_count() -> None:
    flows = [S, S[:, :1], S[:, :1], S[:, :1]]
    first, second = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    # Errors of S against G: 0.1, 0.1; the first point is at all levels, the second at level 0 alone.
    for valid, expected in ((None, 0.02 * 0.2 + 0.28 * 0.1), (first, 0.3 * 0.1), (second, 0.02 * 0.1)):
        batch = FlowBatch(S, S, G, ("a",), valid=valid)
        assert float(supervised_loss(toy(flows), batch)) == pytest.approx(expected, rel=1e-5)


def only_level_0(norm: str) -> BasicLoss:
    return BasicLoss(BasicSettings(norm=norm, levels=(0,)), TINY, TINY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    # d = (0.1, 0.1): sums 0.2, 0.02; smooth L1 of 0.1 is 0.005 a point. Level 0 weighs 0.02.
    ("norm", "expected"),
    [("l2", 0.02 * 0.2), ("sq", 0.02 * 0.02), ("smooth_l1", 0.02 * 0.01)],
)
def test_basic_by_hand(norm: str, expected: float) -> None:
    batch = FlowBatch(S, S, G, ("a",))
    assert float(only_level_0(norm)(toy([S]), toy([T]), batch)) == pytest.approx(expected, rel=1e-5)


def test_objective_of_the_toy_is_the_weighted_sum() -> None:
    flows = [S, S, S, S]
    objective = build_losses(["basic"], TINY, TINY, {"gamma": 0.3})
    terms = objective(toy(flows), toy([T, T, T, T]), FlowBatch(S, S, G, ("a",)))
    # Weights 0.02 + 0.04 + 0.08 + 0.16 = 0.3; e = (0.1, 0.1) and d = (0.1, 0.1) at every level.
    assert {name: round(float(value), 6) for name, value in terms.items()} == {
        "supervised": round(0.7 * 0.3 * 0.2, 6),
        "basic": round(0.3 * 0.3 * 0.2, 6),
    }


def test_basic_at_the_teacher_leaves_the_supervised_share() -> None:
    objective = build_losses(["basic"], TINY, TINY, {"gamma": 0.3})
    batch = FlowBatch(S, S, G, ("a",))
    same = toy([T] * 4)
    terms = objective(same, same, batch)
    assert float(terms["basic"]) == 0
    assert float(terms["supervised"]) == pytest.approx(0.7 * float(supervised_loss(same, batch)))


@pytest.mark.parametrize(("gamma", "anchor"), [(0.3, "truth"), (0.7, "teacher")])
def test_minimizer_is_the_truth_below_one_half_and_the_teacher_above(gamma: float, anchor: str) -> None:
    truth, teacher = points((0.0, 0, 0)), points((1.0, 0, 0))
    objective = build_losses(["basic"], TINY, TINY, {"gamma": gamma})

    def loss(x: float) -> float:
        flow = points((x, 0, 0))
        batch = FlowBatch(flow, flow, truth, ("a",))
        return float(sum(objective(toy([flow] * 4), toy([teacher] * 4), batch).values()))  # type: ignore[arg-type]

    assert min((0.0, 0.25, 0.5, 0.75, 1.0), key=loss) == (0.0 if anchor == "truth" else 1.0)


def test_supervised_by_hand() -> None:
    # 4, 3, 2, 1 points off by 1, 2, 3, 4 m along x: 0.02*4 + 0.04*6 + 0.08*6 + 0.16*4 = 1.44.
    flow = torch.zeros(2, 4, 3)
    flow[:, :, 1] = torch.arange(4.0)
    order = {1: torch.tensor([[3, 0, 1], [3, 0, 1]]), 2: torch.tensor([[2, 0], [2, 0]]), 3: torch.tensor([[1], [1]])}
    true = [0.0, 1, 2, 3], [3.0, 0, 1], [1.0, 3], [3.0]
    flows = []
    for level, rows in enumerate(true):
        at_level = torch.zeros(2, len(rows), 3)
        at_level[:, :, 1] = torch.tensor(rows)
        at_level[:, :, 0] = level + 1
        flows.append(at_level)
    output = replace(toy(flows), sample_indices1=order)
    batch = FlowBatch(flow, flow, flow, ("a", "b"))
    assert float(supervised_loss(output, batch)) == pytest.approx(1.44)


def test_reduction_of_an_error_of_3_cm_everywhere() -> None:
    errors = {level: torch.full((2, count), 0.03) for level, count in enumerate((8192, 2048, 512, 256))}
    parts = [float(reduce_levels({level: error})) for level, error in errors.items()]
    assert float(reduce_levels(errors)) == pytest.approx(9.83, abs=0.005)
    assert [round(part / sum(parts), 3) for part in parts] == [0.5, 0.25, 0.125, 0.125]


def distance(norm: str, own: Tensor, other: Tensor) -> Tensor:
    module = FeatureDistance("source", (0,), norm, TINY, TINY)  # type: ignore[arg-type]
    return module(toy([own], [own]), toy([other], [other]))


def test_hint_distance_by_hand() -> None:
    target = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    own = target.clone()
    own[:, :, 2] += 0.6  # one of four channels
    assert float(distance("l1", own, target)) == pytest.approx(0.15, rel=1e-5)
    assert float(distance("l2", own, target)) == pytest.approx(0.09, rel=1e-5)


def test_fvu_is_zero_for_perfect_one_for_the_mean_and_free_of_units() -> None:
    generator = torch.Generator().manual_seed(0)
    own, target = torch.randn(2, 3, 20, 4, generator=generator).unbind()
    value = distance("fvu", own, target)
    assert float(distance("fvu", target, target)) == 0
    mean = target.mean(dim=(0, 1), keepdim=True).expand_as(target)
    assert float(distance("fvu", mean, target)) == pytest.approx(1)
    torch.testing.assert_close(distance("fvu", 7 * own, 7 * target), value)
    torch.testing.assert_close(distance("fvu", own + 5, target + 5), value)


@pytest.mark.parametrize("name", ALL)
def test_c1_term_is_zero_where_student_equals_teacher(name: str) -> None:
    teacher = network()
    student = copy.deepcopy(teacher)
    batch = batch_of()
    with torch.no_grad():
        raw = build_losses([name], TINY, TINY).raw_terms(
            student(batch.pc1, batch.pc2), teacher(batch.pc1, batch.pc2), batch
        )
    assert float(raw[name]) == 0
    assert float(raw["supervised"]) > 0


@pytest.mark.parametrize("name", ALL)
def test_c2_teacher_stays_as_it_is(name: str) -> None:
    teacher, student = network(), network(SMALLER, 1)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    objective = build_losses([name], SMALLER, TINY, {"calibration_step": 0})
    strategy = PlainStrategy(student, teacher, objective, weight_decay=0, clip_norm=None)
    strategy.step(batch_of(), 1e-3)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_c2_no_gradient_flows_into_teacher_outputs(name: str) -> None:
    teacher, student, batch = network(), network(seed=1), batch_of()
    guide = teacher(batch.pc1, batch.pc2)
    raw = build_losses([name], TINY, TINY).raw_terms(student(batch.pc1, batch.pc2), guide, batch)
    raw[name].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", ALL)
def test_c3_value_does_not_depend_on_the_order_or_split_of_samples(name: str) -> None:
    teacher, student, batch = network(), network(seed=1), batch_of(2)
    objective = build_losses([name], TINY, TINY)

    def value(part: slice | list[int]) -> float:
        chosen = replace(batch, pc1=batch.pc1[part], pc2=batch.pc2[part], flow=batch.flow[part])
        with torch.no_grad():
            outputs = (net(chosen.pc1, chosen.pc2) for net in (student, teacher))
            return float(objective.raw_terms(*outputs, chosen)[name])

    both = value(slice(None))
    assert value([1, 0]) == pytest.approx(both, rel=1e-5)
    assert (value([0]) + value([1])) / 2 == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize("norm", ["l1", "l2", "fvu"])
def test_c4_gradient_of_hints(norm: str) -> None:
    own, target = torch.randn(2, 1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    own = own.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distance(norm, x, target), own, eps=1e-6)


@pytest.mark.parametrize("norm", ["l2", "sq", "smooth_l1"])
def test_c4_gradient_of_basic(norm: str) -> None:
    own, target = torch.randn(2, 1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    own = own.clone().requires_grad_()
    term, batch = only_level_0(norm), FlowBatch(target, target, target, ("a",))
    assert torch.autograd.gradcheck(lambda x: term(toy([x]), toy([target]), batch), own, eps=1e-6)


def train_steps(names: list[str], options: dict[str, float], teacher: BiPointFlowNet | None) -> dict[str, Tensor]:
    student = network(SMALLER, 1)
    objective = build_losses(names, SMALLER, TINY if teacher else None, options)
    strategy = PlainStrategy(student, teacher, objective, weight_decay=1e-4, clip_norm=None)
    for step in range(2):
        strategy.step(batch_of(seed=step), 1e-3)
    return {**student.state_dict(), "next draw": torch.rand(4)}


@pytest.mark.parametrize("name", ALL)
def test_c5_weight_zero_is_training_from_scratch_bit_for_bit(name: str) -> None:
    scratch = train_steps(["none"], {}, None)
    distilled = train_steps([name], {"w_gt": 1.0, "w_kd": 0.0, "w_hint": 0.0}, network())
    assert all(torch.equal(scratch[key], distilled[key]) for key in scratch)


@pytest.mark.parametrize("name", ["hint", "bihint"])
@pytest.mark.parametrize("fault", ["missing", "empty", "other shape"])
def test_c6_hint_that_is_missing_is_an_error(name: str, fault: str) -> None:
    batch, model = batch_of(), network()
    with torch.no_grad():
        output = model(batch.pc1, batch.pc2)
    last = output.bfe_source[3]
    broken = {"missing": [], "empty": [last[:, :0]], "other shape": [last[:, :-1]]}[fault]
    features = [*output.bfe_source[:3], *broken]
    with pytest.raises(ShapeError, match="hint source at level 3"):
        build_losses([name], TINY, TINY).raw_terms(replace(output, bfe_source=features), output, batch)


@pytest.mark.parametrize("name", ALL)
def test_c6_different_samples_are_an_error(name: str) -> None:
    model, batch, other = network(), batch_of(), batch_of(seed=5)
    with torch.no_grad():
        outputs = model(batch.pc1, batch.pc2), model(other.pc1, other.pc2)
    outputs[0].sample_indices1[1] = outputs[0].sample_indices1[1].flip(1)
    with pytest.raises(ShapeError, match="different points at level 1"):
        build_losses([name], TINY, TINY).raw_terms(*outputs, batch)


@pytest.mark.parametrize(("name", "reaches"), [("hint", False), ("bihint", True)])
def test_plain_hint_gives_the_target_projection_of_level_0_exactly_no_gradient(name: str, reaches: bool) -> None:
    student, teacher, batch = network(SMALLER, 1), network(), batch_of()
    output = student(batch.pc1, batch.pc2)
    with torch.no_grad():
        guide = teacher(batch.pc1, batch.pc2)
    build_losses([name], SMALLER, TINY).raw_terms(output, guide, batch)[name].backward()
    target, source = student.cross0.cross_t2.weight.grad, student.cross0.cross_t1.weight.grad
    assert source is not None
    assert bool(source.abs().sum() > 0)
    assert (target is not None and bool(target.abs().sum() > 0)) == reaches


def test_bihint_is_the_mean_of_its_branches() -> None:
    student, teacher, batch = network(seed=1), network(), batch_of()
    with torch.no_grad():
        output, guide = student(batch.pc1, batch.pc2), teacher(batch.pc1, batch.pc2)

    def value(name: str, guide: FlowPyramid, **options: object) -> float:
        return float(build_losses([name], TINY, TINY, {name: options}).raw_terms(output, guide, batch)[name])

    plain = value("hint", guide)
    assert value("bihint", guide, branches="src") == pytest.approx(plain)
    exact_target = replace(guide, bfe_target=output.bfe_target)
    assert value("bihint", exact_target) == pytest.approx(plain / 2)
    assert value("hint", exact_target) == plain
    assert value("bihint", exact_target, branches="src+tgt+emb") == pytest.approx(
        (plain + value("hint", guide, feature="embedding")) / 3
    )


def test_adapters_only_where_widths_differ_and_without_a_draw() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    wide = build_losses(["hint", "bihint", "basic"], SMALLER, TINY)
    equal = build_losses(["hint", "bihint"], slim(BASELINE, "x", c_mid=2), BASELINE)
    assert torch.equal(torch.rand(3), expected)
    assert not list(equal.parameters())
    linears = [module for module in wide.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 3 * 4
    assert {(layer.in_features, layer.out_features) for layer in linears} == {
        (SMALLER.levels[level].embedding, TINY.levels[level].embedding) for level in range(4)
    }
    estimator = build_losses(["hint"], SMALLER, TINY, {"hint": {"feature": "estimator"}})
    assert not list(estimator.parameters())  # 64 wide in every variant


def gradient_norm(value: Tensor, model: nn.Module) -> float:
    gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
    return float(torch.stack([g.double().square().sum() for g in gradients if g is not None]).sum().sqrt())


@pytest.mark.parametrize("names", [["hint"], ["bihint"], ["basic", "hint"]])
def test_calibration_gives_the_ratio_of_gradient_norms(names: list[str]) -> None:
    student, teacher, batch = network(SMALLER, 1), network(), batch_of()
    objective = build_losses(names, SMALLER, TINY, {"gamma": 0.4, "rho": 0.25})
    assert not objective.calibrated
    output = student(batch.pc1, batch.pc2)
    with torch.no_grad():
        guide = teacher(batch.pc1, batch.pc2)
    before = objective(output, guide, batch)[names[-1]].detach()
    assert float(before) == 0
    objective.calibrate(objective.raw_terms(output, guide, batch), student.parameters())
    assert objective.calibrated
    terms = objective(output, guide, batch)
    push, base = (gradient_norm(terms[name], student) for name in (names[-1], "supervised"))
    assert push / base == pytest.approx(0.25, rel=1e-4)
    assert "kappas" in objective.state_dict()


def test_calibration_happens_after_warm_up_and_once() -> None:
    objective = build_losses(["hint"], SMALLER, TINY, {"calibration_step": 1})
    strategy = PlainStrategy(network(SMALLER, 1), network(), objective, weight_decay=0, clip_norm=None)
    assert strategy.step(batch_of(), 1e-3)["hint"] == 0
    assert strategy.step(batch_of(), 1e-3)["hint"] > 0
    kappa = float(objective.kappas[0])
    strategy.step(batch_of(seed=1), 1e-3)
    assert float(objective.kappas[0]) == kappa


@pytest.mark.parametrize(
    ("names", "teacher", "options", "expected"),
    [
        (["soft"], TINY, {}, "unknown loss 'soft'"),
        (["basic"], None, {}, "needs a teacher"),
        (["basic"], TINY, {"gama": 0.1}, "did you mean gamma"),
        (["basic"], TINY, {"gamma": 1.5}, "gamma"),
        (["hint"], TINY, {"hint": {"levels": [4]}}, "levels"),
        (["hint"], TINY, {"hint": {"levels": []}}, "levels"),
    ],
)
def test_mistakes_are_refused(names: list[str], teacher: object, options: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        build_losses(names, TINY, teacher, options)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [["hint"], ["bihint"], ["basic", "hint"]])
def test_training_must_be_longer_than_the_wait_for_hints(names: list[str]) -> None:
    objective = build_losses(names, SMALLER, TINY, {"calibration_step": 20})
    for steps in (0, 19, 20):
        with pytest.raises(
            UsageError, match=rf"^{steps} steps of training end .* step 20: lower objective\.calibration"
        ):
            objective.check_length(steps)
    objective.check_length(21)


def test_step_that_the_length_check_asks_for_is_the_first_with_hints() -> None:
    objective = build_losses(["hint"], SMALLER, TINY, {"calibration_step": 1})
    strategy = PlainStrategy(network(SMALLER, 1), network(), objective, weight_decay=0, clip_norm=None)
    with pytest.raises(UsageError):
        objective.check_length(1)
    objective.check_length(2)
    assert [strategy.step(batch_of(), 1e-3)["hint"] > 0 for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("names", "options"),
    [(["none"], {}), (["basic"], {}), (["hint"], {"w_hint": 1.0}), (["hint"], {"gamma": 0.0})],
)
def test_any_length_will_do_without_a_weight_to_wait_for(names: list[str], options: dict[str, float]) -> None:
    build_losses(names, SMALLER, TINY, {"calibration_step": 20, **options}).check_length(1)


def test_length_is_no_matter_once_hints_have_their_weight() -> None:
    objective = build_losses(["hint"], SMALLER, TINY, {"calibration_step": 20})
    objective.calibrated = True
    objective.check_length(1)


def test_scales_name_the_hints_alone() -> None:
    objective = build_losses(["basic", "bihint", "hint"], SMALLER, TINY)
    assert objective.scales() == {"kappa_bihint": 0.0, "kappa_hint": 0.0}
    objective.kappas[:] = torch.tensor([0.5, 2.0])
    assert objective.scales() == {"kappa_bihint": 0.5, "kappa_hint": 2.0}
    assert [objective.weight(name) for name in ("bihint", "hint")] == [pytest.approx(0.15), pytest.approx(0.6)]
    assert build_losses(["basic"], SMALLER, TINY).scales() == build_losses(["none"], TINY).scales() == {}
    assert build_losses(["hint"], SMALLER, TINY, {"w_hint": 4.0}).scales() == {"kappa_hint": 1.0}
    assert build_losses(["hint"], SMALLER, TINY, {"w_hint": 4.0}).weight("hint") == 4


@pytest.mark.parametrize("names", [["hint"], ["bihint"], ["basic", "hint"]])
def test_hints_cannot_be_scaled_by_a_supervised_loss_of_weight_zero(names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"objective\.w_gt 0 leaves nothing to scale hints by; give objective\.w_hint"):
        build_losses(names, SMALLER, TINY, {"w_gt": 0.0})
    build_losses(names, SMALLER, TINY, {"w_gt": 0.0, "w_hint": 1.0})
    build_losses(names, SMALLER, TINY, {"w_gt": 0.1})
    build_losses(["basic"], SMALLER, TINY, {"w_gt": 0.0})


def test_gamma_1_leaves_nothing_to_scale_hints_by_either() -> None:
    with pytest.raises(UsageError, match="leaves nothing to scale hints by"):
        build_losses(["basic", "hint"], SMALLER, TINY, {"gamma": 1.0})


def poison_truth(batch: FlowBatch, student: BiPointFlowNet) -> FlowBatch:
    flow = batch.flow.clone()
    flow[0, 0, 0] = torch.nan
    return replace(batch, flow=flow)


def poison_gradient(batch: FlowBatch, student: BiPointFlowNet) -> FlowBatch:
    student.flow0.fc.weight.register_hook(lambda gradient: gradient * torch.nan)
    return batch


@pytest.mark.parametrize(
    ("poison", "expected"), [(poison_truth, "term supervised is nan"), (poison_gradient, "the gradient is nan")]
)
def test_step_that_is_not_finite_changes_nothing_and_names_the_samples(
    poison: Callable[[FlowBatch, BiPointFlowNet], FlowBatch], expected: str
) -> None:
    student = network(replace(SMALLER, bn=True), 1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    strategy = PlainStrategy(student, None, build_losses(["none"], SMALLER), weight_decay=1e-4, clip_norm=1.0)
    with pytest.raises(NonFiniteError, match=f"{expected} for the samples scene0"):
        strategy.step(poison(batch_of(), student), 1e-3)
    assert strategy.steps == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in student.state_dict().items())


def test_step_uses_the_given_learning_rate() -> None:
    """Adam's first step moves every weight with a clear gradient by the learning rate."""
    student = network(SMALLER, 1)
    before = student.flow0.fc.bias.detach().clone()
    strategy = PlainStrategy(student, None, build_losses(["none"], SMALLER), weight_decay=0, clip_norm=None)
    strategy.step(batch_of(), 0.0125)
    torch.testing.assert_close((student.flow0.fc.bias - before).abs(), torch.full((3,), 0.0125), rtol=1e-3, atol=0)


def test_disabled_distillation_names_only_the_supervised_term() -> None:
    objective = build_losses(["none"], TINY)
    output = network()(batch_of().pc1, batch_of().pc2)
    terms = objective(output, None, batch_of())
    assert list(terms) == ["supervised"]
    assert float(terms["supervised"]) == pytest.approx(float(supervised_loss(output, batch_of())))
