# SPDX-License-Identifier: MIT
"""What a training must have in common from its beginning to its end, for the same numbers bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.data.datasets import data_identity
from bpfn_cli.distributed import from_main, raise_any
from bpfn_cli.errors import CheckpointError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.recipes.recipe import Recipe, decisive_tree
from bpfn_cli.runs.folder import STUDENT, RunFolder, versions
from bpfn_cli.training.job import Experiment

VERSIONS = ("bpfn", "python", "torch", "numpy", "threads", "device", "processes")


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
    found += _changed_file("teacher", run.about.get("teacher"), experiment.teacher)
    if not from_main(run.checkpoints.numbers):  # else its weights are in the checkpoint
        found += _changed_file("initial weights", run.about.get("initial"), experiment.initial)
    return found


def processes_of(run: RunFolder) -> int | None:
    """How many processes a run was begun with; None: one."""
    found = run.about.get("versions", {}).get("processes")
    return found if isinstance(found, int) and found > 1 else None


def teacher_of(run: RunFolder) -> Path | None:
    """The file of the teacher that a run was begun with: beside the run, or where it was; None: not known yet, or none.

    Raises: CheckpointError: it is in neither place.
    """
    known = run.about.get("teacher") or {}
    beside = [run.path.parent / str(known["run"]) / STUDENT] if known.get("run") else []
    paths = [path for path in (known.get("path"), (run.about.get("place") or {}).get("teacher")) if path]
    places = beside + [Path(path) for path in paths if Path(path).is_absolute()]
    found = from_main(lambda: [place for place in places if place.is_file()])
    if not places:
        return None
    gone = CheckpointError(f"{printable(places[0])}: the teacher of this run is gone; say where it is by --teacher")
    raise_any(None if found else gone)
    return found[0]


def _changed_file(what: str, known: Mapping[str, Any] | None, path: Path | None) -> list[str]:
    """A phrase where a file is another than it was; one that is missing is told where it is read."""
    if known is None or path is None or not from_main(path.is_file):
        return []
    now = from_main(lambda: sha256_of(path))
    return [] if known.get("sha256") == now else [f"{what} sha256 {printable(known.get('sha256'))[:8]}, now {now[:8]}"]


def identity_of(experiment: Experiment, run: RunFolder) -> dict[str, Any]:
    """Entries of run.json that say what a training depends on, as it is now."""
    data = {**run.about["data"], **data_identity(experiment.data)}
    return {
        "recipe": decisive_tree(experiment.recipe),
        "epochs": experiment.recipe.train.epochs,
        "seed": experiment.recipe.seed,
        "versions": versions(experiment.device),
        "data": data,
    }


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
