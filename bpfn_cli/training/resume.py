# SPDX-License-Identifier: MIT
"""Going on with a run: all it takes is its folder."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bpfn_cli.config import read_yaml
from bpfn_cli.data.datasets import data_identity
from bpfn_cli.device import resolve_device
from bpfn_cli.distributed import from_main, raise_any
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.progress import Progress
from bpfn_cli.recipes.load import checked_recipe
from bpfn_cli.runs.folder import RunFolder, check_run_name
from bpfn_cli.training.changes import differences, identity_of, recipe_differences, teacher_of, use_threads_of
from bpfn_cli.training.job import Experiment
from bpfn_cli.training.pipeline import Outcome, carry_out, place_of, run_experiment
from bpfn_cli.training.stop import Interruption

_RESTORE = "restore what it was, or go on all the same with --allow"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Data(_Part):
    sha256: str


class _Place(_Part):
    data: str
    device: str
    teacher: str | None
    initial: str | None


class _Needed(_Part):
    """Of run.json, to go on."""

    data: _Data
    place: _Place
    method: str
    epochs: int
    epochs_done: int


@dataclass(frozen=True)
class Changes:
    """What a user says anew when going on; None: as it was.

    Attributes: allow: go on though other numbers will come of it.
    """

    data: Path | None = None
    teacher: Path | None = None
    device: str | None = None
    allow: bool = False


def resume(
    folder: Path, progress: Progress, stop: Interruption | None = None, changes: Changes | None = None
) -> Outcome:
    """Go on with a run where it stopped, whatever stopped it; of a finished one, the outcome at once.

    Raises: as `run_experiment`; UsageError: no run folder, or something that decides its numbers has changed since;
        BusyError: another process works on it.
    """
    run, changes = RunFolder.open(folder), changes or Changes()
    if run.about["state"] == "finished":
        progress.line(f"{printable(folder)}: finished already")
        return Outcome(run.path, from_main(lambda: _result_of(run)))
    _check_whole(run)
    with run.locked():  # held to the end: nobody comes between
        experiment = experiment_of(run, stop or Interruption(), changes)
        use_threads_of(run)
        found = differences(run, experiment)
        if not changes.allow:
            _refuse(f"{printable(folder)}: would not be the training that was begun", found, _RESTORE)
        for line in found:
            run.note(f"changed since the run was begun: {line}")
            progress.line(f"warning: changed since the run was begun: {line}")
        again = {"epochs_done": run.about["epochs_done"], "differences": found}
        now = identity_of(experiment, run) if found else {}  # what it was stands in `resumed`
        run.record(place=place_of(experiment), resumed=[*run.about.get("resumed", []), again], **now)
        return carry_out(run, experiment, progress)


def run_or_resume(experiment: Experiment, progress: Progress) -> Outcome:
    """Go on with the run of the experiment's name, where there is one; else begin it. For job scripts that are started
    again and again.

    Raises: as `resume`; UsageError: that run is of another recipe or other data, or no name is given.
    """
    name = experiment.name or ""
    check_run_name(name)
    folder = experiment.runs / name
    if not from_main((folder / "run.json").is_file):
        if from_main(partial(os.path.lexists, folder)):
            raise UsageError(
                f"--resume: {printable(folder)} is there, but is no run; choose another --name, or remove it"
            )
        return run_experiment(replace(experiment, has_own_name=True), progress)
    run = RunFolder.open(folder)
    _check_whole(run)
    found = recipe_differences(run, experiment.recipe)
    if run.about["data"]["sha256"] != data_identity(experiment.data)["sha256"]:
        found.append("other data")
    _refuse(f"--resume: {printable(folder)} is another training", found, "choose another --name")
    progress.line(f"run: {printable(folder)}")
    changes = Changes(experiment.data, experiment.teacher, str(experiment.device))
    return resume(folder, progress, experiment.stop, changes)


def experiment_of(run: RunFolder, stop: Interruption, changes: Changes) -> Experiment:
    """The experiment a run folder is of. Raises: UsageError: config.yaml is damaged. DataError: run.json is."""
    recipe = checked_recipe(read_yaml(run.path / "config.yaml"))
    place = run.about["place"]
    if changes.data is None and not from_main(Path(place["data"]).exists):
        raise_any(DataError(f"{printable(place['data'])}: the data of this run are gone; say where they are by --data"))
    command = ""
    with contextlib.suppress(OSError):
        command = run.path.joinpath("command.txt").read_text(encoding="utf-8").strip()
    return Experiment(
        recipe=recipe,
        data=changes.data or Path(place["data"]),
        runs=run.path.parent,
        device=resolve_device(changes.device or place["device"]),
        command=command,
        name=run.path.name,
        teacher=changes.teacher or teacher_of(run),
        initial=None if place["initial"] is None else Path(place["initial"]),
        stop=stop,
    )


def _check_whole(run: RunFolder) -> None:
    """Raises: DataError: run.json lacks what going on takes."""
    error = None
    try:
        _Needed.model_validate(run.about)
    except ValidationError as invalid:
        key = printable(".".join(map(str, invalid.errors()[0]["loc"])))
        error = DataError(f"{printable(run.path / 'run.json')}: damaged, or of another bpfn (`{key}`); restore it")
    raise_any(error)


def _refuse(what: str, found: list[str], advice: str) -> None:
    """Raises: UsageError: something was found."""
    raise_any(UsageError(f"{what}: {'; '.join(found)}; {advice}") if found else None)


def _result_of(run: RunFolder) -> dict[str, Any]:
    try:
        result = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))["result"]
        if isinstance(result, dict):
            return result
        raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{printable(run.path)}: finished, but its summary.json is damaged or gone; restore it"
        ) from None
