# SPDX-License-Identifier: MIT
"""Is each loss itself? Identities on the user's own pair of networks, and values worked out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bpfn_cli.errors import ShapeError
from bpfn_cli.losses import Objective, build_losses, loss_named
from bpfn_cli.losses.feature.mobilebert import attention_distance, attention_logits
from bpfn_cli.losses.features import FeatureDistance, total
from bpfn_cli.losses.imitability import phi
from bpfn_cli.losses.objective import option_key
from bpfn_cli.losses.relation.pairwise import similarities
from bpfn_cli.losses.relation.rkd import angles, pair_distances
from bpfn_cli.losses.response.adversarial import Critic, gradient_penalty
from bpfn_cli.losses.response.bounded import gates
from bpfn_cli.losses.response.localization import distribution_focal_loss, softened_divergence
from bpfn_cli.losses.response.weighted import class_weights
from bpfn_cli.losses.term import DistillationLoss
from bpfn_cli.models import BiPointFlowNet, Variant, build_model
from bpfn_cli.strategies import PlainStrategy, Teacher
from bpfn_cli.structures import FlowBatch, FlowPyramid

SEED = 0
FEATURES = ("bfe_source", "bfe_target", "bfe_embedding", "estimator_features")
LISTS = ("flows", *FEATURES)
EPSILON = 1e-8  # of a central difference: small, since absolute values have kinks


@dataclass(frozen=True)
class Check:
    """What was checked of a loss; `passed` is None where it does not apply, for the reason in `detail`."""

    loss: str
    name: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Pair:
    """Two networks and a batch of random scenes that both can take."""

    student: BiPointFlowNet
    teacher: BiPointFlowNet
    batch: FlowBatch
    own: FlowPyramid
    other: FlowPyramid

    @classmethod
    def of(cls, student: Variant | BiPointFlowNet, teacher: Variant | BiPointFlowNet) -> Pair:
        """A variant stands for a network with random weights."""
        with torch.random.fork_rng(devices=[]):
            networks = []
            for number, one in enumerate((student, teacher)):
                torch.manual_seed(SEED + number)
                points = (one if isinstance(one, Variant) else one.variant).least_points
                networks.append(build_model(one, points) if isinstance(one, Variant) else one)
        student, teacher = (network.eval() for network in networks)
        batch = random_batch(2, max(network.variant.least_points for network in networks))
        with torch.no_grad():
            own = student(batch.pc1, batch.pc2)
            other = teacher(batch.pc1, batch.pc2, pyramid=own.pyramid)
        return cls(student, teacher, batch, own, other)


def random_batch(size: int, points: int) -> FlowBatch:
    """Points in a cube of 8 m, half of them still, half moving by 0.2 m."""
    generator = torch.Generator().manual_seed(SEED)
    pc1 = torch.rand(size, points, 3, generator=generator) * 8
    flow = 0.2 * torch.randn(size, points, 3, generator=generator)
    flow[:, : points // 2] = 0
    names = tuple(f"scene{index}" for index in range(size))
    return FlowBatch(pc1, (pc1 + flow).flip(1), flow, names, (None,) * size)


def check_losses(names: Iterable[str], pair: Pair) -> Iterator[Check]:
    """Every check of every loss named."""
    for name in names:
        for what, check in IDENTITIES.items():
            yield _carried_out(name, what, lambda name=name, check=check: check(name, pair))  # type: ignore[misc]
        for what, by_hand in HAND.get(name, {}).items():
            yield _carried_out(name, what, lambda by_hand=by_hand: _equal(*by_hand()))  # type: ignore[misc]


Outcome = tuple[bool | None, str]


def _carried_out(loss: str, name: str, check: Callable[[], Outcome]) -> Check:
    try:
        return Check(loss, name, *check())
    except Exception as error:  # a loss of the user's own may fail in any way: that is what is to be found
        return Check(loss, name, False, f"{type(error).__name__}: {error}")


def _equal(got: float, expected: float, tolerance: float = 1e-4) -> Outcome:
    passed = math.isclose(got, expected, rel_tol=tolerance, abs_tol=1e-9)
    return passed, f"{got:.6g}, by hand {expected:.6g}"


# --- identities ---


def _objective(name: str, student: Variant, teacher: Variant, **options: object) -> Objective:
    """With kappa 1 and one loss; gradients through all of it."""
    return build_losses([name], student, teacher, {option_key(name): options} if options else {})


def _value(objective: Objective, outputs: tuple[FlowPyramid, FlowPyramid], batch: FlowBatch) -> Tensor:
    return objective.measure(*outputs, batch)[objective.names[0]].value


def _zero_at_the_teacher(name: str, pair: Pair) -> Outcome:
    card = loss_named(name).card
    if card.never_zero:
        return None, card.never_zero
    variant = pair.teacher.variant
    value = float(_value(_objective(name, variant, variant), (pair.other, pair.other), pair.batch).detach())
    return value == 0, f"{value:.3g} where student and teacher are one"


def _teacher_untouched(name: str, pair: Pair) -> Outcome:
    student, teacher = copy.deepcopy(pair.student), copy.deepcopy(pair.teacher)
    before = copy.deepcopy(teacher.state_dict())
    objective = _objective(name, student.variant, teacher.variant)
    output = student(pair.batch.pc1, pair.batch.pc2)
    guide = teacher(pair.batch.pc1, pair.batch.pc2)
    _value(objective, (output, guide), pair.batch).backward()
    has_gradient = any(parameter.grad is not None for parameter in teacher.parameters())
    strategy = PlainStrategy(student, Teacher(teacher), objective, weight_decay=0, clip_norm=None)
    strategy.step(pair.batch, 1e-3)
    changed = [key for key, tensor in teacher.state_dict().items() if not torch.equal(tensor, before[key])]
    return not has_gradient and not changed, "no gradient, no change after a step"


def _order_and_split(name: str, pair: Pair) -> Outcome:
    objective, batch = _objective(name, pair.student.variant, pair.teacher.variant), pair.batch

    def value(rows: list[int]) -> float:
        part = replace(batch, pc1=batch.pc1[rows], pc2=batch.pc2[rows], flow=batch.flow[rows])
        return float(_value(objective, (_samples(pair.own, rows), _samples(pair.other, rows)), part).detach())

    both, turned = value([0, 1]), value([1, 0])
    halves = (value([0]) + value([1])) / 2
    depends = _depends_on_batch(objective)
    passed = math.isclose(both, turned, rel_tol=1e-4, abs_tol=1e-7)
    if not depends:
        passed = passed and math.isclose(both, halves, rel_tol=1e-4, abs_tol=1e-7)
    return passed, f"{both:.6g}; other order {turned:.6g}; halves {halves:.6g}" + (f" ({depends})" if depends else "")


def _samples(output: FlowPyramid, rows: list[int]) -> FlowPyramid:
    """Some samples of an output, without its pyramid."""
    first, second = (
        {level: tensor[rows] for level, tensor in indices.items()}
        for indices in (output.sample_indices1, output.sample_indices2)
    )
    cut = output.mapped(lambda level, tensor: tensor[rows])
    neighbors = [tensor[rows] for tensor in output.bfe_neighbors]
    return replace(cut, pyramid=None, bfe_neighbors=neighbors, sample_indices1=first, sample_indices2=second)


def _depends_on_batch(objective: Objective) -> str:
    """Why a batch is not the mean of its halves; empty where it is."""
    (_, term), *_ = objective.items()
    return "measured against the batch before training" if term.needs_preparation() else ""


def _gradient(name: str, pair: Pair) -> Outcome:
    """The derivative along a random direction of those outputs of the student that get a gradient, against a central
    difference, in float64."""
    options = {"detach_norms": False} if name == "pairwise" else {}
    objective = _objective(name, pair.student.variant, pair.teacher.variant, **options).double()
    own, other = (_double(output) for output in (pair.own, pair.other))
    batch = replace(pair.batch, pc1=pair.batch.pc1.double(), pc2=pair.batch.pc2.double(), flow=pair.batch.flow.double())
    generator = torch.Generator().manual_seed(SEED)
    leaves = [tensor.requires_grad_() for field in LISTS for tensor in getattr(own, field)]
    gradients = torch.autograd.grad(_value(objective, (own, other), batch), leaves, allow_unused=True)
    directions = [
        None if gradient is None else torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        for gradient in gradients
    ]
    pairs = zip(gradients, directions, strict=True)
    parts = [(gradient * way).sum() for gradient, way in pairs if gradient is not None and way is not None]
    if not parts:
        return False, "no gradient reaches the student"
    derivative = float(torch.stack(parts).sum())

    def along(step: float) -> float:
        moved = iter([leaf if way is None else leaf + step * way for leaf, way in zip(leaves, directions, strict=True)])
        fields = {field: [next(moved) for _ in getattr(own, field)] for field in LISTS}
        return float(_value(objective, (replace(own, **fields), other), batch))  # type: ignore[arg-type]

    with torch.no_grad():
        difference = (along(EPSILON) - along(-EPSILON)) / (2 * EPSILON)
    passed = math.isclose(derivative, difference, rel_tol=1e-4, abs_tol=1e-6)
    return passed, f"derivative {derivative:.6g}, difference {difference:.6g}"


def _scratch_at_weight_zero(name: str, pair: Pair) -> Outcome:
    scratch = _after_a_step(pair, ["none"], {})
    distilled = _after_a_step(pair, [name], {"w_gt": 1.0, "w_kd": 0.0, "w_hint": 0.0})
    equal = all(torch.equal(scratch[key], distilled[key]) for key in scratch)
    return equal, "weights and next random draw after a step"


def _after_a_step(pair: Pair, names: list[str], options: dict[str, float]) -> dict[str, Tensor]:
    student, teacher = copy.deepcopy(pair.student), copy.deepcopy(pair.teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        objective = build_losses(names, student.variant, teacher.variant, options)
        strategy = PlainStrategy(student, Teacher(teacher), objective, weight_decay=1e-4, clip_norm=None)
        strategy.step(pair.batch, 1e-3)
        return {**student.state_dict(), "next draw": torch.rand(4)}


def _missing_hint_raises(name: str, pair: Pair) -> Outcome:
    """Each field that the loss says it reads; all at once, where it does not say."""
    objective = _objective(name, pair.student.variant, pair.teacher.variant)
    _value(objective, (pair.own, pair.other), pair.batch)  # what fails on whole outputs proves nothing here
    (_, term), *_ = objective.items()
    says = type(term).reads is not DistillationLoss.reads
    read = sorted(term.reads() & set(LISTS))
    for fields in [[field] for field in read] if says else [read]:
        without = replace(pair.other, **{field: [] for field in fields})  # type: ignore[arg-type]
        try:
            _value(objective, (pair.own, without), pair.batch)
        except ShapeError:
            continue
        except IndexError:
            return False, f"an IndexError without {', '.join(fields)}, not a ShapeError that names the hint"
        return False, f"a value without {', '.join(fields)}, as if nothing were missing"
    return True, f"without {', '.join(read)}"


def _looks_at_the_teacher(name: str, pair: Pair) -> Outcome:
    objective = _objective(name, pair.student.variant, pair.teacher.variant)
    (_, term), *_ = objective.items()
    if type(term).before_step is not DistillationLoss.before_step:
        return None, "through what it trains by itself"
    value = float(_value(objective, (pair.own, pair.other), pair.batch).detach())
    other = pair.other.mapped(lambda level, tensor: tensor.flip(1))
    changed = float(_value(objective, (pair.own, other), pair.batch).detach())
    return value != changed, f"{value:.6g}; with the teacher's outputs at other points {changed:.6g}"


def _double(output: FlowPyramid) -> FlowPyramid:
    return replace(output.mapped(lambda level, tensor: tensor.double()), pyramid=None)


IDENTITIES: dict[str, Callable[[str, Pair], Outcome]] = {
    "C1 zero at the teacher": _zero_at_the_teacher,
    "C2 teacher untouched": _teacher_untouched,
    "C3 order and split of a batch": _order_and_split,
    "C4 gradient": _gradient,
    "C5 weight 0 is scratch": _scratch_at_weight_zero,
    "C6 missing hint raises": _missing_hint_raises,
    "looks at the teacher": _looks_at_the_teacher,
}


# --- by hand: each gives what is computed and what was worked out ---

S, T, G = (
    torch.tensor([rows])
    for rows in (
        [[0.1, 0.0, 0.0], [0.0, 0.2, 0.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.2, 0.1]],
        [[0.0, 0.0, 0.0], [0.0, 0.1, 0.0]],
    )
)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _toy(feature: Tensor) -> FlowPyramid:
    """An output of level 0 alone."""
    return FlowPyramid([feature], {}, {}, [feature], [feature], [feature], [feature], pyramid=None)


def _one_channel_off(norm: str) -> float:
    target = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(SEED))
    own = target.clone()
    own[:, :, 2] += 0.6
    module = FeatureDistance("estimator", (0,), norm, _ANY, _ANY)  # type: ignore[arg-type]
    return float(total(module(_toy(own), _toy(target))))


def _bounded(m: float) -> float:
    own, other = _norm(S - G), _norm(T - G)
    return float((gates(own, other, "squared", m) * own.square()).mean())


def _rkd_distance() -> float:
    x, y = _triangles()
    return float(nn.functional.huber_loss(pair_distances(x), pair_distances(y)))


def _rkd_angle() -> float:
    x, y = _triangles()
    return float(nn.functional.huber_loss(angles(x), angles(y)))


def _triangles() -> tuple[Tensor, Tensor]:
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    y = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
    return x, y


def _pairwise() -> float:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    y = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    return float((similarities(x, False) - similarities(y, False)).square().mean())


class _Linear(nn.Module):
    """D(x) = <w, x>, |w| = 1."""

    def forward(self, points: Tensor, flow: Tensor) -> Tensor:
        return flow.flatten(1).sum(dim=1) / flow[0].numel() ** 0.5


def _permuted_critic() -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        critic = Critic()
        points, flow = torch.rand(1, 8, 3), torch.rand(1, 8, 3)
    with torch.no_grad():
        return float((critic(points, flow) - critic(points.flip(1), flow.flip(1))).abs().max())


def _attention_shift() -> float:
    generator = torch.Generator().manual_seed(SEED)
    source, target, other = torch.rand(3, 1, 5, 4, generator=generator)
    neighbors = torch.tensor([[[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 1]]])
    logits, shifted = (attention_logits(source, t, neighbors) for t in (target, target + 1.5))
    aim = attention_logits(other, target, neighbors)
    return float(attention_distance(logits, aim) - attention_distance(shifted, aim))


_ANY = Variant("any", ())  # type: ignore[arg-type]
_ERRORS = torch.tensor([0.02, 0.05, 0.10])


def _phi(kind: str, index: int) -> float:
    return float(phi(_ERRORS, kind, _ERRORS.min(), _ERRORS.max(), _ERRORS.max())[index])


def _moving_of_ten(index: int) -> float:
    moving = torch.zeros(1, 10, dtype=torch.bool)
    moving[0, 0] = True
    return float(class_weights(moving, clip=(0, 100))[0, index])


HAND: dict[str, dict[str, Callable[[], tuple[float, float]]]] = {
    "basic": {
        "mean of ||s - t|| of the toy": lambda: (float(_norm(S - T).mean()), 0.1),
        "mean of ||s - t||^2 of the toy": lambda: (float(_norm(S - T).square().mean()), 0.01),
        "mean teacher error of the toy": lambda: (float(_norm(T - G).mean()), 0.0707107),
    },
    "hint": {
        "0.6 in one of four channels, l1": lambda: (_one_channel_off("l1"), 0.15),
        "0.6 in one of four channels, l2": lambda: (_one_channel_off("l2"), 0.09),
    },
    "bihint": {"0.6 in one of four channels, l1": lambda: (_one_channel_off("l1"), 0.15)},
    "ail": {
        "paper's Phi at the best": lambda: (_phi("paper", 0), 0.75),
        "paper's Phi at the worst is negative": lambda: (_phi("paper", 2), -0.25),
        "minmax Phi at the best": lambda: (_phi("minmax", 0), 1.0),
        "minmax Phi in the middle": lambda: (_phi("minmax", 1), 0.625),
    },
    "aht": {"paper's Phi in the middle": lambda: (_phi("paper", 1), 0.375)},
    "bounded": {
        "toy, m = 0": lambda: (_bounded(0.0), 0.005),
        "toy, m = 0.02 m^2": lambda: (_bounded(0.02), 0.010),
    },
    "weighted": {
        "the one that moves, of ten": lambda: (_moving_of_ten(0), 5.0),
        "the nine that stand": lambda: (_moving_of_ten(1), 0.5555556),
    },
    "rkd": {
        "distances of two triangles": lambda: (_rkd_distance(), 0.018484),
        "angles of two triangles": lambda: (_rkd_angle(), 0.0038012),
    },
    "localization": {
        "DFL of 33 equal bins is ln 33": lambda: (
            float(distribution_focal_loss(torch.zeros(1, 33), torch.tensor([0.013]), torch.tensor(0.1))[0]),
            3.4965076,
        ),
        "tau^2 KL of (2, 0, 0) and 0, tau 10": lambda: (
            float(softened_divergence(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]]), 10.0)[0]),
            0.4626,
        ),
    },
    "pairwise": {"columns (1,0) (0,1) (1,1) and (1,0) (1,0) (1,1)": lambda: (_pairwise(), 0.2222222)},
    "adversarial": {
        "penalty of a critic of slope 1": lambda: (
            float(gradient_penalty(_Linear(), torch.rand(1, 4, 3), torch.rand(1, 4, 3)).detach()),
            0.0,
        ),
        "critic does not see the order of points": lambda: (round(_permuted_critic(), 6), 0.0),
    },
    "gan-compression": {"0.6 in one of four channels, l2": lambda: (_one_channel_off("l2"), 0.09)},
    "mobilebert": {"a constant in all u2 changes nothing": lambda: (round(_attention_shift(), 6), 0.0)},
}
