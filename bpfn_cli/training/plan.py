# SPDX-License-Identifier: MIT
"""What a training is going to do, said before it begins: terms and their weights, hints, adapters, time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bpfn_cli.losses import Objective
from bpfn_cli.losses.objective import SUPERVISED
from bpfn_cli.ops import level_sizes
from bpfn_cli.profiling.memory import forget_peak, resident_bytes
from bpfn_cli.recipes.calendar import validation_epochs
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import Strategy
from bpfn_cli.strategies.teacher_cache import bytes_per_sample
from bpfn_cli.structures import FlowBatch


@dataclass(frozen=True)
class HintPlan:
    """A feature that is compared: its shapes (batch, points, channels) in student and teacher."""

    feature: str
    level: int
    student: tuple[int, int, int]
    teacher: tuple[int, int, int]

    def shapes(self) -> str:
        """Such as `4 x 1024 x 16 -> 32`, where an adapter widens."""
        adapted = f" -> {self.teacher[2]}" if self.teacher != self.student else ""
        return " x ".join(map(str, self.student)) + adapted


@dataclass(frozen=True)
class TermPlan:
    """A term, how it is weighted, and what it needs in training alone.

    Attributes:
        parameters: of adapters, heads and critics. prepares: it looks at the teacher on all training scenes first.
    """

    name: str
    weight: str
    hints: tuple[HintPlan, ...] = ()
    parameters: int = 0
    prepares: bool = False


@dataclass(frozen=True)
class Plan:
    """A training before it begins.

    Attributes:
        seconds_per_step: of a step that was taken and undone. memory_mb: peak of this process then (on CUDA that of the
            allocator), 10^6 bytes. cache_bytes: that a teacher cache may grow to; None: there is none.
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
        """For JSON."""
        return {**asdict(self), "seconds_per_epoch": self.seconds_per_epoch}

    def lines(self) -> Iterator[str]:
        """For people."""
        for term in self.terms:
            needs = f"; {term.parameters:,} parameters in training alone" if term.parameters else ""
            first = "; looks at the teacher on all training scenes first" if term.prepares else ""
            yield f"plan: {term.name}: {term.weight}{needs}{first}"
            for feature in dict.fromkeys(hint.feature for hint in term.hints):
                shapes = ", ".join(hint.shapes() for hint in term.hints if hint.feature == feature)
                yield f"plan:   {feature}, level by level: {shapes}"
        how = "" if self.strategy == "plain" else f", strategy {self.strategy}"
        yield (
            f"plan: {self.steps} steps in {self.epochs} epochs{how}, {self.validations} validations; "
            f"{self.seconds_per_step:.3g} s a step, {_time(self.seconds_per_epoch)} an epoch, "
            f"{_time(self.seconds_per_step * self.steps)} in all; {self.memory_mb:,.0f} MB at the peak"
        )
        if self.cache_bytes is not None:
            yield f"plan: the teacher cache may grow to {self.cache_bytes / 1e9:.3g} GB"


def rehearse(strategy: Strategy, batch: FlowBatch, recipe: Recipe) -> tuple[float, float]:
    """Take a few steps and undo them: seconds of one, and megabytes at the peak.

    Raises: ShapeError, UsageError: a term cannot work with these networks.
    """
    on_cuda = batch.pc1.device.type == "cuda"
    torch.cuda.reset_peak_memory_stats() if on_cuda else forget_peak()
    seconds = strategy.trial_step(batch, recipe.train.lr, recipe.train.epochs)
    peak = torch.cuda.max_memory_allocated() if on_cuda else resident_bytes(peak=True)
    return seconds, peak / 1e6


def make_plan(strategy: Strategy, recipe: Recipe, steps: int, scenes: int, figures: tuple[float, float]) -> Plan:
    """The plan of a strategy.

    Args: steps: of the whole training. scenes: that are learned from. figures: of `rehearse`.
    """
    options = recipe.train
    return Plan(
        strategy=recipe.strategy.kind,
        terms=tuple(_terms(strategy, recipe)),
        epochs=options.epochs,
        steps=steps,
        validations=validation_epochs(options.epochs, options.validation_calendar, options.validate_every),
        seconds_per_step=figures[0],
        memory_mb=figures[1],
        cache_bytes=_cache_bytes(strategy, recipe, scenes),
    )


def _cache_bytes(strategy: Strategy, recipe: Recipe, scenes: int) -> int | None:
    teacher = strategy.teacher
    if teacher is None or teacher.cache is None:
        return None
    views = min(recipe.data.views or recipe.train.epochs, recipe.train.epochs)
    return scenes * views * bytes_per_sample(teacher.network.variant, recipe.data.points, teacher.cache.reads)


def _terms(strategy: Strategy, recipe: Recipe) -> Iterator[TermPlan]:
    objective, student = strategy.objective, strategy.student
    sizes = level_sizes(recipe.data.points, student.variant.reductions)
    yield TermPlan(SUPERVISED, f"weight {objective.weight(SUPERVISED):g}")
    for name, term in objective.items():
        hints = tuple(
            HintPlan(
                feature,
                level,
                (recipe.train.batch_size, sizes[level], own),
                (recipe.train.batch_size, sizes[level], other),
            )
            for feature, level, own, other in term.hints()
        )
        parameters = sum(parameter.numel() for parameter in term.parameters())
        yield TermPlan(name, _weight(objective, name), hints, parameters, term.needs_preparation())
    for name, weight in strategy.extra_terms:
        yield TermPlan(name, weight)


def _weight(objective: Objective, name: str) -> str:
    options = objective.options
    if name not in objective.hints or options.w_hint is not None:
        return f"weight {objective.weight(name):g}"
    if objective.calibrated:
        return f"weight gamma {options.gamma:g} x kappa {objective.scales()[f'kappa_{name}']:.4g}"
    share = options.rho / len(objective.hints)
    return (
        f"weight gamma {options.gamma:g} x kappa, set at step {options.calibration_step} so that its gradient is "
        f"{share:.3g} of the supervised one"
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
