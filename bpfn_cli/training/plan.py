# SPDX-License-Identifier: MIT
"""The plan of a training, printed before it starts: terms, weights, hints, adapters, time and memory."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bpfn_cli.losses import Objective
from bpfn_cli.losses.objective import SUPERVISED
from bpfn_cli.ops import level_sizes
from bpfn_cli.profiling.memory import forget_peak, resident_bytes
from bpfn_cli.progress import duration
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.recipes.schedule import validation_epochs
from bpfn_cli.strategies import Strategy
from bpfn_cli.strategies.teacher_cache import bytes_per_sample
from bpfn_cli.training.job import Job
from bpfn_cli.training.loop.batches import first_batch


@dataclass(frozen=True)
class HintPlan:
    """A compared feature: its shapes (batch, points, channels) in student and teacher."""

    feature: str
    level: int
    student: tuple[int, int, int]
    teacher: tuple[int, int, int]

    def __str__(self) -> str:
        """Such as `4 x 1024 x 16 -> 32`, where an adapter widens."""
        adapted = f" -> {self.teacher[2]}" if self.teacher != self.student else ""
        return " x ".join(map(str, self.student)) + adapted


@dataclass(frozen=True)
class TermPlan:
    """A loss term. parameters: of adapters, heads and critics. prepares: runs the teacher on all scenes first."""

    name: str
    weight: str
    hints: tuple[HintPlan, ...] = ()
    parameters: int = 0
    prepares: bool = False


@dataclass(frozen=True)
class Plan:
    """What a training will do. Times and memory are those of a trial step, which was undone.

    Attributes: memory_mb: peak of this process (on CUDA: of the allocator), 10^6 bytes. cache_bytes: upper bound.
    """

    strategy: str
    terms: tuple[TermPlan, ...]
    epochs: int
    steps: int
    validations: int
    seconds_per_step: float
    memory_mb: float
    cache_bytes: int | None = None

    @property
    def seconds_per_epoch(self) -> float:
        return self.seconds_per_step * self.steps / self.epochs

    def as_tree(self) -> dict[str, Any]:
        return {**asdict(self), "seconds_per_epoch": self.seconds_per_epoch}

    def lines(self) -> Iterator[str]:
        for term in self.terms:
            needs = f"; {term.parameters:,} parameters used only in training" if term.parameters else ""
            first = "; first runs the teacher on all training scenes" if term.prepares else ""
            yield f"plan: {term.name}: {term.weight}{needs}{first}"
            for feature in dict.fromkeys(hint.feature for hint in term.hints):
                shapes = ", ".join(str(hint) for hint in term.hints if hint.feature == feature)
                yield f"plan:   {feature}, level by level: {shapes}"
        how = "" if self.strategy == "plain" else f", strategy {self.strategy}"
        times = f"{self.seconds_per_step:.3g} s per step, {duration(self.seconds_per_epoch)} per epoch"
        times += f", {duration(self.seconds_per_step * self.steps)} in all; peak memory {self.memory_mb:,.0f} MB"
        yield f"plan: {self.steps} steps in {self.epochs} epochs{how}, {self.validations} validations; {times}"
        if self.cache_bytes is not None:
            yield f"plan: the teacher cache may grow to {self.cache_bytes / 1e9:.3g} GB"


def plan_training(job: Job, strategy: Strategy) -> Plan:
    """The plan of a job. Raises: ShapeError, UsageError: a term does not fit; NonFiniteError: the trial step failed."""
    kind, options, batch = job.recipe.strategy.kind, job.recipe.train, first_batch(job)
    on_cuda = batch.pc1.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(batch.pc1.device)
    else:
        forget_peak()
    seconds = strategy.trial_step(batch, options.lr, options.epochs)
    peak = torch.cuda.max_memory_allocated(batch.pc1.device) if on_cuda else resident_bytes(peak=True)
    terms = tuple(_terms(strategy, job.recipe))
    validations = validation_epochs(options.epochs, options.validation_calendar, options.validate_every)
    return Plan(kind, terms, options.epochs, job.steps, validations, seconds, peak / 1e6, _cache_bytes(job, strategy))


def _cache_bytes(job: Job, strategy: Strategy) -> int | None:
    teacher, data, epochs = strategy.teacher, job.recipe.data, job.recipe.train.epochs
    if teacher is None or teacher.cache is None:
        return None
    drawn = len(job.split.learn) * min(data.views or epochs, epochs)
    return drawn * bytes_per_sample(teacher.network.variant, data.points, teacher.cache.reads)


def _terms(strategy: Strategy, recipe: Recipe) -> Iterator[TermPlan]:
    objective, batch = strategy.objective, recipe.train.batch_size
    sizes = level_sizes(recipe.data.points, strategy.student.variant.reductions)
    if objective.has_truth:
        yield TermPlan(SUPERVISED, f"weight {objective.weight(SUPERVISED):g}")
    for name, term in objective.items():
        hints = []
        for feature, level, *widths in term.hints():
            hints.append(HintPlan(feature, level, *((batch, sizes[level], width) for width in widths)))
        parameters = sum(parameter.numel() for parameter in term.parameters())
        yield TermPlan(name, _weight(objective, name), tuple(hints), parameters, term.needs_preparation())
    for name, weight in strategy.extra_terms:
        yield TermPlan(name, weight)


def _weight(objective: Objective, name: str) -> str:
    options = objective.options
    if name not in objective.hints or not objective.options.scales_hints:
        return f"weight {objective.weight(name):g}"
    if objective.calibrated:
        return f"weight gamma {objective.gamma:g} x kappa {objective.scales()[f'kappa_{name}']:.4g}"
    other = "the supervised one" if objective.has_truth else f"that of {' and '.join(objective.anchors)}"
    wanted = f"so that its gradient is {options.rho / len(objective.hints):.3g} of {other}"
    again = f" and every {options.recalibrate_every} steps" if options.recalibrate_every else ""
    return f"weight gamma {objective.gamma:g} x kappa, set at step {options.calibration_step}{again} {wanted}"
