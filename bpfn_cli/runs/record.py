# SPDX-License-Identifier: MIT
"""`run.json`: the typed record of a run. Only this module reads and writes that file."""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, Field, ValidationError

from bpfn_cli.choices import Selector
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors, write_atomic
from bpfn_cli.history import Step
from bpfn_cli.metrics.result import Amount, Name, Positive, Schema, Share

RECORD_FILE, METRICS, EVALUATIONS, LOCK = "run.json", "metrics.jsonl", "evaluations", ".lock"
LARGEST_FILE = 1 << 26  # bytes

Count = Annotated[int, Field(ge=0, le=1 << 53)]
State = Literal["running", "finished", "interrupted", "failed"]


class TrainingData(Schema):
    """The dataset of a run, see `DataIdentity`, and the number of training scenes that are held out."""

    kind: str = ""
    source_kind: Name
    path: str = ""
    train_scenes: Count
    val_scenes: Count = 0
    held_out_scenes: Count = 0
    fraction: Annotated[float, Field(gt=0, le=1)] | None
    method: str | None = None
    seed: int | None = None
    sha256: str = ""
    written: str = ""


class TeacherTest(Schema):
    """Metrics of a teacher, measured by the same evaluation as those of its student."""

    epe3d: Amount
    acc3d_strict: Share | None = None
    acc3d_relax: Share | None = None
    outliers3d: Share | None = None
    epe2d: Amount | None = None
    acc2d: Share | None = None


class Teacher(Schema):
    """The teacher of a student. run: name of its run folder; None: a checkpoint from elsewhere. EPE3D in metres."""

    run: Name | None
    variant: Name
    path: str = ""
    sha256: Name
    held_out_epe3d: Amount | None = None
    test: TeacherTest | None = None


class Complexity(Schema):
    """Size of a network: parameters, MACs (module convention) of one pair of `points` points, bytes on disk."""

    points: Positive
    parameters: Positive
    unused_parameters: Count
    module_macs: Count
    checkpoint_bytes: Count


class File(Schema):
    """A checkpoint that a run started from."""

    path: str
    sha256: str


class Paths(Schema):
    """What a recipe does not say and `bpfn resume` needs; absolute paths."""

    data: str
    device: str
    test: str | None = None
    teacher: str | None = None
    initial: str | None = None


class TeacherCacheCounts(Schema):
    """Samples found in the teacher cache, samples computed, and why it stopped writing."""

    found: Count = 0
    missed: Count = 0
    problem: str | None = None


class Resumption(Schema):
    """One resumption: epochs that were done, and what had changed since the run started."""

    epochs_done: Count = 0
    differences: tuple[str, ...] = ()


class Versions(Schema):
    """What the numbers of a run depend on besides its recipe."""

    device: str | None = None
    bpfn: str | None = None
    python: str | None = None
    torch: str | None = None
    numpy: str | None = None
    platform: str | None = None
    threads: Annotated[int, Field(ge=0, le=1 << 12)] | None = None
    processes: Annotated[int, Field(ge=1, le=1 << 10)] | None = None


class _TrainKeys(Schema):
    """Keys of a recorded recipe's `train` that listings and resumptions read."""

    validation_calendar: str = "every"
    validate_every: Positive = 1
    precision: str | int = "32"


class _DataKeys(Schema):
    """As `_TrainKeys`, of `data`."""

    split: str = "train"


class _PlanKeys(Schema):
    """As `_TrainKeys`, of a plan."""

    seconds_per_epoch: Amount | None = None


def _checked_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    _check_types(_TrainKeys, recipe.get("train", {}), "train.")
    _check_types(_DataKeys, recipe.get("data", {}), "data.")
    if not isinstance(recipe.get("loss", []), list | tuple):
        raise ValueError("loss: not a list")
    return recipe


def _checked_plan(plan: dict[str, Any]) -> dict[str, Any]:
    _check_types(_PlanKeys, plan)
    return plan


def _check_types(schema: type[Schema], values: Any, prefix: str = "") -> None:
    """Raises: ValueError: in one line, with the key."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = prefix + ".".join(map(str, first["loc"]))
        raise ValueError(f"{key.rstrip('.')}: {first['msg']}") from None


class RunRecord(Schema):
    """Everything `run.json` says about a run.

    Attributes: reason: why the run stopped. failed_by: class of the error that ended it.
        method: `scratch`, `bihint`, ... as `Recipe.method` or a study names it. teacher_key: identifies a network that
            can serve as the teacher of a recipe.
        epoch_seconds: of each epoch, without validation. epe3d: on the test split, best_validation_epe3d: metres.
        selected_by: what chose the best checkpoint on the scenes `selected_on`; without labels not EPE3D.
        history: the steps that made the checkpoint it started from; trained: the step that this run has added to them.
        recipe: the keys of the recipe that its numbers depend on. code: git commits of bpfn and the working folder.
        cell, control, cell_key, times_as_long, slowest_of: set for a run of a study.
    """

    format: Literal[1] = 1
    name: str = ""
    command: str = ""
    state: State = "running"
    reason: Annotated[str, Field(max_length=4096)] | None = None
    failed_by: str | None = None
    role: Literal["teacher", "student"]
    variant: Name
    method: Name
    seed: int
    points: Positive
    epochs: Count
    epochs_done: Count = 0
    epoch_seconds: tuple[Amount, ...] = ()
    train_seconds: Amount | None = None
    prepare_seconds: Amount | None = None
    validation_seconds: Amount | None = None
    best_validation_epe3d: Amount | None = None
    epe3d: Amount | None = None
    has_checkpoints: bool = False
    selected_on: Literal["held_out", "test"] = "held_out"
    selected_by: Selector = "epe3d"
    weights_sha256: Name | None = None
    data: TrainingData
    teacher: Teacher | None = None
    teacher_key: str | None = None
    teacher_forwards: Count | None = None
    teacher_cache: TeacherCacheCounts | None = None
    initial: File | None = None
    history: tuple[Step, ...] = ()
    trained: Step | None = None
    complexity: Complexity | None = None
    recipe: Annotated[dict[str, Any], AfterValidator(_checked_recipe)] = Field(default_factory=dict)
    paths: Annotated[Paths | None, Field(validation_alias=AliasChoices("paths", "place"))] = None
    plan: Annotated[dict[str, Any], AfterValidator(_checked_plan)] | None = None
    resumed: tuple[Resumption, ...] = ()
    cell: Name | None = None
    control: Name | None = None
    cell_key: str | None = None
    times_as_long: Amount | None = None
    slowest_of: tuple[str, ...] | None = None
    versions: Versions = Versions()
    code: dict[str, Any] = Field(default_factory=dict)
    started: datetime
    finished: datetime | None = None

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"

    @property
    def can_resume(self) -> bool:
        """Whether it was stopped, by something other than its own numbers."""
        return not self.is_finished and not self.failed_by_numbers

    @property
    def failed_by_numbers(self) -> bool:
        """Whether NaN or infinity ended the run, so that resuming it cannot help."""
        return self.state == "failed" and self.failed_by == "NonFiniteError"

    @property
    def learned_from(self) -> str:
        """The split that it was trained on: train or test."""
        return str(self.recipe.get("data", {}).get("split", "train"))

    @property
    def precision(self) -> str:
        """Precision of the large matrix products in training: 32, bf16 or 16."""
        return str(self.recipe.get("train", {}).get("precision", "32"))

    def changed(self, **changes: Any) -> RunRecord:
        """The same record with some entries replaced; they are validated."""
        return RunRecord.model_validate({**dict(self), **changes})

    def write(self, folder: Path) -> None:
        """Write `run.json`, atomically. Raises: DiskError."""
        write_atomic(folder / RECORD_FILE, (self.model_dump_json(indent=2) + "\n").encode())


def read_record(folder: Path) -> RunRecord:
    """The record of a run folder. Raises: UsageError: not a run folder. DataError: `run.json` is damaged."""
    path = folder / RECORD_FILE
    with disk_errors(path):
        if not path.exists():
            raise UsageError(f"{printable(folder)}: not a run folder (it has no run.json); `bpfn runs` lists all runs")
    return read_schema(path, RunRecord, "restore it, repeat the run or delete its folder")


S = TypeVar("S", bound=Schema)


def read_schema(path: Path, schema: type[S], advice: str) -> S:
    """Read a JSON file that may be damaged or hostile. Raises: DataError: names the key, with `advice`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            problem = "not a regular file"
        elif status.st_size > LARGEST_FILE:
            problem = f"too large for a results file ({status.st_size} bytes)"
        else:
            return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False, include_input=False)
        key = "".join(f"{part}." for part in first["loc"])
        problem = f"damaged: {key[:-1]}: {first['msg']}" if key else f"damaged: {first['msg']}"
        problem += f" (and {len(others)} more)" if others else ""
    raise DataError(f"{printable(path)}: {printable(problem)}; {advice}")
