# SPDX-License-Identifier: MIT
"""How terms are weighted, scaled and switched."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import SMALLER, TINY, TOY_BATCH, G, S, T, batch_of, gradient_norm, network, outputs, points, toy

from bpfn_cli.errors import ShapeError, UsageError
from bpfn_cli.losses import LOSSES, Card, DistillationLoss, Measured, build_losses, supervised_loss
from bpfn_cli.losses.objective import gradient_norm as measured_norm
from bpfn_cli.losses.objective import used_options
from bpfn_cli.models import BASELINE, slim
from bpfn_cli.strategies import PlainStrategy, Teacher
from bpfn_cli.structures import FlowBatch, FlowPyramid


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


@pytest.mark.parametrize("names", [["hint"], ["bihint"], ["basic", "hint"]])
def test_calibration_gives_the_ratio_of_gradient_norms(names: list[str]) -> None:
    student, teacher, batch = network(SMALLER, 1), network(), batch_of()
    objective = build_losses(names, SMALLER, TINY, {"gamma": 0.4, "rho": 0.25})
    assert not objective.calibrated
    output = student(batch.pc1, batch.pc2)
    with torch.no_grad():
        guide = teacher(batch.pc1, batch.pc2)
    assert float(objective(output, guide, batch)[names[-1]].detach()) > 0  # kappa 1, where nobody waits for it
    objective.await_calibration()
    assert float(objective(output, guide, batch)[names[-1]].detach()) == 0
    objective.calibrate(objective.measure(output, guide, batch), student.parameters())
    assert objective.calibrated
    terms = objective(output, guide, batch)
    push, base = (gradient_norm(terms[name], student) for name in (names[-1], "supervised"))
    assert push / base == pytest.approx(0.25, rel=1e-4)
    assert "kappas" in objective.state_dict()


def test_calibration_happens_after_warm_up_and_once() -> None:
    objective = build_losses(["hint"], SMALLER, TINY, {"calibration_step": 1})
    strategy = PlainStrategy(network(SMALLER, 1), Teacher(network()), objective, weight_decay=0, clip_norm=None)
    assert strategy.step(batch_of(), 1e-3)["hint"].weighted == 0
    assert strategy.step(batch_of(), 1e-3)["hint"].weighted > 0
    kappa = float(objective.kappas[0])
    strategy.step(batch_of(seed=1), 1e-3)
    assert float(objective.kappas[0]) == kappa


@pytest.mark.parametrize(("every", "changes"), [(0, [0]), (2, [0, 2, 4])])
def test_kappa_is_set_again_on_its_calendar_and_by_a_bounded_factor(every: int, changes: list[int]) -> None:
    options = {"calibration_step": 0, "recalibrate_every": every, "hint": {"norm": "l2"}}
    objective = build_losses(["hint"], SMALLER, TINY, options)
    student = network(SMALLER, 1)
    strategy = PlainStrategy(student, Teacher(network()), objective, weight_decay=0, clip_norm=None, accumulate=2)
    found = []
    for seed in range(5):
        if seed == 4:  # a kappa that is off by more than the factor comes back in steps
            objective.kappas *= 100
            before = float(objective.kappas[0])
        strategy.step(batch_of(2, seed), 1e-3)
        found.append(int(objective.calibration) - 1)
    assert sorted(set(found)) == changes
    assert float(objective.kappas[0]) == pytest.approx(before / 4 if every else before)
    if every:
        restored = build_losses(["hint"], SMALLER, TINY, options)
        restored.load_state_dict(objective.state_dict())
        assert [restored.is_due(step) for step in (5, 6)] == [False, True]


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
            UsageError, match=rf"^the training ends after {steps} steps, .* step 20: lower objective\.calibration"
        ):
            objective.check_length(steps)
    objective.check_length(21)


def test_step_that_the_length_check_asks_for_is_the_first_with_hints() -> None:
    objective = build_losses(["hint"], SMALLER, TINY, {"calibration_step": 1})
    strategy = PlainStrategy(network(SMALLER, 1), Teacher(network()), objective, weight_decay=0, clip_norm=None)
    with pytest.raises(UsageError):
        objective.check_length(1)
    objective.check_length(2)
    assert [strategy.step(batch_of(), 1e-3)["hint"].weighted > 0 for _ in range(2)] == [False, True]


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
    assert objective.scales() == {"kappa_bihint": 1.0, "kappa_hint": 1.0}
    objective.kappas[:] = torch.tensor([0.5, 2.0])
    assert objective.scales() == {"kappa_bihint": 0.5, "kappa_hint": 2.0}
    assert [objective.weight(name) for name in ("bihint", "hint")] == [pytest.approx(0.15), pytest.approx(0.6)]
    assert build_losses(["basic"], SMALLER, TINY).scales() == build_losses(["none"], TINY).scales() == {}
    assert build_losses(["hint"], SMALLER, TINY, {"w_hint": 4.0}).scales() == {"kappa_hint": 1.0}
    assert build_losses(["hint"], SMALLER, TINY, {"w_hint": 4.0}).weight("hint") == 4


@pytest.mark.parametrize("names", [["hint"], ["bihint"], ["basic", "hint"]])
def test_hints_cannot_be_scaled_by_a_supervised_loss_of_weight_zero(names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"objective\.w_gt 0 leaves nothing to scale hints by; set objective\.w_hint"):
        build_losses(names, SMALLER, TINY, {"w_gt": 0.0})
    build_losses(names, SMALLER, TINY, {"w_gt": 0.0, "w_hint": 1.0})
    build_losses(names, SMALLER, TINY, {"w_gt": 0.1})
    build_losses(["basic"], SMALLER, TINY, {"w_gt": 0.0})


def test_gamma_1_leaves_nothing_to_scale_hints_by_either() -> None:
    with pytest.raises(UsageError, match="leaves nothing to scale hints by"):
        build_losses(["basic", "hint"], SMALLER, TINY, {"gamma": 1.0})


def test_disabled_distillation_names_only_the_supervised_term() -> None:
    objective = build_losses(["none"], TINY)
    output = network()(batch_of().pc1, batch_of().pc2)
    terms = objective(output, None, batch_of())
    assert list(terms) == ["supervised"]
    assert float(terms["supervised"].detach()) == pytest.approx(float(supervised_loss(output, batch_of()).detach()))


def test_beta_is_the_share_that_hints_leave_and_goes_with_the_teacher() -> None:
    objective = build_losses(["basic", "bihint"], TINY, TINY, {"gamma": 0.3, "beta": 0.8})
    assert objective.calibrated
    names = ("supervised", "basic", "bihint")
    assert [objective.weight(name) for name in names] == pytest.approx([0.56, 0.24, 0.2])
    objective.teacher_share = 0.5
    assert [objective.weight(name) for name in names] == pytest.approx([0.765, 0.135, 0.1])
    objective.teacher_share = 0.0
    assert objective.weight("supervised") == 1
    two = build_losses(["hint", "bihint"], TINY, TINY, {"beta": 0.8})
    assert [two.weight(name) for name in ("supervised", "hint", "bihint")] == pytest.approx([0.8, 0.1, 0.1])


def test_beta_without_hints_or_with_weights_of_ones_own_is_refused() -> None:
    with pytest.raises(UsageError, match=r"objective\.beta: none of the losses is a hint"):
        build_losses(["basic"], TINY, TINY, {"beta": 0.8})
    with pytest.raises(UsageError, match=r"objective\.beta sets all weights; remove objective\.w_gt"):
        build_losses(["hint"], TINY, TINY, {"beta": 0.8, "w_hint": 1.0})


# --- what a training switches ---


def test_teacher_share_takes_gamma_away_and_at_0_the_teacher_is_not_looked_at() -> None:
    objective = build_losses(["basic", "hint"], TINY, TINY, {"gamma": 0.4})
    objective.teacher_share = 0.5
    assert [objective.weight(name) for name in ("supervised", "basic", "hint")] == pytest.approx([0.8, 0.2, 0.2])
    assert objective.needs_teacher
    objective.teacher_share = 0.0
    assert not objective.needs_teacher
    assert objective.weight("supervised") == 1
    output = toy([S] * 4)
    assert list(objective(output, None, TOY_BATCH)) == ["supervised"]


def test_weights_of_ones_own_go_with_the_teacher_too() -> None:
    objective = build_losses(["basic", "hint"], TINY, TINY, {"w_gt": 0.9, "w_kd": 0.5, "w_hint": 2.0})
    objective.teacher_share = 0.5
    assert [objective.weight(name) for name in ("supervised", "basic", "hint")] == [0.9, 0.25, 1.0]


def test_first_stage_is_of_hints_alone_and_kappa_waits_for_its_end() -> None:
    objective = build_losses(["basic", "hint", "bihint"], TINY, TINY, {"stage1_epochs": 2, "calibration_step": 0})
    objective.begin_epoch(1, 5)
    assert [objective.weight(name) for name in ("supervised", "basic", "hint", "bihint")] == [0, 0, 0.5, 0.5]
    assert not objective.is_due(10)
    objective.begin_epoch(2, 5)
    assert objective.weight("supervised") == pytest.approx(0.7)
    assert objective.is_due(10)


def test_first_stage_is_of_hints_that_need_no_teacher_too() -> None:
    objective = build_losses(["chamfer"], TINY, None, {"stage1_epochs": 2, "calibration_step": 0})
    objective.begin_epoch(0, 5)
    assert [objective.weight(name) for name in ("supervised", "chamfer")] == [0, 1]


def test_small_gradients_in_float16_are_measured() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    value = parameter.half().float().sum() * 1e-8  # below the smallest number in float16, 6e-8
    assert measured_norm(value, [parameter]) == pytest.approx(1e-8, rel=1e-2)
    assert measured_norm(parameter.half().float().sum() * 1e3, [parameter]) == 1e3  # scaled, it overflows
    assert measured_norm(3 * parameter.square().sum(), [parameter]) == 12


def test_several_output_losses_share_gamma() -> None:
    objective = build_losses(["basic", "ail", "weighted"], TINY, TINY, {"gamma": 0.3})
    weights = [objective.weight(name) for name in ("supervised", "basic", "ail", "weighted")]
    assert weights == pytest.approx([0.7, 0.1, 0.1, 0.1])


def test_first_stage_that_never_ends_is_refused_and_needs_a_teacher() -> None:
    objective = build_losses(["hint"], TINY, TINY, {"stage1_epochs": 5, "calibration_step": 0})
    with pytest.raises(UsageError, match=r"objective\.stage1_epochs 5: all 5 epochs would train on hints only"):
        objective.check_length(100, 5)
    objective.check_length(100, 6)
    objective.begin_epoch(0, 6)
    objective.teacher_share = 0.0
    assert objective.weight("supervised") == 1


def test_level_that_stands_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="duplicate level"):
        build_losses(["hint"], TINY, TINY, {"hint": {"levels": [0, 0]}})


def test_first_stage_without_a_hint_is_refused() -> None:
    with pytest.raises(UsageError, match=r"objective\.stage1_epochs: none of the losses is a hint"):
        build_losses(["basic"], TINY, TINY, {"stage1_epochs": 1})


def test_options_of_losses_that_are_not_used_are_left_out() -> None:
    objective = build_losses(["hint", "gan-compression"], TINY, TINY, {"gan-compression": {"lambda_critic": 0.5}})
    tree = used_options(["hint", "gan-compression"], objective.options)
    assert {"gamma", "hint", "gan_compression"} <= tree.keys()
    assert not {"basic", "bihint", "own"} & tree.keys()
    assert tree["gan_compression"]["lambda_critic"] == 0.5


def test_every_pair_of_losses_sums_up() -> None:
    own, other, batch = outputs()
    objective = build_losses(LOSSES, SMALLER, TINY)
    terms = objective(own, other, batch)
    assert list(terms) == ["supervised", *LOSSES]
    for name in LOSSES:
        alone = build_losses([name], SMALLER, TINY).measure(own, other, batch)[name].value
        if not any(True for _ in build_losses([name], SMALLER, TINY).parameters()):  # no layers with random weights
            assert float(objective.measure(own, other, batch)[name].value) == float(alone)


# --- a loss of one's own ---


class Own(DistillationLoss):
    """Mean difference of the finest flows."""

    card = Card(compares="finest flows", formula="mean |s - t|", source="this test")

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> torch.Tensor:
        return (student.flows[0] - teacher.flows[0]).abs().mean()


class CannotBegin(Own):
    def __init__(self, options: object, student: object, teacher: object):
        raise RuntimeError("no such layer")


class Numbers(Own):
    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:  # type: ignore[override]
        nan = torch.tensor(float("nan"))
        return Measured(super().forward(student, teacher, batch), active=nan, figures={"raw": 0.5, "bad": nan})  # type: ignore[dict-item]


class Vector(Own):
    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> torch.Tensor:
        return student.flows[0] - teacher.flows[0]


class Broken(Own):
    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> torch.Tensor:
        return student.flow - teacher.flow


class Forgotten(DistillationLoss):
    card = Own.card


class Silent(DistillationLoss):
    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> torch.Tensor:
        return student.flows[0].mean()


class TwoArguments(Own):
    def forward(self, student: FlowPyramid, teacher: FlowPyramid) -> torch.Tensor:  # type: ignore[override]
        return student.flows[0].mean()


not_a_loss = 3


def test_loss_of_ones_own_is_a_term_like_others() -> None:
    objective = build_losses([f"{__name__}:Own", "basic"], TINY, TINY)
    terms = objective(toy([S] * 4), toy([T] * 4), TOY_BATCH)
    assert float(terms[f"{__name__}:Own"]) == pytest.approx(0.3 * 0.2 / 6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("basic+hint", r"unknown loss 'basic\+hint'; repeat --loss to sum losses"),
        ("my_losses.py:Loss", r"write the module without \.py: my_losses:Loss"),
        ("no_such_module:Loss", "no module no_such_module here or among the installed packages"),
        ("Own:", "write module:Class"),
        ("os.path:join", "join is not a valid loss: it is a function, not a class"),
        ("{here}:not_a_loss", "it is not a valid loss: it is of type int, not a class"),
        ("{here}:Missing", "has no Missing"),
        ("collections:OrderedDict", "does not derive from bpfn_cli.losses.DistillationLoss"),
        ("{here}:Forgotten", "it has no forward"),
        ("{here}:Silent", "it has no card"),
        ("{here}:TwoArguments", r"its forward takes \(self, student, teacher\), not \(self, student, teacher, batch\)"),
    ],
)
def test_what_is_not_a_loss_is_refused(name: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        build_losses([name.format(here=__name__)], TINY, TINY)


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("Vector", ShapeError, r"loss .*:Vector returned \(1, 2, 3\), not a scalar"),
        ("Broken", UsageError, r"loss .*:Broken failed: AttributeError: .* \(.*test_objective\.py, line \d+\)"),
    ],
)
def test_loss_of_ones_own_that_fails_is_told_in_a_line(name: str, error: type[Exception], expected: str) -> None:
    objective = build_losses([f"{__name__}:{name}"], TINY, TINY)
    with pytest.raises(error, match=expected):
        objective(toy([S] * 4), toy([T] * 4), TOY_BATCH)


def test_loss_of_ones_own_that_cannot_begin_is_told_in_a_line() -> None:
    with pytest.raises(UsageError, match=r"loss .*:CannotBegin failed: RuntimeError: no such layer \(.*line \d+\)"):
        build_losses([f"{__name__}:CannotBegin"], TINY, TINY)


def test_figures_of_ones_own_may_be_numbers_and_nan_is_left_out() -> None:
    name = f"{__name__}:Numbers"
    objective = build_losses([name], SMALLER, TINY, {"calibration_step": 0})
    strategy = PlainStrategy(network(SMALLER, 1), Teacher(network()), objective, weight_decay=0, clip_norm=None)
    term = strategy.step(batch_of(), 1e-3)[name]
    assert (term.active, term.figures) == (None, {"raw": 0.5})


class Deaf(Own):
    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> torch.Tensor:
        return (student.flows[0].detach() - teacher.flows[0]).abs().mean()


def test_loss_that_does_not_depend_on_the_student_is_found_in_the_rehearsal() -> None:
    name = f"{__name__}:Deaf"
    objective = build_losses([name], SMALLER, TINY)
    strategy = PlainStrategy(network(SMALLER, 1), Teacher(network()), objective, weight_decay=0, clip_norm=None)
    with pytest.raises(UsageError, match=r"loss .*:Deaf does not depend on the student"):
        strategy.trial_step(batch_of(), 1e-3)
