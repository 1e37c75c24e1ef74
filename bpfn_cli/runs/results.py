# SPDX-License-Identifier: MIT
"""Reading what runs left on disk: `run.json` and `evaluations/*.json`, without trusting either."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors
from bpfn_cli.metrics.result import EvaluationResult as Evaluation

LARGEST_FILE = 1 << 26  # bytes; a real result has 160 a scene
RUN_FILE = "run.json"
TRACES_OF_A_RUN = ("config.yaml", "command.txt", "metrics.jsonl", "checkpoints")

Name = Annotated[str, Field(min_length=1, max_length=255)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Positive = Annotated[int, Field(ge=1, le=1 << 53)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e12)]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class TrainingData(_Schema):
    """What a run was trained on."""

    source_kind: Name
    train_scenes: Count
    held_out_scenes: Count = 0
    fraction: Annotated[float, Field(gt=0, le=1)] | None


class TeacherTest(_Schema):
    """A teacher's own metrics, by the evaluation that measured its student or itself."""

    epe3d: Amount
    acc3d_strict: Share | None = None
    acc3d_relax: Share | None = None
    outliers3d: Share | None = None
    epe2d: Amount | None = None
    acc2d: Share | None = None


class Teacher(_Schema):
    """Whom a student learned from; `run` is None for a checkpoint from elsewhere. test: its own metrics."""

    run: Name | None
    variant: Name
    sha256: Name
    test: TeacherTest | None = None


class Complexity(_Schema):
    """The size of a network: elements, module-convention MACs of one pair of `points` points, bytes."""

    points: Positive
    parameters: Positive
    unused_parameters: Count
    module_macs: Count
    checkpoint_bytes: Count


class TrainRecipe(_Schema):
    """Keys of a recipe under `train` that a reader of the numbers must know."""

    precision: str = "32"


class RecipeRecord(_Schema):
    """Of a recipe."""

    train: TrainRecipe = TrainRecipe()


class Resumption(_Schema):
    """When a run was gone on with: what had changed since it began."""

    differences: list[str] = []


class RunRecord(_Schema):
    """The keys of `run.json` that a report uses."""

    format: Literal[1]
    state: Literal["running", "finished", "interrupted", "failed"]
    reason: Annotated[str, Field(max_length=4096)] | None
    role: Literal["teacher", "student"]
    variant: Name
    method: Name
    seed: int
    points: Positive
    epochs: Count
    epochs_done: Count
    train_seconds: Amount | None
    weights_sha256: Name | None = None
    data: TrainingData
    teacher: Teacher | None
    complexity: Complexity | None
    started: datetime
    selected_on: Literal["held_out", "test"] = "held_out"
    recipe: RecipeRecord = RecipeRecord()
    resumed: list[Resumption] = []
    cell: Name | None = None
    control: Name | None = None


@dataclass(frozen=True)
class Run:
    """A run folder; `name` is the folder's name, which a user may have changed."""

    name: str
    record: RunRecord
    evaluations: tuple[Evaluation, ...]

    @property
    def complete(self) -> bool:
        return self.record.state == "finished"


@dataclass(frozen=True)
class RunResults:
    """All runs of a folder, oldest first, and one line for each thing that could not be read."""

    folder: Path
    runs: tuple[Run, ...]
    problems: tuple[str, ...]


S = TypeVar("S", bound=BaseModel)


def read_runs(folder: Path) -> RunResults:
    """Read every run inside `folder`, or `folder` itself if it is a run. A missing folder has no runs.

    Raises: DataError: `folder` is a file. DiskError: it cannot be listed.
    """
    problems: list[str] = []
    runs = []
    for path in _run_folders(folder, problems):
        try:
            record = _read(path / RUN_FILE, RunRecord, "the run is left out: repeat it or delete its folder")
        except DataError as error:
            problems.append(str(error))
            continue
        runs.append(Run(path.absolute().name, record, _evaluations(path / "evaluations", problems)))
    return RunResults(folder, tuple(_with_teachers(sorted(runs, key=_by_start))), tuple(problems))


def _with_teachers(runs: list[Run]) -> Iterator[Run]:
    """A network trained alone that others learned from is their teacher, however it was called when it began."""
    used = {run.record.teacher.sha256 for run in runs if run.record.teacher}
    for run in runs:
        is_teacher = run.record.method == "scratch" and run.record.weights_sha256 in used
        yield replace(run, record=run.record.model_copy(update={"role": "teacher"})) if is_teacher else run


def _by_start(run: Run) -> tuple[datetime, str]:
    started = run.record.started
    return started if started.tzinfo else started.replace(tzinfo=timezone.utc), run.name


def _run_folders(folder: Path, problems: list[str]) -> list[Path]:
    with disk_errors(folder):
        if not folder.exists():
            return []
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: is a file; name the folder that holds the runs")
        if (folder / RUN_FILE).exists():
            return [folder]
        children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    found: dict[tuple[int, int], Path] = {}
    # A link such as `latest` is counted only where it leads out of the folder: real folders come first.
    for child in sorted(children, key=lambda path: (path.is_symlink(), path.name)):
        try:
            status = child.stat()
            is_run = stat.S_ISDIR(status.st_mode) and _looks_like_a_run(child, problems)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{printable(child)}: cannot be read ({error.strerror}); left out")
            continue
        if is_run:
            found.setdefault((status.st_dev, status.st_ino), child)
    return list(found.values())


def _looks_like_a_run(folder: Path, problems: list[str]) -> bool:
    names = {child.name for child in folder.iterdir()}
    if RUN_FILE not in names and names.intersection(TRACES_OF_A_RUN):
        problems.append(f"{printable(folder / RUN_FILE)}: is missing; the run is left out: repeat it or delete it")
    return RUN_FILE in names


def _evaluations(folder: Path, problems: list[str]) -> tuple[Evaluation, ...]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except FileNotFoundError:
        return ()
    except OSError as error:
        problems.append(f"{printable(folder)}: cannot be read ({error.strerror}); its results are left out")
        return ()
    found = []
    for path in paths:
        try:
            found.append(_read(path, Evaluation, "this evaluation is left out: repeat it with `bpfn eval`"))
        except DataError as error:
            problems.append(str(error))
    return tuple(found)


def _read(path: Path, schema: type[S], advice: str) -> S:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{printable(path)}: is not a regular file; {advice}")
        if status.st_size > LARGEST_FILE:
            raise DataError(f"{printable(path)}: {status.st_size} bytes are no result file; {advice}")
        return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}); {advice}") from error
    except ValidationError as error:
        raise DataError(f"{printable(path)}: {_explain(error)}; {advice}") from error


def _explain(error: ValidationError) -> str:
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return printable(f"{key}: {first['msg']}{more}" if key else f"{first['msg']}{more}")
