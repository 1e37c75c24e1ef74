# SPDX-License-Identifier: MIT
"""Find runs: all runs of a folder, how far each is, and the checkpoint that is wanted."""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors
from bpfn_cli.locks import is_held
from bpfn_cli.recipes.schedule import is_validation_epoch
from bpfn_cli.runs.record import EVALUATIONS, LOCK, METRICS, RECORD_FILE, RunRecord, read_record
from bpfn_cli.shipped import STUDENT

TRACES_OF_A_RUN = ("config.yaml", "command.txt", "metrics.jsonl", "checkpoints")
Traces = frozenset[tuple[str, int, int]]
RECENT_EPOCHS = 5  # used to estimate the duration of the next ones


@dataclass(frozen=True)
class FoundRun:
    """A run folder and its record."""

    path: Path
    record: RunRecord

    @property
    def student(self) -> Path:
        return self.path / STUDENT


@dataclass(frozen=True)
class FoundRuns:
    """The runs of a folder, oldest first; folders whose `run.json` is damaged; a line for everything unreadable."""

    runs: tuple[FoundRun, ...]
    damaged: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()


def find_runs(folder: Path) -> FoundRuns:
    """Every run inside `folder`, or `folder` itself if it is a run; none if missing. Raises: DataError, DiskError."""
    problems: list[str] = []
    runs, damaged = [], []
    for path in _run_folders(folder, problems):
        try:
            runs.append(FoundRun(path, read_record(path)))
        except DataError as error:
            problems.append(str(error))
            damaged.append(path)
    return FoundRuns(tuple(sorted(runs, key=_start)), tuple(damaged), tuple(problems))


def is_busy(run: Path) -> bool:
    """Whether a process works on a run folder."""
    return is_held(run / LOCK)


def find_teacher(runs: Path, key: str) -> Path | None:
    """The weights of the newest finished teacher with this key (see `recipes.identity.teacher_key`)."""
    wanted = [run for run in find_runs(runs).runs if run.record.teacher_key == key and run.record.is_finished]
    return next((run.student for run in reversed(wanted) if run.student.is_file()), None)


def latest_checkpoint(runs: Path) -> Path | None:
    """The weights of the newest finished student, or of the newest teacher if there is no student."""
    ready = [run for run in find_runs(runs).runs if run.record.is_finished and run.student.is_file()]
    ready.sort(key=lambda run: run.record.role == "student")
    return ready[-1].student if ready else None


def traces_of(folder: Path) -> Traces:
    """Path, size and time of everything that a report reads; it differs after a run has changed."""
    found = set()
    for run in [folder, *_entries(folder)]:
        for path in [run / RECORD_FILE, run / METRICS, *_entries(run / EVALUATIONS)]:
            with suppress(OSError):
                status = path.stat()
                found.add((str(path), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [Path(entry.path) for entry in os.scandir(folder)]
    return []


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes: state: of the record; or killed: marked as running, but no process works on it; or damaged: run.json is.
        can_resume: whether `bpfn resume` can continue it.
        seconds_left: estimate; None: unknown. epe3d: on the test split, validation_epe3d: the best; metres.
    """

    name: str
    folder: str
    state: str
    reason: str | None = None
    method: str = ""
    variant: str = ""
    role: str = ""
    epochs_done: int = 0
    epochs: int = 0
    seconds_left: float | None = None
    epe3d: float | None = None
    validation_epe3d: float | None = None
    started: str = ""
    can_resume: bool = False


def run_statuses(folder: Path) -> list[RunStatus]:
    """The status of all runs of a folder, oldest first, then damaged ones."""
    found, why = find_runs(folder), "run.json is damaged or from another version of bpfn"
    return [*map(_status, found.runs), *(RunStatus(path.name, str(path), "damaged", why) for path in found.damaged)]


def _status(run: FoundRun) -> RunStatus:
    record, killed = run.record, False
    if record.state == "running" and not is_busy(run.path):
        record = read_record(run.path)  # it may have ended since the first look
        killed = record.state == "running"
    same = ("reason", "method", "variant", "role", "epochs_done", "epochs", "epe3d")
    return RunStatus(
        name=run.path.name,
        folder=str(run.path),
        state="killed" if killed else record.state,
        seconds_left=None if record.is_finished else _seconds_left(record),
        validation_epe3d=record.best_validation_epe3d,
        started=record.started.isoformat(),
        can_resume=record.can_resume and (killed or record.state != "running"),
        **{key: getattr(record, key) for key in same},
    )


def _seconds_left(record: RunRecord) -> float | None:
    recent = record.epoch_seconds[-RECENT_EPOCHS:]
    an_epoch = median(recent) if recent else (record.plan or {}).get("seconds_per_epoch")
    if an_epoch is None:
        return None
    train = record.recipe.get("train", {})
    calendar, every = train.get("validation_calendar", "every"), train.get("validate_every", 1)
    left = range(record.epochs_done, record.epochs)
    validations = sum(is_validation_epoch(epoch, record.epochs, calendar, every) for epoch in left)
    return float(an_epoch * len(left) + validations * (record.validation_seconds or 0))


def _start(run: FoundRun) -> tuple[datetime, str]:
    started = run.record.started
    return started if started.tzinfo else started.replace(tzinfo=timezone.utc), run.path.name


def _run_folders(folder: Path, problems: list[str]) -> list[Path]:
    with disk_errors(folder):
        if not folder.exists():
            return []
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: is a file; name the folder that holds the runs")
        if (folder / RECORD_FILE).exists():
            return [folder]
        children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    found: dict[tuple[int, int], Path] = {}
    # Real folders come first, so that a link such as `latest` counts only if it leads out of the folder.
    for child in sorted(children, key=lambda path: (path.is_symlink(), path.name)):
        try:
            status = child.stat()
            is_run = stat.S_ISDIR(status.st_mode) and _is_run(child, problems)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{printable(child)}: cannot be read ({error.strerror}); left out")
            continue
        if is_run:
            found.setdefault((status.st_dev, status.st_ino), child)
    return list(found.values())


def _is_run(folder: Path, problems: list[str]) -> bool:
    names = {child.name for child in folder.iterdir()}
    if RECORD_FILE not in names and names.intersection(TRACES_OF_A_RUN):
        problems.append(f"{printable(folder / RECORD_FILE)}: missing; the run is left out: repeat it or delete it")
    return RECORD_FILE in names
