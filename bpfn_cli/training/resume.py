# SPDX-License-Identifier: MIT
"""Going on with a run: all it takes is its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bpfn_cli.config import read_yaml
from bpfn_cli.data.datasets import data_identity
from bpfn_cli.device import resolve_device
from bpfn_cli.distributed import from_main
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.training.experiment import Outcome, carry_out, place_of, run_experiment
from bpfn_cli.training.identity import differences, identity_of, recipe_differences, teacher_of, use_threads_of
from bpfn_cli.training.interruption import Interruption
from bpfn_cli.training.job import Experiment
from bpfn_cli.training.load import checked_recipe
from bpfn_cli.training.progress import Progress
from bpfn_cli.training.run_folder import RunFolder, check_run_name


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
    with run.locked():  # held to the end: nobody comes between
        experiment = experiment_of(run, stop or Interruption(), changes)
        use_threads_of(run)
        found = differences(run, experiment)
        if found and not changes.allow:
            raise UsageError(
                f"{printable(folder)}: would not be the training that was begun: {'; '.join(found)}; restore what it "
                "was, or go on all the same with --allow"
            )
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
        return run_experiment(experiment, progress)
    run = RunFolder.open(folder)
    found = recipe_differences(run, experiment.recipe)
    if run.about["data"]["sha256"] != data_identity(experiment.data)["sha256"]:
        found.append("other data")
    if found:
        raise UsageError(
            f"--resume: {printable(folder)} is another training: {'; '.join(found)}; choose another --name"
        )
    progress.line(f"run: {printable(folder)}")
    changes = Changes(experiment.data, experiment.teacher, str(experiment.device))
    return resume(folder, progress, experiment.stop, changes)


def experiment_of(run: RunFolder, stop: Interruption, changes: Changes) -> Experiment:
    """The experiment a run folder is of. Raises: UsageError: config.yaml is damaged. DataError: run.json is."""
    recipe = checked_recipe(read_yaml(run.path / "config.yaml"))
    try:
        place = run.about["place"]
        data, teacher, initial, device = (place[key] for key in ("data", "teacher", "initial", "device"))
        command = run.path.joinpath("command.txt").read_text(encoding="utf-8").strip()
    except (KeyError, TypeError, OSError):
        raise DataError(f"{printable(run.path)}: does not say where its data lie; it is of an older bpfn") from None
    return Experiment(
        recipe=recipe,
        data=changes.data or Path(data),
        runs=run.path.parent,
        device=resolve_device(changes.device or device),
        command=command,
        name=run.path.name,
        teacher=changes.teacher or teacher_of(run) or (None if teacher is None else Path(teacher)),
        initial=None if initial is None else Path(initial),
        stop=stop,
    )


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
