# SPDX-License-Identifier: MIT
"""What a loss adds to a training step, measured: one step of each in turn, so that other work slows all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from statistics import median
from time import perf_counter
from typing import Any

import torch
import yaml

import bpfn_cli.resources
from bpfn_cli.losses import NO_DISTILLATION, build_losses
from bpfn_cli.models import Variant, build_model
from bpfn_cli.strategies import PlainStrategy, Teacher
from bpfn_cli.strategies.loss_checks import random_batch

RECORD = "loss_costs.yaml"  # what `bpfn losses` shows without measuring
TEACHER_ALONE = "teacher"


@dataclass(frozen=True)
class LossCost:
    """Medians over rounds. step_ms: a whole training step. over_teacher: extra time over a step in which the teacher is
    run and not looked at, as a fraction of a step from scratch."""

    step_ms: float
    over_teacher: float


def measure_costs(
    names: Iterable[str],
    student: Variant,
    teacher: Variant,
    *,
    points: int,
    batch_size: int,
    rounds: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, LossCost]:
    """Time a training step with each loss, from scratch (`none`), and with a teacher that no loss looks at."""
    batch = random_batch(batch_size, points).to(device)
    guide = build_model(teacher, points).to(device)
    strategies = {}
    for name in (NO_DISTILLATION, TEACHER_ALONE, *names):
        used = [] if name in (NO_DISTILLATION, TEACHER_ALONE) else [name]
        objective = build_losses(used, student, teacher, {"calibration_step": 0}).to(device)
        kind = _TeacherAlone if name == TEACHER_ALONE else PlainStrategy
        network = build_model(student, points).to(device)
        needed = None if name == NO_DISTILLATION else Teacher(guide)
        if needed is not None:
            objective.prepare(needed.passes(lambda: iter([batch])))
        strategies[name] = kind(network, needed, objective, weight_decay=0, clip_norm=None)
    times: dict[str, list[float]] = {name: [] for name in strategies}
    for number in range(rounds + 1):  # the first round warms up
        for name, strategy in strategies.items():
            if strategy.teacher is not None:
                strategy.teacher.forget()
            started = perf_counter()
            strategy.step(batch, 1e-3)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(perf_counter() - started)
        if progress is not None:
            progress(number, rounds)
    scratch = times[NO_DISTILLATION]
    alone = times[TEACHER_ALONE]
    return {
        name: LossCost(
            step_ms=round(1e3 * median(own), 1),
            over_teacher=round(median((a - b) / c for a, b, c in zip(own, alone, scratch, strict=True)), 3),
        )
        for name, own in times.items()
    }


def recorded_costs() -> dict[str, Any]:
    """What was measured for this release: `machine`, `command`, `costs` by loss."""
    text = resources.files(bpfn_cli.resources).joinpath(RECORD).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


class _TeacherAlone(PlainStrategy):
    """From scratch, with a teacher whose output nobody looks at."""

    def terms(self, batch: Any) -> Any:
        assert self.teacher is not None
        output = self.run(self.student, batch)
        self.teacher(batch, output)
        return self.weighted_terms(self.objective, output, None, batch)
