# SPDX-License-Identifier: MIT
"""Cut a trained network to a budget, and train the rest for a short while on the flow of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bpfn_cli.choices import PUBLISHED_POINTS, Importance
from bpfn_cli.errors import NonFiniteError, UsageError
from bpfn_cli.history import KEY, PRUNED, TEACHER, Step, plain_steps
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.history import step_of
from bpfn_cli.models.pruning.budget import CostKind, CostOf, check_budget, cost_function, fit_budget, smallest
from bpfn_cli.models.pruning.channels import ChannelGroup, channel_groups, reorder
from bpfn_cli.models.pruning.importance import channel_orders, epe3d
from bpfn_cli.models.pruning.sensitivity import Sensitivity, measure, sliced
from bpfn_cli.models.pruning.sizes import Size, sizes_of
from bpfn_cli.models.variants import Variant
from bpfn_cli.progress import NoProgress, OnProgress, Progress
from bpfn_cli.structures import FlowBatch, FlowPyramid

MEASURED_BATCHES = 4  # for each cut of each size
TRIES_UNTRAINED, TRIES = 6, 5  # networks that are measured to keep within an error, before and with a recovery
STRIDE = 0.7  # factor by which the cost falls at most from one recovered network to the next
NEAR = 1.03  # costs that differ by a smaller factor are taken for equal
RECOVERY_LR = 1e-4  # the best of four in a trial
CLIP_NORM = 10.0
LATENCY_TOLERANCE = 0.1
MOST_ATTEMPTS = 8


@dataclass(frozen=True)
class Scenes:
    """Batches that importance and recovery use, and others that errors are measured on."""

    used: list[FlowBatch]
    held_out: list[FlowBatch]

    @property
    def points(self) -> int:
        return self.held_out[0].pc1.shape[1]

    @property
    def title(self) -> str:
        """What errors are measured on."""
        return f"{count_of(self.held_out)} held-out scenes, {self.points} points"


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    recovery_steps: of training after the cut. cut_m, recovered_m: EPE3D in metres before and after that training;
    recovered_m is None without it.
    """

    model: BiPointFlowNet
    recovery_steps: int
    cut_m: float
    recovered_m: float | None

    @property
    def epe3d_m(self) -> float:
        return self.cut_m if self.recovered_m is None else self.recovered_m


@dataclass(frozen=True)
class PrunedErrors:
    """EPE3D on the held-out scenes, metres: of the teacher, of the cut network, and after the recovery."""

    scenes: int
    teacher_m: float
    cut_m: float
    recovered_m: float | None


@dataclass(frozen=True)
class Limit:
    """The allowed EPE3D: a share above that of the teacher, metres."""

    share: float
    teacher_m: float

    @property
    def limit_m(self) -> float:
        return (1 + self.share) * self.teacher_m

    def __str__(self) -> str:
        return f"{100 * self.share:.3g} % of the teacher's ({self.limit_m:.4f} m)"


@dataclass(frozen=True)
class PruneReport:
    """What is known about a pruned network. history: see `bpfn_cli.history`. keep_within: the limit that it keeps."""

    importance: Importance
    recovery_steps: int
    epe3d: PrunedErrors
    history: tuple[Step, ...]
    keep_within: Limit | None = None

    def as_dict(self) -> dict[str, Any]:
        """As the metadata of a checkpoint."""
        plain: dict[str, Any] = {
            "importance": self.importance,
            "recovery_steps": self.recovery_steps,
            "epe3d": asdict(self.epe3d),
        }
        if (kept := self.keep_within) is not None:
            plain["keep_within"] = {"share": kept.share, "limit_m": kept.limit_m}
        return {**plain, KEY: plain_steps(self.history)}


@dataclass(frozen=True)
class Goal:
    """What a network is pruned to.

    cost_of: what a budget counts. choose: gives the sizes; None: those of least cost within the error.
    keep_within: the error that is allowed, as a share above the teacher's; None: any.
    measures_sizes: whether `choose` needs to know what each size is worth.
    """

    cost_of: CostOf
    choose: Callable[[Pruner], Variant] | None = None
    keep_within: float | None = None
    measures_sizes: bool = True


class ErrorAboveLimit(UsageError):
    """No network was found within the error that is allowed.

    limit: that error. made_m: EPE3D of the network that the goal chose, in metres; None: it left the sizes open.
    nearest: sizes of the least cost above the chosen ones that keep the limit; None: none were found.
    """

    def __init__(self, limit: Limit, made_m: float | None = None, nearest: Variant | None = None):
        found = "no smaller network was found" if made_m is None else f"the EPE3D of this budget is {made_m:.4f} m"
        super().__init__(f"{found}; it must stay within {limit}")
        self.limit, self.made_m, self.nearest = limit, made_m, nearest


def prune(
    teacher: BiPointFlowNet,
    budget: float,
    batches: Sequence[FlowBatch],
    held_out: Sequence[FlowBatch] = (),
    *,
    cost: CostKind = "macs",
    points: int = PUBLISHED_POINTS,
    importance: Importance = "taylor",
    recovery_steps: int = 100,
    keep_within: float | None = None,
    name: str = PRUNED,
    progress: Progress | None = None,
) -> tuple[BiPointFlowNet, PruneReport]:
    """Cut a trained network to a budget, as `bpfn slim --target-macs` does; the teacher stays as it is.

    Args:
        budget: MACs of one pair of `points` points, or parameters, as `cost` says. The network costs 98 to 100 % of it.
        batches: scenes with their true flow, to rank channels and to train on; `evaluation_batches` makes them.
        held_out: other scenes, to measure errors on; without them, the errors are those on `batches`.
        importance: what ranks the channels. recovery_steps: of training on the teacher's flow; 0: none.
        keep_within: the error that is allowed, as a share above the teacher's, such as 0.1; None: any. name: of the
            sizes.
    Returns: the network, in evaluation mode, and a report on it.
    Raises: UsageError: no batches, or no network meets the budget; ErrorAboveLimit: its error is larger than allowed.
        NonFiniteError: the training fails.
    """
    if not batches:
        raise UsageError("no scenes to prune with: give at least one batch")

    cost_of = cost_function(cost, points)
    check_budget(teacher.variant, cost_of, budget)
    goal = Goal(cost_of, lambda pruner: pruner.fit(cost_of, budget), keep_within)
    scenes = Scenes([*batches], [*(held_out or batches)])
    pruner = Pruner(teacher, name)
    made, limit = pruner.reach(goal, scenes, importance, recovery_steps, progress or NoProgress())
    return made.model, pruner.report(importance, made, scenes, points, limit=limit)


class Pruner:
    """A copy of a trained network with its channels in order of importance, and what each of its sizes is worth."""

    def __init__(self, teacher: BiPointFlowNet, name: str = PRUNED):
        """name: of the sizes that are chosen."""
        self.teacher, self.name = sliced(teacher, teacher.variant), name
        self.sensitivities: dict[Size, Sensitivity] = {}
        self.orders: dict[ChannelGroup, Tensor] = {}

    def order(self, importance: Importance, batches: Sequence[FlowBatch], progress: OnProgress = None) -> None:
        """Order the channels: the most important ones first."""
        groups = channel_groups(self.teacher.variant)
        self.reorder(channel_orders(self.teacher, groups, importance, batches, progress))

    def reorder(self, orders: dict[ChannelGroup, Tensor]) -> None:
        """Put the channels into these orders."""
        reorder(self.teacher, orders)
        self.orders = orders

    def prepare(self, importance: Importance, scenes: Scenes, progress: Progress, *, sizes: bool = True) -> None:
        """Order the channels; and measure what each size is worth, unless sizes are given."""
        with progress.bar("importance of channels") as bar:
            self.order(importance, scenes.used, bar)
        if sizes:
            with progress.bar("sensitivity of sizes") as bar:
                self.measure(scenes.used[:MEASURED_BATCHES], bar)

    def measure(self, batches: Sequence[FlowBatch], progress: OnProgress = None) -> None:
        """Measure what each size is worth."""
        self.sensitivities = measure(self.teacher, sizes_of(self.teacher.variant), batches, progress)

    def reach(
        self, goal: Goal, scenes: Scenes, importance: Importance, steps: int, progress: Progress
    ) -> tuple[Pruned, Limit | None]:
        """Prune to a goal, and train for some steps; the second result is the limit that the error keeps.

        Raises: ErrorAboveLimit; as `goal.choose`.
        """
        limit = None
        if goal.keep_within is not None:
            limit = Limit(goal.keep_within, mean_epe3d(self.teacher, scenes.held_out))
        self.prepare(importance, scenes, progress, sizes=goal.measures_sizes)
        made = self.make(goal.choose(self), scenes, steps, progress) if goal.choose else None
        if limit is not None and (made is None or made.epe3d_m > limit.limit_m):
            if made is not None:
                progress.line(f"EPE3D {made.epe3d_m:.4f} m, above {limit}: searching for the nearest budget")
            above = None if made is None else goal.cost_of(made.model.variant)
            found = self.smallest_within(goal.cost_of, limit.limit_m, scenes, steps, progress, above)
            if found is None or made is not None:
                nearest = None if found is None else found.model.variant
                raise ErrorAboveLimit(limit, None if made is None else made.epe3d_m, nearest)
            made = found
        assert made is not None
        if limit is not None:
            progress.line(f"EPE3D {made.epe3d_m:.4f} m, within {limit}")
        return made, limit

    def fit(self, cost_of: CostOf, budget: float) -> Variant:
        """Sizes within the budget. Raises: UsageError: there are none, or the teacher is within it."""
        return replace(fit_budget(self.teacher.variant, self.sensitivities, cost_of, budget), name=self.name)

    def fit_latency(self, latency_of: CostOf, target: float, cost_of: CostOf) -> Variant:
        """Sizes whose measured latency is within a tenth of the target, by fitting MACs and measuring in turn.

        Raises: UsageError: there are none, with the nearest latency that was measured.
        """
        variant = self.teacher.variant
        whole, least, tried = cost_of(variant), cost_of(smallest(variant)), [latency_of(variant)]
        for _ in range(MOST_ATTEMPTS):
            budget = min(max(cost_of(variant) * target / tried[-1], least), whole * 0.999)
            found = self.fit(cost_of, budget)
            if found == variant:
                break
            variant = found
            tried.append(latency_of(variant))
            if abs(tried[-1] / target - 1) <= LATENCY_TOLERANCE:
                return variant
        nearest = min(tried, key=lambda latency: abs(latency - target))
        raise UsageError(
            f"no network with a latency within 10 % of {target:.3g} ms; the nearest takes {nearest:.3g} ms"
        )

    def cut(self, variant: Variant) -> BiPointFlowNet:
        """The most important channels, in evaluation mode."""
        return sliced(self.teacher, variant)

    def make(self, variant: Variant, scenes: Scenes, steps: int, progress: Progress, what: str = "recovery") -> Pruned:
        """Cut a network, train it for some steps, and measure it. what: title of the bar."""
        model, recovered = self.cut(variant), None
        cut = mean_epe3d(model, scenes.held_out)
        if steps:
            with progress.bar(what, samples=len(scenes.used[0].names)) as bar:
                recover(model, self.teacher, scenes.used, steps, bar)
            recovered = mean_epe3d(model, scenes.held_out)
        return Pruned(model, steps, cut, recovered)

    def smallest_within(
        self,
        cost_of: CostOf,
        limit_m: float,
        scenes: Scenes,
        steps: int,
        progress: Progress,
        least: float | None = None,
    ) -> Pruned | None:
        """The network of least cost whose EPE3D on the held-out scenes, after the recovery, is at most `limit_m`.

        Bisection on the logarithm of the cost: first of networks without a recovery, which are quick to measure, then
        below the best of them with it. least: cost that is taken to be too small; None: of the smallest network.
        Returns: None: no smaller network than the teacher was found within the error.
        """
        best, high = None, cost_of(self.teacher.variant)
        least = cost_of(smallest(self.teacher.variant)) if least is None else least
        for training, tries, stride in ((0, TRIES_UNTRAINED, 0.0), (steps, TRIES if steps else 0, STRIDE)):
            low = least
            for attempt in range(1, tries + 1):
                if high / low < NEAR:
                    break
                variant = self.fit(cost_of, max(math.sqrt(low * high), stride * high))
                found, what = cost_of(variant), f"recovery, try {attempt} of at most {tries}"
                made = self.make(variant, scenes, training, progress, what)
                kind = "after" if training else "before"
                progress.line(f"cost {found:.3g}: EPE3D {made.epe3d_m:.4f} m {kind} recovery, limit {limit_m:.4f} m")
                if made.epe3d_m <= limit_m:
                    best, high = made, found
                else:
                    low = found
        if best and best.recovery_steps != steps:
            trained = self.make(best.model.variant, scenes, steps, progress)
            return trained if trained.epe3d_m <= limit_m else best
        return best

    def report(
        self,
        importance: Importance,
        made: Pruned,
        scenes: Scenes,
        points: int,
        teacher_m: float | None = None,
        before: Sequence[Step] = (),
        sha256: str | None = None,
        limit: Limit | None = None,
    ) -> PruneReport:
        """The report on a pruned network.

        teacher_m: the teacher's EPE3D, if known. before: steps that made the teacher, whose file has this `sha256`.
        limit: that its error keeps.
        """
        count = count_of(scenes.held_out)
        teacher_m = limit.teacher_m if limit is not None else teacher_m
        teacher_m = mean_epe3d(self.teacher, scenes.held_out) if teacher_m is None else teacher_m
        measured: dict[str, Any] = {"epe3d_m": teacher_m, "on": scenes.title, "sha256": sha256}
        known = [*before[:-1], before[-1].model_copy(update=measured)] if before else []
        first = known or [step_of(TEACHER, self.teacher, points, **measured)]
        last = step_of(PRUNED, made.model, points, epe3d_m=made.epe3d_m, on=scenes.title)
        errors = PrunedErrors(count, teacher_m, made.cut_m, made.recovered_m)
        return PruneReport(importance, made.recovery_steps, errors, (*first, last), limit)


def recover(
    student: BiPointFlowNet,
    teacher: BiPointFlowNet,
    batches: Sequence[FlowBatch],
    steps: int,
    progress: OnProgress = None,
) -> None:
    """Train the student on the teacher's flows at all levels, in place, one batch a step; no truth is needed.

    Batch norms keep their statistics: new ones, from few and small batches, would be worse than those of the teacher.

    Raises: NonFiniteError: the loss is NaN or infinite.
    """
    optimizer = torch.optim.Adam(student.parameters(), lr=RECOVERY_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(steps):
        batch = batches[step % len(batches)]
        with torch.no_grad():
            target = teacher(batch.pc1, batch.pc2)
        pyramid = target.pyramid if student.pyramid_shape == teacher.pyramid_shape else None
        loss = _distance(student(batch.pc1, batch.pc2, pyramid=pyramid), target)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"recovery: the loss is {float(loss)} in step {step}; nothing was written")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps)


def count_of(batches: Sequence[FlowBatch]) -> int:
    """The number of scenes."""
    return sum(len(batch.names) for batch in batches)


def mean_epe3d(model: BiPointFlowNet, batches: Sequence[FlowBatch]) -> float:
    """Mean over scenes of EPE3D, metres. Raises: NonFiniteError: it is NaN or infinite."""
    with torch.no_grad():
        found = float(torch.cat([epe3d(model, batch) for batch in batches]).mean())
    if not math.isfinite(found):
        raise NonFiniteError(f"EPE3D of {model.variant.name} is {found}; check the weights and the scenes")
    return found


def _distance(student: FlowPyramid, teacher: FlowPyramid) -> Tensor:
    """Mean over levels of the mean distance of the flows, metres."""
    pairs = zip(student.flows, teacher.flows, strict=True)
    return torch.stack([torch.linalg.vector_norm(own - target, dim=-1).mean() for own, target in pairs]).mean()
