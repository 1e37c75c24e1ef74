# SPDX-License-Identifier: MIT
"""The state of a training: everything needed to resume it bit for bit."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from bpfn_cli import distributed
from bpfn_cli.choices import Selector
from bpfn_cli.errors import NonFiniteError
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.rng import keyed_generator
from bpfn_cli.strategies import Strategy, TermRecord
from bpfn_cli.structures import FlowBatch

# What a validation measures, for the progress line.
TITLES: dict[Selector, str] = {
    "epe3d": "EPE3D",
    "teacher_distance": "distance to the teacher",
    "nearest": "distance between the clouds",
}


@dataclass
class EpochLog:
    """Metrics of an epoch's loss terms: means over samples (sums and counts, divided once), and seconds of its steps.

    Gradient shares are those of the step at which they were measured; weights those of the last step.
    """

    sums: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.0

    def add(self, terms: Mapping[str, TermRecord], samples: int) -> None:
        for name, term in terms.items():
            means: dict[str, float | None] = {f"loss_{name}": term.weighted, f"raw_{name}": term.raw}
            means |= {f"raw_{name}_level{level}": value for level, value in term.levels.items()}
            means |= {f"figure_{name}_{figure}": value for figure, value in term.figures.items()}
            means[f"active_{name}"] = term.active
            for key, value in means.items():
                if value is not None:
                    self._count(key, value * samples, samples)
            self.latest[f"weight_{name}"] = term.weight
            if term.gradient_share is not None:
                self.latest[f"gradient_share_{name}"] = term.gradient_share

    def _count(self, key: str, value: float, samples: int) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + value
        self.samples[key] = self.samples.get(key, 0) + samples

    def of_all_processes(self) -> EpochLog:
        whole = EpochLog()
        for other in reversed(distributed.gather(self)):  # the latest values are those of the main process
            for key, value in other.sums.items():
                whole._count(key, value, other.samples[key])
            whole.latest.update(other.latest)
            whole.skipped, whole.seconds = max(whole.skipped, other.skipped), max(whole.seconds, other.seconds)
        return whole

    def figures(self) -> dict[str, float]:
        means = {key: value / self.samples[key] for key, value in self.sums.items() if self.samples[key]}
        return {**means, **self.latest}

    def total(self) -> float:
        return sum(value for key, value in self.figures().items() if key.startswith("loss_"))


@dataclass(eq=False)
class Training:
    """The state of a training. Random draws are functions of seed, epoch, step and scene, so they need no state.

    Attributes: epoch, batch: the next ones, from 0. number: batches since the start of the training.
        selected_by: what a validation measures. best_value: the lowest so far, metres. best: number of its checkpoint.
        steps: batches of an epoch. validated: EPE3D of this epoch. epoch_seconds: of each, without validation.
    """

    strategy: Strategy
    recipe: Recipe
    early_stop: EarlyStop
    steps: int
    say: Callable[[str], None] = lambda text: None
    epoch: int = 0
    batch: int = 0
    number: int = 0
    log: EpochLog = field(default_factory=EpochLog)
    selected_by: Selector = "epe3d"
    best_value: float = float("inf")
    best: int | None = None
    validated: float | None = None
    validation_seconds: float = 0.0
    epoch_seconds: list[float] = field(default_factory=list)

    @property
    def position(self) -> int:
        return self.epoch * self.steps + self.batch

    @property
    def total(self) -> int:
        return self.recipe.train.epochs * self.steps

    @property
    def is_done(self) -> bool:
        return self.epoch >= self.recipe.train.epochs

    def begin_epoch(self) -> None:
        """Start the epoch, or continue it after a restore."""
        epochs = self.recipe.train.epochs
        self.strategy.objective.teacher_share = self.early_stop.share(self.epoch, epochs)
        # In an epoch that is continued, the changes of its start have been made already.
        changed = copy.deepcopy(self.strategy.state_dict()) if self.batch else None
        self.strategy.begin_epoch(self.epoch, epochs)
        if changed is not None:
            self.strategy.load_state_dict(changed)
        else:
            self.log, self.validated = EpochLog(), None

    def rate(self, batch: int) -> float:
        return self.recipe.train.learning_rate(self.epoch * self.steps + batch, self.steps)

    def step(self, batch: FlowBatch) -> None:
        """Learn from a batch; skip it if its loss or gradient is not finite. Raises: NonFiniteError: too many were."""
        started, options = time.monotonic(), self.recipe.train
        every = options.gradient_every
        is_measured = self.batch == 0 and every > 0 and self.epoch % every == 0
        _seed_everything(self.recipe.seed, self.position)
        try:
            terms = self.strategy.step(batch, self.rate(self.batch), is_measured)
            self.log.add(terms, len(batch.names) if batch.share else 0)
        except NonFiniteError as error:
            self.log.skipped += 1
            if self.log.skipped > options.most_skipped:
                many = f"{self.log.skipped} steps of epoch {self.epoch + 1} were skipped (train.most_skipped)"
                raise NonFiniteError(f"{error}; {many}") from error
            self.say(f"skipped step {self.number + 1}, epoch {self.epoch + 1}: {error}")
        self.batch += 1
        self.number += 1
        self.log.seconds += time.monotonic() - started

    def observe(self, value: float, seconds: float) -> None:
        """Record what a validation of the present weights measured, metres, and how long it took."""
        self.validated, self.validation_seconds = value, round(seconds, 3)
        self.early_stop.observe(value)
        if value < self.best_value:
            self.best_value, self.best = value, self.number

    def end_epoch(self) -> dict[str, Any]:
        """Move on to the next epoch; returns the metrics of the one that ended."""
        strategy, self.log = self.strategy, self.log.of_all_processes()
        seconds = round(self.log.seconds, 3)
        record = {"epoch": self.epoch + 1, "lr": self.rate(self.steps - 1), "seconds": seconds, **self.log.figures()}
        record |= {**strategy.objective.scales(), **strategy.figures()}
        if self.log.skipped:
            record["skipped_steps"] = self.log.skipped
        if self.recipe.distillation_losses():
            record["teacher_share"] = strategy.objective.teacher_share
        if self.validated is not None:
            record[f"validation_{self.selected_by}"] = self.validated
        self.epoch_seconds.append(seconds)
        self.epoch, self.batch = self.epoch + 1, 0
        return record

    def where(self) -> str:
        """Where a restored training continues, in a line."""
        epochs = self.recipe.train.epochs
        if self.is_done:
            return f"resuming: all {epochs} epochs are trained"
        if self.batch == self.steps:
            return f"resuming at the end of epoch {self.epoch + 1} of {epochs}"
        return f"resuming at epoch {self.epoch + 1} of {epochs}, batch {self.batch + 1} of {self.steps}"

    def glance(self) -> str:
        """A few numbers for the progress line."""
        found, figures = f"loss {self.log.total():.1f}", self.log.figures()
        if (epe3d := figures.get("figure_supervised_epe3d")) is not None:
            found += f", EPE3D {epe3d:.3f} m"
        return found if self.best is None else f"{found}, validation {TITLES[self.selected_by]} {self.best_value:.3f} m"

    def state_dict(self) -> dict[str, Any]:
        """Everything but the student's weights, which a checkpoint stores separately."""
        strategy, teacher = self.strategy.state_dict(), self.strategy.teacher
        strategy.pop("student")
        position = {"epoch": self.epoch, "batch": self.batch, "number": self.number}
        return {
            **position,
            "strategy": strategy,
            "early_stop": self.early_stop.state_dict(),
            "log": asdict(self.log.of_all_processes()),
            "best": [self.best_value, self.best],
            "epoch_seconds": list(self.epoch_seconds),
            "teacher_counts": None if teacher is None else teacher.counts(),
        }

    def load_state_dict(self, state: Mapping[str, Any], student: Mapping[str, torch.Tensor]) -> None:
        self.epoch, self.number = state["epoch"], state["number"]
        self.batch = min(state["batch"], self.steps)  # fewer steps, if the user allows other data
        self.strategy.load_state_dict({**state["strategy"], "student": student})
        self.early_stop.load_state_dict(state["early_stop"])
        # The log of the main process includes the counts of the others.
        self.log = EpochLog(**state["log"]) if distributed.is_main() else EpochLog(skipped=state["log"]["skipped"])
        self.best_value, self.best = state["best"]
        self.epoch_seconds = list(state["epoch_seconds"])
        if self.strategy.teacher is not None and state["teacher_counts"] is not None:
            self.strategy.teacher.set_counts(state["teacher_counts"])


def _seed_everything(seed: int, step: int) -> None:
    """Make draws from the global generators (dropout, a user's own loss) a function of the step."""
    number = int(keyed_generator("step", seed, step).integers(2**32))
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
