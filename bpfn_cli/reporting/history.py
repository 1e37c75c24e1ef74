# SPDX-License-Identifier: MIT
"""The history tables: what each step from a teacher to a small network cost in size and accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfn_cli.history import Step
from bpfn_cli.metrics.result import TEACHER, EvaluationResult
from bpfn_cli.reporting.rows import Protocol, results_of
from bpfn_cli.reporting.tables import Column, Table, row_of
from bpfn_cli.runs.results import Run

Errors = dict[tuple[str, Protocol], float]  # EPE3D in metres by sha256 of the weights and what it was measured on


@dataclass(frozen=True)
class HistoryRow:
    """A row about a step. first: of its history. test_m: EPE3D by the evaluation that the table is about."""

    step: Step
    first: Step
    test_m: float | None

    def percent(self, name: str) -> float | None:
        """A size in percent of that of the first step."""
        whole: int = getattr(self.first, name)
        comparable = name != "macs" or self.step.points == self.first.points
        return 100 * getattr(self.step, name) / whole if whole and comparable else None


# For rows about a `HistoryRow`.
COLUMNS = [
    Column("step", "Step", lambda row: row.step.step),
    Column("network", "Network", lambda row: row.step.network),
    Column("parameters_m", "Params", lambda row: row.step.parameters / 1e6, ".2f", "M"),
    Column("parameters_percent", "Params left", lambda row: row.percent("parameters"), ".0f", "%", detail=2),
    Column("macs_g", "MACs", lambda row: row.step.macs / 1e9, ".2f", "G"),
    Column("macs_percent", "MACs left", lambda row: row.percent("macs"), ".0f", "%", detail=2),
    Column("macs_points", "Points", lambda row: row.step.points, "d", detail=4),
    Column("file_mb", "File", lambda row: row.step.bytes / 1e6, ".2f", "MB"),
    Column("file_percent", "File left", lambda row: row.percent("bytes"), ".0f", "%", detail=2),
    Column("epe3d", "EPE3D when made", lambda row: row.step.epe3d_m, ".4f", "m", detail=1),
    Column("on", "on", lambda row: row.step.on, detail=3),
    Column("moved", "Flow moved", lambda row: row.step.moved_m, ".4f", "m", detail=1),
    Column("test_epe3d", "EPE3D", lambda row: row.test_m, ".4f", "m", detail=1),
]
NOTES = [
    "EPE3D when made: as the command that made the network measured it; compare only values on the same scenes. EPE3D: "
    "by the evaluation in the title, of networks that were evaluated so.",
    "Left: in percent of the first step. File: as it was written, or of a checkpoint. Flow moved: mean distance of the "
    "flow from that of the step before, on a rendered scene.",
]


@dataclass(frozen=True)
class History:
    """The steps of a network, and the evaluations of the last one; their protocols are the tables."""

    name: str
    steps: tuple[Step, ...]
    protocols: tuple[Protocol, ...]

    @property
    def weights(self) -> tuple[str | None, ...]:
        return tuple(step.sha256 for step in self.steps)

    def tables(self, errors: Errors) -> Iterator[Table]:
        for protocol in self.protocols or (None,):
            tested = [errors.get((step.sha256, protocol)) if step.sha256 and protocol else None for step in self.steps]
            where = f": {protocol.title}" if protocol else ""
            context = {"run": self.name, **(protocol.as_dict() if protocol else {})}
            rows = [
                row_of(COLUMNS, HistoryRow(step, self.steps[0], test_m))
                for step, test_m in zip(self.steps, tested, strict=True)
            ]
            yield Table("history", f"History of {self.name}{where}", COLUMNS, rows, NOTES, context)


def history_tables(runs: Sequence[Run], others: Sequence[EvaluationResult]) -> list[Table]:
    """A table for each network that has steps: of runs that started from such a network, and of other weights.

    A history that goes on in another one has no table of its own.
    """
    histories, errors = [*_of_runs(runs), *_of_others(others)], _errors(runs, others)
    longest = [one for one in histories if not any(_goes_on(one, other) for other in histories)]
    return [table for one in longest for table in one.tables(errors)]


def history_table(name: str, steps: Sequence[Step]) -> Table:
    """The steps of one network, as its checkpoint says. Args: name: of the file."""
    return next(History(name, tuple(steps), ()).tables({}))


def _goes_on(one: History, other: History) -> bool:
    return len(one.steps) < len(other.steps) and other.weights[: len(one.steps)] == one.weights


def _of_runs(runs: Sequence[Run]) -> Iterator[History]:
    for run in runs:
        if run.record.history and run.record.trained:
            protocols = dict.fromkeys(result.protocol for result in results_of(run))
            yield History(run.name, (*run.record.history, run.record.trained), tuple(protocols))


def _of_others(others: Sequence[EvaluationResult]) -> Iterator[History]:
    found: dict[str, History] = {}
    for one in others:
        if len(steps := one.checkpoint.history) > 1:
            known, protocol = found.get(one.checkpoint.sha256), Protocol.from_evaluation(one)
            protocols = (*known.protocols, protocol) if known else (protocol,)
            found[one.checkpoint.sha256] = History(Path(one.checkpoint.path).name, steps, protocols)
    yield from found.values()


def _errors(runs: Sequence[Run], others: Sequence[EvaluationResult]) -> Errors:
    found: Errors = {}
    for run in runs:
        for one in run.evaluations:
            protocol, teacher = Protocol.from_evaluation(one), one.row(TEACHER)
            found[one.checkpoint.sha256, protocol] = one.model.epe3d
            if teacher and run.record.teacher:
                found[run.record.teacher.sha256, protocol] = teacher.epe3d
    for one in others:
        found[one.checkpoint.sha256, Protocol.from_evaluation(one)] = one.model.epe3d
    return found
