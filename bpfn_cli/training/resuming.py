# SPDX-License-Identifier: MIT
"""Resume a run: all that is needed is its folder."""

import contextlib
import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bpfn_cli.config import read_yaml
from bpfn_cli.device import resolve_device
from bpfn_cli.distributed import from_main, raise_any
from bpfn_cli.errors import CheckpointError, DataError, UsageError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.progress import Progress
from bpfn_cli.recipes.reading import checked_recipe
from bpfn_cli.runs.folder import RunFolder, check_run_name
from bpfn_cli.runs.record import RECORD_FILE, Resumption
from bpfn_cli.shipped import STUDENT
from bpfn_cli.stop import Interruption
from bpfn_cli.training.build import build
from bpfn_cli.training.job import Job, OpenedDataset
from bpfn_cli.training.pipeline import Outcome, carry_out, run
from bpfn_cli.training.start import (
    differences,
    initial_difference,
    paths_of,
    present_entries,
    recipe_differences,
    rewritten_note,
    use_recorded_threads,
)

# Recipe keys that decide what a checkpoint holds.
IN_CHECKPOINTS = ("variant", "loss", "strategy", "train.optimizer", "train.quantize")


@dataclass(frozen=True)
class Changes:
    """What a user changes when resuming (None: as it was).

    allow: resume although the numbers will differ. allow_code: import losses that the run's config.yaml names.
    """

    data: Path | OpenedDataset | None = None
    teacher: Path | None = None
    device: str | None = None
    allow: bool = False
    allow_code: bool = False


def resume(folder: Path, progress: Progress, stop: Interruption | None = None, changes: Changes = Changes()) -> Outcome:
    """Continue a run where it stopped; for a finished run, return its outcome.

    Raises: as `run`; UsageError: not a run folder, or something that decides its numbers has changed; BusyError.
    """
    found = RunFolder.open(folder)
    if found.record.is_finished:
        progress.line(f"{printable(folder)}: already finished")
        return Outcome(found.path, from_main(lambda: _result_of(found)))
    with found.locked():  # to the end, so that no other process comes in between
        job = job_of(found, stop or Interruption(), changes)
        use_recorded_threads(found)
        changed = differences(found, job)
        if not changes.allow:
            problem = f"{printable(folder)}: settings differ from the original run"
            _refuse(problem, changed, "restore them, or continue with --allow")
        if from_main(found.checkpoints.numbers):
            fixed = [line for line in changed if line.split()[0].startswith(IN_CHECKPOINTS)]
            problem = f"{printable(folder)}: the checkpoints of the run belong to other settings"
            _refuse(problem, fixed, "restore them, or start again under another --name")
        for line in changed:
            found.log(f"changed since the run started: {line}")
            progress.line(f"warning: changed since the run started: {line}")
        if note := rewritten_note(found, job):
            progress.line(note)
        again = Resumption(epochs_done=found.record.epochs_done, differences=tuple(changed))
        now = present_entries(found, job) if changed else {}  # earlier values are in `resumed`
        if found.record.recipe and recipe_differences(found, job.recipe):
            now |= {"cell": None, "cell_key": None}  # not the training that its study describes
        found.update(paths=paths_of(job), resumed=(*found.record.resumed, again), **now)
        parts = build(job, progress, use_initial=not from_main(found.checkpoints.numbers))
        return carry_out(job, parts, found, progress)


def run_or_resume(job: Job, progress: Progress) -> Outcome:
    """Resume the run of the job's name if there is one, otherwise start it: for job scripts that are run repeatedly.

    Raises: as `resume`; UsageError: that run has another recipe or other data, or the job has no name.
    """
    check_run_name(job.name or "")
    folder = job.runs / str(job.name)
    if not from_main((folder / RECORD_FILE).is_file):
        if from_main(partial(os.path.lexists, folder)):
            raise UsageError(f"--resume: {printable(folder)} exists, but is not a run; choose another --name")
        return run(replace(job, must_be_new=True), progress)
    found = RunFolder.open(folder)
    changed = recipe_differences(found, job.recipe)
    if found.record.data.sha256 != job.data.identity.sha256:
        changed.append("other data")
    changed += initial_difference(found, job)
    _refuse(f"--resume: {printable(folder)} is a different training", changed, "choose another --name")
    progress.line(f"run: {printable(folder)}")
    return resume(
        folder, progress, job.stop, Changes(job.data, job.teacher, str(job.device), allow_code=job.allow_code)
    )


def job_of(folder: RunFolder, stop: Interruption, changes: Changes) -> Job:
    """The job of a run folder. Raises: UsageError, DataError: config.yaml or run.json is damaged; the data are gone."""
    paths = folder.record.paths
    if paths is None:
        raise_any(DataError(f"{printable(folder.path / RECORD_FILE)}: damaged: paths: missing; restore it"))
        raise AssertionError
    recipe, data = checked_recipe(read_yaml(folder.path / "config.yaml")), changes.data or Path(paths.data)
    test = data.test_path if isinstance(data, OpenedDataset) else paths.test
    recipe = replace(recipe, data=replace(recipe.data, test=None if test is None else str(test)))
    if changes.data is None and not from_main(Path(paths.data).exists):
        raise_any(DataError(f"{printable(data)}: the data of this run are gone; give their new path with --data"))
    command = ""
    with contextlib.suppress(OSError):
        command = folder.path.joinpath("command.txt").read_text(encoding="utf-8").strip()
    return Job.resolve(
        recipe,
        data,
        folder.path.parent,
        resolve_device(changes.device or paths.device),
        command=command,
        name=folder.path.name,
        teacher=changes.teacher or teacher_of(folder),
        initial=paths.initial and Path(paths.initial),
        allow_code=changes.allow_code,
        stop=stop,
    )


def teacher_of(folder: RunFolder) -> Path | None:
    """The teacher's weights, beside the run or where they were; None: not known yet. Raises: CheckpointError: gone.

    Where both exist, those that were used.
    """
    teacher, paths = folder.record.teacher, folder.record.paths
    places = [folder.path.parent / teacher.run / STUDENT] if teacher and teacher.run else []
    known = (teacher and teacher.path, paths and paths.teacher)
    places += [Path(path) for path in known if path and Path(path).is_absolute()]
    if not places:
        return None

    def choose() -> Path | None:
        there = [place for place in places if place.is_file()]
        known = (place for place in there if teacher and sha256_of(place) == teacher.sha256)
        return next(known, there[0] if there else None)

    found = from_main(choose)
    if found is None:
        gone = f"{printable(places[0])}: the teacher of this run is gone; give its new path with --teacher"
        raise_any(CheckpointError(gone))
    return found


def _refuse(what: str, changed: list[str], advice: str) -> None:
    raise_any(UsageError(f"{what}: {'; '.join(changed)}; {advice}") if changed else None)


def _result_of(folder: RunFolder) -> EvaluationResult | None:
    """The result of the evaluation; None: the run was not tested."""
    try:
        summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
        if summary["result"] is None and folder.record.epe3d is None:
            return None
        return EvaluationResult.model_validate_json(json.dumps(summary["result"]))
    except (OSError, ValueError, KeyError, TypeError):
        where = printable(folder.path)
        raise DataError(f"{where}: finished, but its summary.json is damaged or gone; restore it") from None
