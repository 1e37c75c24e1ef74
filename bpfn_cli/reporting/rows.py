# SPDX-License-Identifier: MIT
"""What the rows of a report are about: runs, their evaluations and other weights; and which of them share a table."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from bpfn_cli.data.datasets.base import stored_split
from bpfn_cli.history import Step
from bpfn_cli.metrics.result import MODEL, NEAREST_NEIGHBOR, TEACHER, ZERO_FLOW, EvaluationResult
from bpfn_cli.reporting.methods import method_rank
from bpfn_cli.reporting.tables import Column, Row, Value, dataset_title, reference_row, row_of
from bpfn_cli.runs.record import RunRecord
from bpfn_cli.runs.results import Run
from bpfn_cli.structures import MAX_DEPTH_M

ROUNDING = 1e-4  # by which baselines of one protocol may differ between machines, relative


class Protocol(NamedTuple):
    """What two results must share to stand in one table."""

    dataset: str
    split: str
    scenes: int
    points: int
    sampling_seed: int
    data_sha256: str
    parts: int = 0  # points that the network sees at a time; 0: all
    region: str = ""  # other than the usual one of the dataset

    @classmethod
    def from_evaluation(cls, evaluation: EvaluationResult) -> Protocol:
        data, parts = evaluation.dataset, evaluation.parts or 0
        region = "square" if data.region == "square" else ""
        return cls(data.kind, data.split, data.scenes, evaluation.points, evaluation.seed, data.sha256, parts, region)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; `parts` and `region` only where they are not the usual ones."""
        return {name: value for name, value in self._asdict().items() if name not in ("parts", "region") or value}

    @property
    def title(self) -> str:
        scenes = f"{dataset_title(self.dataset)}, {self.split} split, {self.scenes} scenes"
        if self.dataset == "lidar_logs":
            scenes += ", 70 x 70 m" if self.region else f", within {MAX_DEPTH_M:g} m"
        return f"{scenes}, {self.points} points" + (f" in parts of {self.parts}" if self.parts else "")


@dataclass(frozen=True)
class RunRow:
    """A row about a run."""

    run: Run

    @property
    def record(self) -> RunRecord:
        return self.run.record

    @property
    def method(self) -> str:
        return "teacher" if self.record.role == "teacher" else self.record.method

    @property
    def state(self) -> str:
        return "finished" if self.run.complete else f"incomplete ({self.record.state})"

    @property
    def progress(self) -> str | None:
        """The last validated epoch of an incomplete run and its EPE3D in metres, such as "epoch 50: 0.0492"."""
        epoch = None if self.run.complete else max(self.run.curve, default=None)
        return None if epoch is None else f"epoch {epoch}: {self.run.curve[epoch]:.4f}"

    @property
    def train_minutes(self) -> float | None:
        return None if self.record.train_seconds is None else self.record.train_seconds / 60

    @property
    def trained_on(self) -> str:
        """Dataset, fraction, number of scenes and of points."""
        data = self.record.data
        fraction = "" if data.fraction is None or data.fraction == 1 else f" {_fraction(data.fraction)}"
        scenes = f"{data.train_scenes - data.held_out_scenes} {'test ' * (self.record.learned_from == 'test')}scenes"
        return f"{dataset_title(data.source_kind)}{fraction}, {scenes}, {self.record.points} points"

    @property
    def is_ranked(self) -> bool:
        return self.run.complete and self.record.role == "student"

    def row(self, columns: Sequence[Column]) -> Row:
        return row_of(columns, self, "" if self.run.complete else "incomplete", self.is_ranked)


@dataclass(frozen=True)
class Planned:
    """A training without a run. name: of the run folder it will have. epochs: None: decided when it starts."""

    name: str
    variant: str
    method: str
    seed: int
    epochs: int | None

    def row(self, columns: Sequence[Column]) -> Row:
        known: dict[str, Value] = {"model": self.variant, "method": self.method, "state": "planned", "run": self.name}
        return reference_row(columns, (), "incomplete", **known, seed=self.seed, epochs=self.epochs)


class Measured(ABC):
    """What rows about an evaluation have in common. predictor: whose errors the row has."""

    evaluation: EvaluationResult
    predictor: ClassVar[str] = MODEL

    @property
    @abstractmethod
    def names(self) -> dict[str, str]:
        """Cells: model, method and run."""

    @abstractmethod
    def row(self, columns: Sequence[Column]) -> Row: ...

    @property
    def protocol(self) -> Protocol:
        return Protocol.from_evaluation(self.evaluation)

    @property
    def zero_flow(self) -> float:
        """EPE3D of zero flow; 0: not measured."""
        row = self.evaluation.row(ZERO_FLOW)
        return 0.0 if row is None else row.epe3d


class Outside(Measured):
    """A row about weights that belong to no run."""

    def row(self, columns: Sequence[Column]) -> Row:
        return reference_row(columns, self.evaluation.row(self.predictor) or (), "", **self.names)


@dataclass(frozen=True)
class OtherWeights(Outside):
    """Weights that were evaluated by themselves."""

    evaluation: EvaluationResult

    @property
    def names(self) -> dict[str, str]:
        checkpoint = self.evaluation.checkpoint
        return {"model": checkpoint.variant, "method": "given weights", "run": Path(checkpoint.path).name}

    @property
    def history(self) -> tuple[Step, ...]:
        """The steps that made them; none if they are not known."""
        return self.evaluation.checkpoint.history


@dataclass(frozen=True)
class OutsideTeacher(Outside):
    """A teacher that was evaluated together with its student."""

    evaluation: EvaluationResult
    variant: str
    sha256: str

    predictor = TEACHER

    @property
    def names(self) -> dict[str, str]:
        return {"model": self.variant, "method": "teacher", "run": self.sha256[:8]}


@dataclass(frozen=True)
class Result(RunRow, Measured):
    """A row about a run and one of its evaluations."""

    evaluation: EvaluationResult

    @property
    def names(self) -> dict[str, str]:
        return {"model": self.record.variant, "method": self.method, "run": self.run.name}

    def metric(self, name: str) -> float | None:
        """One of the six metrics of the network."""
        return getattr(self.evaluation.model, name)

    @property
    def has_learned(self) -> bool:
        """Whether it beats what needs no training."""
        trivial = (self.evaluation.row(name) for name in (ZERO_FLOW, NEAREST_NEIGHBOR))
        return all(row is None or self.evaluation.model.epe3d < row.epe3d for row in trivial)

    @property
    def is_deployed(self) -> bool:
        """Whether the weights that the run deploys were measured, not others of its checkpoints."""
        return self.record.weights_sha256 in (None, self.evaluation.checkpoint.sha256)

    @property
    def is_final_test(self) -> bool:
        """Whether it is the test at the end of the training, which also measured the teacher, or repeats it."""
        known = self.record.epe3d
        return known is not None and math.isclose(known, self.evaluation.model.epe3d, rel_tol=ROUNDING)

    @property
    def is_training_error(self) -> bool:
        """Whether it learned from scenes of the evaluation."""
        tested, learned = self.evaluation.dataset, self.record.learned_from
        learns = tested.split == "all" or stored_split(tested.split) == stored_split(learned)
        return learns and tested.kind == self.record.data.source_kind

    @property
    def is_ranked(self) -> bool:
        return super().is_ranked and self.has_learned and not self.is_training_error

    @property
    def trained_on(self) -> str:
        """As for a run, without the number of points if it is that of the evaluation."""
        return super().trained_on.removesuffix(f", {self.evaluation.points} points")

    @property
    def teacher(self) -> str | None:
        teacher = self.record.teacher
        source = f" ({teacher.run})" if teacher and teacher.run else ""
        return f"{teacher.variant}{source}" if teacher else None

    @property
    def gain(self) -> float | None:
        """Percent by which EPE3D is below that of the best baseline; None for an incomplete run."""
        gain = self.evaluation.relative_gain
        return 100 * gain if gain is not None and self.run.complete else None


M = TypeVar("M", bound=Measured)


def results_of(run: Run) -> list[Result]:
    """One for each evaluation of a run; a repeated evaluation counts once."""
    found = {(Protocol.from_evaluation(one), one.checkpoint.which, one.rows): one for one in run.evaluations}
    return [Result(run, evaluation) for evaluation in found.values()]


def tables_of(runs: Sequence[Run], others: Sequence[EvaluationResult]) -> list[list[Measured]]:
    """All results, in groups that may share a table, see `comparable`."""
    results: list[Measured] = [result for run in runs for result in results_of(run)]
    return comparable([*results, *map(OtherWeights, others)])


def comparable(results: Sequence[M]) -> list[list[M]]:
    """Groups of results that may share a table: they have one protocol, and equal errors of zero flow.

    Those depend on the scenes alone, so they differ where two datasets were taken for one.
    """
    groups: list[list[M]] = []
    for one in sorted(results, key=lambda one: (one.protocol, one.zero_flow)):
        last = groups[-1][0] if groups else None
        if last and last.protocol == one.protocol and one.zero_flow <= last.zero_flow * (1 + ROUNDING):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def in_order(group: Sequence[Measured]) -> Iterator[Measured]:
    """The rows of the networks: teachers that no run trained, other weights that belong to none, and the runs."""
    results = [one for one in group if isinstance(one, Result)]
    teachers = {
        teacher.sha256: OutsideTeacher(one.evaluation, teacher.variant, teacher.sha256)
        for one in reversed(results)
        if (teacher := one.record.teacher) and one.evaluation.row(TEACHER)
    }
    yield from (teachers[sha256] for sha256 in sorted(teachers))
    for one in group:
        if isinstance(one, OtherWeights) and one.evaluation.checkpoint.sha256 not in teachers:
            yield one
    yield from sorted(results, key=_place)


def _place(one: Result) -> tuple[Any, ...]:
    """Finished runs first; among these teachers, then scratch, then the other methods."""
    record = one.record
    kind = (not one.run.complete, record.role != "teacher", method_rank(record.method), record.method)
    return *kind, record.variant, one.trained_on, record.seed, one.run.name, one.evaluation.checkpoint.which


def method_label(record: RunRecord) -> str:
    """The method, with its control in words, such as "bihint, random teacher"."""
    if record.control is None:
        return record.method
    method = re.sub(r"\+(random-teacher|shuffled-teacher|random-adapter)$", "", record.method)
    return f"{method}, {record.control.replace('same_width', 'same-width').replace('_', ' ')}"


def _fraction(value: float) -> str:
    near = Fraction(value).limit_denominator(100)
    is_one_nth = near.numerator == 1 and abs(float(near) - value) < 1e-9
    return f"1/{near.denominator}" if is_one_nth else f"{100 * value:.3g} %"
