# SPDX-License-Identifier: MIT
"""Going on with a run: all it takes is its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.config import read_yaml
from bpfn_cli.data.datasets import data_identity
from bpfn_cli.device import resolve_device
from bpfn_cli.distributed import from_main
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.training.experiment import Outcome, carry_out, run_experiment
from bpfn_cli.training.interruption import Interruption
from bpfn_cli.training.job import Experiment
from bpfn_cli.training.load import checked_recipe
from bpfn_cli.training.progress import Progress
from bpfn_cli.training.recipe import Recipe, decisive_tree
from bpfn_cli.training.run_folder import RunFolder, versions

# What one training must have in common from its beginning to its end, for the same numbers bit for bit.
VERSIONS = ("bpfn", "python", "torch", "numpy", "threads", "device", "processes")


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
    with run.locked():  # `differences` must not be looked for while somebody trains
        experiment = experiment_of(run, stop or Interruption(), changes)
        use_threads_of(run)
        found = differences(run, experiment)
        if found and not changes.allow:
            raise UsageError(
                f"{printable(folder)}: would not be the training that was begun: {'; '.join(found)}; restore what it "
                "was, or go on all the same with --allow"
            )
        again = {"epochs_done": run.about["epochs_done"], "differences": found}
    for line in found:
        progress.line(f"warning: changed since the run was begun: {line}")
    run.record(
        state="running", reason=None, finished=None, resumed=[*run.about.get("resumed", []), again], failed_by=None
    )
    if changes.teacher is not None and found:
        run.record(teacher=None)
    return carry_out(run, experiment, progress)


def run_or_resume(experiment: Experiment, progress: Progress) -> Outcome:
    """Go on with the run of the experiment's name, where there is one; else begin it. For job scripts that are started
    again and again.

    Raises: as `resume`; UsageError: that run is of another recipe or other data, or no name is given.
    """
    if experiment.name is None:
        raise UsageError("--resume: which run? give its --name too")
    folder = experiment.runs / experiment.name
    if not from_main((folder / "run.json").is_file):
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
        teacher=changes.teacher or (None if teacher is None else Path(teacher)),
        initial=None if initial is None else Path(initial),
        stop=stop,
    )


def use_threads_of(run: RunFolder) -> None:
    """As many threads as the run was begun with, where the user does not say otherwise: sums depend on them."""
    threads = run.about.get("versions", {}).get("threads")
    if isinstance(threads, int) and threads > 0 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)


def differences(run: RunFolder, experiment: Experiment) -> list[str]:
    """What decides the numbers of a run and has changed since it began, a phrase each."""
    found = _changed(run.about.get("versions", {}), versions(experiment.device), VERSIONS)
    known, now = run.about["data"]["sha256"], data_identity(experiment.data)["sha256"]
    if known != now:
        found.append(f"data sha256 {printable(known)[:8]}, now {now[:8]}")
    began = run.about.get("recipe")
    if began is not None:
        found += _changed(_flat(began), _flat(decisive_tree(experiment.recipe)))
    return found


def recipe_differences(run: RunFolder, recipe: Recipe) -> list[str]:
    """Keys of a recipe that are others than those a run was begun with, a phrase each."""
    return _changed(_flat(run.about.get("recipe") or {}), _flat(decisive_tree(recipe)))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], keys: tuple[str, ...] | None = None) -> list[str]:
    chosen = sorted(before.keys() | now.keys()) if keys is None else keys
    return [
        f"{key} {printable(before.get(key))}, now {printable(now.get(key))}"
        for key in chosen
        if before.get(key) != now.get(key)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        below: value
        for key, branch in tree.items()
        for below, value in _flat(branch, f"{prefix}.{key}" if prefix else key).items()
    }


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
