# SPDX-License-Identifier: MIT
"""What has changed since a run started, among everything that its numbers depend on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.distributed import from_main
from bpfn_cli.errors import printable
from bpfn_cli.files import sha256_of
from bpfn_cli.recipes.recipe import Recipe, decisive_tree
from bpfn_cli.runs import record
from bpfn_cli.runs.environment import current_versions
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.training.job import Job

DECISIVE_VERSIONS = ("bpfn", "python", "torch", "numpy", "threads", "device", "processes")


def use_recorded_threads(folder: RunFolder) -> None:
    """Use as many threads as when the run started, unless OMP_NUM_THREADS is set: sums depend on their number."""
    threads = folder.record.versions.threads
    if threads and threads > 0 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)


def differences(folder: RunFolder, job: Job) -> list[str]:
    """A phrase for each thing that decides the numbers of a run and has changed since it started."""
    known, versions = folder.record, current_versions(job.device)
    found = _changed(dict(known.versions), dict(versions), DECISIVE_VERSIONS)
    if known.data.sha256 != job.data.identity.sha256:
        found.append(f"data sha256 {printable(known.data.sha256)[:8]}, now {job.data.identity.sha256[:8]}")
    if known.recipe:
        found += recipe_differences(folder, job.recipe)
    found += _changed_file("teacher", known.teacher, job.teacher)
    if not from_main(folder.checkpoints.numbers):  # otherwise the checkpoint holds the weights
        found += _changed_file("initial weights", known.initial, job.initial)
    return found


def recipe_differences(folder: RunFolder, recipe: Recipe) -> list[str]:
    """A phrase for each decisive recipe key that differs from that of the run."""
    before, now = _flat(folder.record.recipe), _flat(decisive_tree(recipe))
    return _changed(before, now, sorted(before.keys() | now.keys()))


def present_entries(folder: RunFolder, job: Job) -> dict[str, Any]:
    """Entries of the record for what a run depends on, as it is now."""
    known = folder.record.data.model_dump()
    return {
        "recipe": decisive_tree(job.recipe),
        "epochs": job.recipe.train.epochs,
        "seed": job.recipe.seed,
        "versions": current_versions(job.device),
        "data": record.TrainingData(**{**known, **vars(job.data.identity)}),
    }


def _changed_file(what: str, known: record.Teacher | record.File | None, path: Path | None) -> list[str]:
    """A phrase if a file has changed; a missing one is reported where it is read."""
    if known is None or path is None or not from_main(path.is_file):
        return []
    now = from_main(lambda: sha256_of(path))
    return [] if known.sha256 == now else [f"{what} sha256 {printable(known.sha256)[:8]}, now {now[:8]}"]


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [
        f"{key} {printable(before.get(key))}, now {printable(now.get(key))}"
        for key in keys
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
