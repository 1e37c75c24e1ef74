# SPDX-License-Identifier: MIT
"""The time that a loss adds to a training step, and the table of `bpfn losses`."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from statistics import median
from time import perf_counter
from typing import Any

import torch
import yaml

import bpfn_cli.resources
from bpfn_cli.losses import LOSSES, NO_DISTILLATION, build_losses
from bpfn_cli.models import Variant, build_model
from bpfn_cli.progress import ProgressCallback
from bpfn_cli.strategies import STRATEGIES, PlainStrategy, Strategy, Teacher
from bpfn_cli.strategies.base import Terms
from bpfn_cli.structures import FlowBatch

RECORD = "loss_costs.yaml"  # shown by `bpfn losses`
TEACHER_ALONE = "teacher"


@dataclass(frozen=True)
class LossCost:
    """Medians over rounds: of a whole training step, and of the extra time compared with a step in which the teacher is
    run but not used, as a fraction of a step from scratch."""

    step_ms: float
    over_teacher: float


def measure_costs(
    names: Iterable[str], student: Variant, teacher: Variant, batch: FlowBatch, rounds: int, progress: ProgressCallback
) -> dict[str, LossCost]:
    """Time a training step with each loss, from scratch (`none`), and with a teacher that is not used (`teacher`).

    The losses take turns, so that other work on the machine slows all of them equally.
    """
    every = (NO_DISTILLATION, TEACHER_ALONE, *names)
    strategies = {name: _strategy_for(name, student, teacher, batch) for name in every}
    times: dict[str, list[float]] = {name: [] for name in strategies}
    for number in range(rounds + 1):
        for name, strategy in strategies.items():
            times[name].append(_time_step(strategy, batch))
        progress(number, rounds)
    times = {name: own[1:] for name, own in times.items()}  # the first round warms up
    found = {}
    for name, own in times.items():
        rows = zip(own, times[TEACHER_ALONE], times[NO_DISTILLATION], strict=True)
        extra = median((mine - alone) / scratch for mine, alone, scratch in rows)
        found[name] = LossCost(round(1e3 * median(own), 1), round(extra, 3))
    return found


def recorded_costs() -> dict[str, Any]:
    """The costs measured for this release: `measured` (on which machine) and `costs` by loss."""
    return dict(yaml.safe_load(resources.files(bpfn_cli.resources).joinpath(RECORD).read_text(encoding="utf-8")))


def loss_list() -> dict[str, Any]:
    """All losses and strategies as plain values; `extra_cost` is null for a loss that was not measured."""
    record = recorded_costs()
    losses = [
        {"name": name, "kind": kind.kind, "compares": kind.card.compares, "adapters": kind.card.adapters}
        | {"extra_cost": record["costs"].get(name, {}).get("over_teacher"), "source": kind.card.source}
        for name, kind in LOSSES.items()
    ]
    strategies = [{"name": name, "does": kind.card.does} for name, kind in STRATEGIES.items()]
    return {"losses": losses, "strategies": strategies, "cost_measured": record["measured"]}


class _TeacherAlone(PlainStrategy):
    """From scratch, with a teacher whose output is not used."""

    def terms(self, batch: FlowBatch) -> Terms:
        assert self.teacher is not None
        output = self.run(self.student, batch)
        self.teacher(batch, output)
        return self.weighted_terms(self.objective, output, None, batch)


def _strategy_for(name: str, student: Variant, teacher: Variant, batch: FlowBatch) -> Strategy:
    points, device = batch.pc1.shape[1], batch.pc1.device
    losses = [] if name in (NO_DISTILLATION, TEACHER_ALONE) else [name]
    objective = build_losses(losses, student, teacher, {"calibration_step": 0}).to(device)
    working = None if name == NO_DISTILLATION else Teacher(build_model(teacher, points).to(device))
    if working is not None:
        objective.prepare(working.passes(lambda: iter([batch])))
    kind = _TeacherAlone if name == TEACHER_ALONE else PlainStrategy
    return kind(build_model(student, points).to(device), working, objective, weight_decay=0, clip_norm=None)


def _time_step(strategy: Strategy, batch: FlowBatch) -> float:
    if strategy.teacher is not None:
        strategy.teacher.forget()
    started = perf_counter()
    strategy.step(batch, 1e-3)
    if batch.pc1.device.type == "cuda":
        torch.cuda.synchronize(batch.pc1.device)
    return perf_counter() - started
