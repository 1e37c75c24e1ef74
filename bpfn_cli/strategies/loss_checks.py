# SPDX-License-Identifier: MIT
"""The checks of `bpfn losses --check`: identities on a pair of networks, and values calculated by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bpfn_cli.errors import ShapeError
from bpfn_cli.losses import DistillationLoss, Objective, build_losses, loss_named
from bpfn_cli.losses.objective import option_key
from bpfn_cli.losses.term import USUAL_FIELDS
from bpfn_cli.models import BiPointFlowNet, Variant, build_model
from bpfn_cli.strategies.base import PlainStrategy
from bpfn_cli.strategies.gradient_checks import ERRORS_M, Course, States, course_of
from bpfn_cli.strategies.teacher import Teacher
from bpfn_cli.structures import VALUE_FIELDS, FlowBatch, FlowPyramid

EPSILON = 1e-8  # of a central difference; small because absolute values have kinks
LARGEST_FACTOR = 2.0  # between the share of a loss in the gradient and its aim
LARGEST_COSINE = 0.9  # between the gradients with a teacher and with a shuffled one

Outcome = tuple[bool | None, str]


@dataclass(frozen=True)
class Check:
    """A check of a loss; `passed` is None if it does not apply, for the reason in `detail`."""

    loss: str
    name: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Pair:
    """Two networks, a batch of random scenes, and the outputs: `own` of the student, `other` of the teacher."""

    student: BiPointFlowNet
    teacher: BiPointFlowNet
    batch: FlowBatch
    own: FlowPyramid
    other: FlowPyramid

    @classmethod
    def build(cls, student: Variant | BiPointFlowNet, teacher: Variant | BiPointFlowNet) -> Pair:
        """A variant becomes a network with random weights."""
        own, other = (_network(network, seed).eval() for seed, network in enumerate((student, teacher)))
        batch = random_batch(2, max(network.variant.least_points for network in (own, other)))
        with torch.no_grad():
            own.encoder_features = other.encoder_features = True
            output = own(batch.pc1, batch.pc2)
            return cls(own, other, batch, output, other(batch.pc1, batch.pc2, pyramid=output.pyramid))

    @cached_property
    def states(self) -> States:
        """The student at several errors, on a scene whose points move farther."""
        return States(self.student, self.teacher, random_batch(1, self.batch.pc1.shape[1], speed_m=1.0))


def _network(network: Variant | BiPointFlowNet, seed: int) -> BiPointFlowNet:
    if not isinstance(network, Variant):
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(network, network.least_points)


def random_batch(size: int, points: int, speed_m: float = 0.2) -> FlowBatch:
    """Points in a cube of 8 m, half of them static and half moving, by `speed_m` in each coordinate."""
    generator = torch.Generator().manual_seed(0)
    pc1 = torch.rand(size, points, 3, generator=generator) * 8
    flow = speed_m * torch.randn(size, points, 3, generator=generator)
    flow[:, : points // 2] = 0
    names = tuple(f"scene{index}" for index in range(size))
    return FlowBatch(pc1, (pc1 + flow).flip(1), flow, names, (None,) * size)


def check_losses(names: Iterable[str], pair: Pair) -> Iterator[Check]:
    """Run all checks of the named losses."""
    for name in names:
        for what, check in IDENTITIES.items():
            try:
                yield Check(name, what, *check(name, pair))
            except Exception as error:  # a user's loss may raise anything
                yield Check(name, what, False, f"{type(error).__name__}: {error}")
        yield from _check_gradients(name, pair)
        yield from _check_hand_values(name)


def _check_gradients(name: str, pair: Pair) -> Iterator[Check]:
    """The share of the loss in the gradient, and the teacher's part in it, while the student's error falls."""
    share, part = "share of the gradient", "teacher's part of it"
    try:
        found = course_of(name, pair.states)
    except Exception as error:  # as above
        yield from (Check(name, what, False, f"{type(error).__name__}: {error}") for what in (share, part))
        return
    errors = f"at errors of {', '.join(f'{error:g}' for error in ERRORS_M)} m"
    shares, cosines = (", ".join(f"{x:.2f}" for x in figures) for figures in (found.shares, found.cosines))
    yield Check(name, share, keeps_share(found), f"{shares} of the supervised one {errors}; aim {found.aim:.2f}")
    if not loss_named(name).needs_teacher:
        yield Check(name, part, None, "it needs no teacher")
        return
    yield Check(name, part, needs_teacher(found), f"cosine {cosines} with that of a shuffled teacher, {errors}")


def keeps_share(found: Course) -> bool:
    """Whether a loss keeps its share of the gradient as the student improves."""
    return all(found.aim / LARGEST_FACTOR <= share <= found.aim * LARGEST_FACTOR for share in found.shares)


def needs_teacher(found: Course) -> bool:
    """Whether most of a loss's gradient comes from the teacher."""
    return all(cosine < LARGEST_COSINE for cosine in found.cosines)


def _check_hand_values(name: str) -> Iterator[Check]:
    try:
        with torch.random.fork_rng(devices=[]):
            values = list(loss_named(name).hand_values())
    except Exception as error:  # as above
        yield Check(name, "hand-computed values", False, f"{type(error).__name__}: {error}")
        return
    for what, computed, expected in values:
        passed = math.isclose(computed, expected, rel_tol=1e-4, abs_tol=1e-9)
        yield Check(name, what, passed, f"{computed:.6g}, by hand {expected:.6g}")


def _objective(name: str, pair: Pair, **options: object) -> Objective:
    """An objective of one loss, with kappa 1."""
    own = {option_key(name): options} if options else {}
    return build_losses([name], pair.student.variant, pair.teacher.variant, own)


def _term(objective: Objective) -> DistillationLoss:
    (_, term), *_ = objective.items()
    return term


def _value(objective: Objective, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> Tensor:
    return objective.measure(own, other, batch)[objective.names[0]].value


def _number(objective: Objective, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> float:
    return float(_value(objective, own, other, batch).detach())


def _zero_at_the_teacher(name: str, pair: Pair) -> Outcome:
    card = loss_named(name).card
    if card.never_zero:
        return None, card.never_zero
    variant = pair.teacher.variant
    value = _number(build_losses([name], variant, variant), pair.other, pair.other, pair.batch)
    return value == 0, f"{value:.3g} if the student equals the teacher"


def _teacher_unchanged(name: str, pair: Pair) -> Outcome:
    student, teacher = copy.deepcopy(pair.student), copy.deepcopy(pair.teacher)
    before = copy.deepcopy(teacher.state_dict())
    objective, batch = _objective(name, pair), pair.batch
    _value(objective, student(batch.pc1, batch.pc2), teacher(batch.pc1, batch.pc2), batch).backward()
    has_gradient = any(parameter.grad is not None for parameter in teacher.parameters())
    PlainStrategy(student, Teacher(teacher), objective, weight_decay=0, clip_norm=None).step(batch, 1e-3)
    is_changed = any(not torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    return not has_gradient and not is_changed, "no gradient, no change after a step"


def _order_and_split(name: str, pair: Pair) -> Outcome:
    objective, batch = _objective(name, pair), pair.batch

    def value(rows: list[int]) -> float:
        part = replace(batch, pc1=batch.pc1[rows], pc2=batch.pc2[rows], flow=batch.truth[rows])
        return _number(objective, _samples(pair.own, rows), _samples(pair.other, rows), part)

    both, swapped, halves = value([0, 1]), value([1, 0]), (value([0]) + value([1])) / 2
    passed, note = math.isclose(both, swapped, rel_tol=1e-4, abs_tol=1e-7), ""
    if _term(objective).needs_preparation():
        note = " (before training the batch is compared with itself)"
    else:
        passed = passed and math.isclose(both, halves, rel_tol=1e-4, abs_tol=1e-7)
    return passed, f"{both:.6g}; other order {swapped:.6g}; halves {halves:.6g}{note}"


def _samples(output: FlowPyramid, rows: list[int]) -> FlowPyramid:
    """Some samples of an output, without its pyramid."""
    names = "sample_indices1", "sample_indices2"
    fields: dict[str, Any] = {name: {i: x[rows] for i, x in getattr(output, name).items()} for name in names}
    fields["bfe_neighbors"] = [tensor[rows] for tensor in output.bfe_neighbors]
    return replace(output.mapped(lambda level, tensor: tensor[rows]), pyramid=None, **fields)


def _gradient(name: str, pair: Pair) -> Outcome:
    """Compare the derivative in a random direction with a central difference, in float64. The direction moves those
    outputs of the student that get a gradient."""
    objective = _objective(name, pair, **loss_named(name).exact_gradient_options).double()
    exact = (output.mapped(lambda level, tensor: tensor.double()) for output in (pair.own, pair.other))
    own, other = (replace(output, pyramid=None) for output in exact)
    batch = replace(
        pair.batch, pc1=pair.batch.pc1.double(), pc2=pair.batch.pc2.double(), flow=pair.batch.truth.double()
    )
    leaves = [tensor.requires_grad_() for field in VALUE_FIELDS for tensor in getattr(own, field)]
    gradients = torch.autograd.grad(_value(objective, own, other, batch), leaves, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        return False, "no gradient reaches the student"
    generator = torch.Generator().manual_seed(0)
    directions = [
        torch.zeros(()) if gradient is None else torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        for gradient in gradients
    ]
    pairs = zip(gradients, directions, strict=True)
    derivative = sum(float((gradient * direction).sum()) for gradient, direction in pairs if gradient is not None)

    def along(step: float) -> float:
        moved = iter([leaf + step * direction for leaf, direction in zip(leaves, directions, strict=True)])
        fields: dict[str, Any] = {field: [next(moved) for _ in getattr(own, field)] for field in VALUE_FIELDS}
        return _number(objective, replace(own, **fields), other, batch)

    with torch.no_grad():
        difference = (along(EPSILON) - along(-EPSILON)) / (2 * EPSILON)
    passed = math.isclose(derivative, difference, rel_tol=1e-4, abs_tol=1e-6)
    return passed, f"derivative {derivative:.6g}, difference {difference:.6g}"


def _scratch_at_weight_zero(name: str, pair: Pair) -> Outcome:
    scratch = _after_a_step(pair, "none", {})
    distilled = _after_a_step(pair, name, {"w_gt": 1.0, "w_kd": 0.0, "w_hint": 0.0})
    return all(torch.equal(scratch[key], distilled[key]) for key in scratch), "weights and next random number"


def _after_a_step(pair: Pair, name: str, options: dict[str, float]) -> dict[str, Tensor]:
    student, teacher = copy.deepcopy(pair.student), copy.deepcopy(pair.teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = build_losses([name], student.variant, teacher.variant, options)
        strategy = PlainStrategy(student, Teacher(teacher), objective, weight_decay=1e-4, clip_norm=None)
        strategy.step(pair.batch, 1e-3)
        return {**student.state_dict(), "next draw": torch.rand(4)}


def _missing_hint_raises(name: str, pair: Pair) -> Outcome:
    """Remove each field that the loss reads in turn; if it does not say which, all at once."""
    objective = _objective(name, pair)
    _value(objective, pair.own, pair.other, pair.batch)  # a loss that fails on complete outputs proves nothing here
    reads = _term(objective).reads()
    fields = sorted(reads & set(VALUE_FIELDS))
    if not reads:
        return None, "it reads nothing of the teacher"
    for missing in [fields] if reads == set(USUAL_FIELDS) else [[field] for field in fields]:
        without: dict[str, Any] = {field: [] for field in missing}
        try:
            _value(objective, pair.own, replace(pair.other, **without), pair.batch)
        except ShapeError:
            continue
        except IndexError:
            return False, f"an IndexError without {', '.join(missing)}, not a ShapeError that names the hint"
        return False, f"a value without {', '.join(missing)}, as if nothing were missing"
    return True, f"without {', '.join(fields)}"


def _uses_the_teacher(name: str, pair: Pair) -> Outcome:
    objective = _objective(name, pair)
    if not _term(objective).needs_teacher:
        return None, "it needs no teacher"
    if type(_term(objective)).before_step is not DistillationLoss.before_step:
        return None, "through a part that it trains itself"
    value = _number(objective, pair.own, pair.other, pair.batch)
    flipped = pair.other.mapped(lambda level, tensor: tensor.flip(1))
    changed = _number(objective, pair.own, flipped, pair.batch)
    return value != changed, f"{value:.6g}; with the teacher's outputs at other points {changed:.6g}"


IDENTITIES: dict[str, Callable[[str, Pair], Outcome]] = {
    "zero at the teacher": _zero_at_the_teacher,
    "teacher unchanged": _teacher_unchanged,
    "order and split of a batch": _order_and_split,
    "gradient": _gradient,
    "weight 0 is scratch": _scratch_at_weight_zero,
    "missing hint raises": _missing_hint_raises,
    "uses the teacher": _uses_the_teacher,
}
