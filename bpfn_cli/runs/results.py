# SPDX-License-Identifier: MIT
"""The results of runs: `run.json` with `evaluations/*.json`, and `metrics.jsonl`, read without trusting any."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from bpfn_cli.errors import DataError, printable
from bpfn_cli.metrics.result import Amount, EvaluationResult, Positive, Schema
from bpfn_cli.runs.listing import find_runs
from bpfn_cli.runs.record import EVALUATIONS, LARGEST_FILE, METRICS, RunRecord, read_schema


@dataclass(frozen=True)
class Run:
    """A run and its evaluations; `name` is that of the folder, which a user may have renamed.

    curve: validation EPE3D in metres by epoch, counted from 1; only of validated epochs. path: of the folder.
    """

    name: str
    record: RunRecord
    evaluations: tuple[EvaluationResult, ...]
    curve: Mapping[int, float]
    path: Path

    @property
    def complete(self) -> bool:
        return self.record.is_finished

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the lowest validation EPE3D; None: there was no validation."""
        return min(self.curve, key=lambda epoch: self.curve[epoch], default=None)


@dataclass(frozen=True)
class RunResults:
    """All runs of a folder, oldest first, and one line for everything that could not be read.

    others: evaluations of weights that belong to no run.
    """

    folder: Path
    runs: tuple[Run, ...]
    problems: tuple[str, ...]
    others: tuple[EvaluationResult, ...] = ()


def read_runs(folder: Path) -> RunResults:
    """Read the runs of a folder. Raises: as `find_runs`."""
    found = find_runs(folder)
    problems = list(found.problems)
    runs = [
        Run(
            run.path.absolute().name, run.record, _evaluations(run.path, problems), validation_curve(run.path), run.path
        )
        for run in found.runs
    ]
    others = () if any(run.path == folder for run in found.runs) else _evaluations(folder, problems)
    return RunResults(folder, tuple(_with_teachers(runs)), tuple(problems), others)


class _Epoch(Schema):
    """What is read of a line of `metrics.jsonl`; EPE3D in metres."""

    epoch: Positive
    validation_epe3d: Amount | None = None


def validation_curve(run: Path) -> dict[int, float]:
    """As `Run.curve`; unreadable lines are left out; a missing or oversized file gives no curve."""
    found = {}
    for line in _metric_lines(run):
        with contextlib.suppress(ValidationError):
            known = _Epoch.model_validate_json(line)
            if known.validation_epe3d is not None:
                found[known.epoch] = known.validation_epe3d
    return found


@dataclass(frozen=True)
class MetricCurves:
    """All numbers of `metrics.jsonl`: name -> epoch, counted from 1 -> value. omitted: names of NaN and infinity."""

    values: Mapping[str, Mapping[int, float]]
    omitted: tuple[str, ...] = ()


def metric_curves(run: Path) -> MetricCurves:
    """The curves of a run folder; what cannot be read is left out, as in `validation_curve`."""
    found: dict[str, dict[int, float]] = {}
    omitted = dict[str, None]()
    for line in _metric_lines(run):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        epoch = values.pop("epoch", None) if isinstance(values, dict) else None
        if not isinstance(epoch, int) or isinstance(epoch, bool):
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                if math.isfinite(value):
                    found.setdefault(name, {})[epoch] = float(value)
                else:
                    omitted[name] = None
    return MetricCurves(found, tuple(omitted))


def _metric_lines(run: Path) -> list[bytes]:
    path = run / METRICS
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size <= LARGEST_FILE:
            return path.read_bytes().splitlines()
    return []


def _with_teachers(runs: list[Run]) -> Iterator[Run]:
    """A network trained alone that others learned from is their teacher, whatever its role was when it started."""
    used = {run.record.teacher.sha256 for run in runs if run.record.teacher}
    for run in runs:
        is_teacher = run.record.method == "scratch" and run.record.weights_sha256 in used
        yield replace(run, record=run.record.changed(role="teacher")) if is_teacher else run


def _evaluations(run: Path, problems: list[str]) -> tuple[EvaluationResult, ...]:
    folder = run / EVALUATIONS
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except FileNotFoundError:
        return ()
    except OSError as error:
        problems.append(f"{printable(folder)}: cannot be read ({error.strerror}); its results are left out")
        return ()
    found, advice = [], "this evaluation is left out: repeat it with `bpfn eval`"
    for path in paths:
        try:
            found.append(read_schema(path, EvaluationResult, advice))
        except DataError as error:
            problems.append(str(error))
    return tuple(found)
