# SPDX-License-Identifier: MIT
"""Start a run: its folder, what run.json says before the training, and what of it has changed when it is resumed."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bpfn_cli
from bpfn_cli.config import to_yaml
from bpfn_cli.distributed import from_main, size
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.models import read_checkpoint
from bpfn_cli.recipes.identity import decisive_tree, recipe_tree
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs import record
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.shipped import history_of
from bpfn_cli.training.job import Job

DECISIVE_VERSIONS = ("bpfn", "python", "torch", "numpy", "threads", "device", "processes")


def create_run(job: Job, role: str) -> RunFolder:
    """The folder of a run that has not started."""
    first = _first_record(job, role)
    method = re.sub(r"[^\w+.-]", "_", first.method)
    name = job.name or f"{role}-{job.recipe.variant.name}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    config, is_new = to_yaml(recipe_tree(job.recipe)), job.must_be_new
    return RunFolder.create(job.runs, name, config=config, command=job.command, record=first, must_be_new=is_new)


def _first_record(job: Job, role: str) -> record.RunRecord:
    recipe, initial = job.recipe, job.initial
    file = None if initial is None else record.File(path=str(initial), sha256=sha256_of(initial))
    labels, is_distilled = {"method": recipe.method(), **job.labels}, bool(recipe.distillation_losses())
    as_teacher = replace(job, recipe=replace(recipe, teacher=recipe.variant))
    is_teacher = initial is None and recipe.trains_as_teacher()
    held_out = len(job.split.held_out) + len(job.split.meta_val)
    return record.RunRecord(
        command="distill" if is_distilled or recipe.strategy.kind != "plain" else "train",
        role=role,  # type: ignore[arg-type]
        variant=recipe.variant.name,
        seed=recipe.seed,
        points=recipe.data.points,
        epochs=recipe.train.epochs,
        data=record.TrainingData(**vars(job.data.identity), held_out_scenes=held_out),
        teacher_key=as_teacher.teacher_key if is_teacher else None,
        initial=file,
        history=() if file is None else history_of(read_checkpoint(Path(file.path)).metadata, file.sha256),
        selected_on=recipe.train.select_on,
        recipe=decisive_tree(recipe),
        paths=paths_of(job),
        versions=current_versions(job.device),
        code=_code_state(),
        started=datetime.now(timezone.utc).replace(microsecond=0),
        **labels,
    )


def paths_of(job: Job) -> record.Paths:
    """What the recipe does not say and resuming needs."""
    given = {"data": job.data.path, "test": job.data.test_path, "teacher": job.teacher, "initial": job.initial}
    paths = {name: str(path.resolve()) for name, path in given.items() if path is not None}
    for path in paths.values():
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{printable(path)}: not UTF-8, so run.json cannot hold this name; rename it") from None
    return record.Paths(device=str(job.device), **paths)


def use_recorded_threads(folder: RunFolder) -> None:
    """Use as many threads as when the run started, unless OMP_NUM_THREADS is set: sums depend on their number."""
    threads = folder.record.versions.threads
    if threads and threads > 0 and (bpfn_cli.LIMITED or "OMP_NUM_THREADS" not in os.environ):
        torch.set_num_threads(threads)


def differences(folder: RunFolder, job: Job) -> list[str]:
    """A phrase for each thing that decides the numbers of a run and has changed since it started."""
    known = folder.record
    found = _changed(dict(known.versions), dict(current_versions(job.device)), DECISIVE_VERSIONS)
    if known.data.sha256 != job.data.identity.sha256:
        found.append(f"data sha256 {printable(known.data.sha256)[:8]}, now {job.data.identity.sha256[:8]}")
    if known.recipe:
        found += recipe_differences(folder, job.recipe)
    found += _changed_file("teacher", known.teacher, job.teacher)
    if not from_main(folder.checkpoints.numbers):  # otherwise the checkpoint holds the weights
        found += initial_difference(folder, job)
    return found


def rewritten_note(folder: RunFolder, job: Job) -> str | None:
    """A line if files of the data were written since the run started, though the sampled contents are the same."""
    before, now = folder.record.data, job.data.identity
    if before.sha256 != now.sha256 or before.written in ("", now.written):
        return None
    times = f"newest: {printable(before.written)}, now {now.written}"
    return f"note: files of the data were written since the run started ({times}); names, sizes and samples are equal"


def initial_difference(folder: RunFolder, job: Job) -> list[str]:
    """A phrase if a run started from other initial weights than the job."""
    known, now = folder.record.initial, job.initial
    if (known is None) != (now is None):
        return [f"initial weights {printable(known and known.path)}, now {printable(now)}"]
    return _changed_file("initial weights", known, now)


def recipe_differences(folder: RunFolder, recipe: Recipe) -> list[str]:
    """A phrase for each decisive recipe key that differs from that of the run."""
    before, now = _flat(folder.record.recipe), _flat(decisive_tree(recipe))
    return _changed(before, now, sorted(before.keys() | now.keys()))


def present_entries(folder: RunFolder, job: Job) -> dict[str, Any]:
    """Entries of the record for what a run depends on, as it is now."""
    recipe, data = job.recipe, folder.record.data.model_copy(update=vars(job.data.identity))
    decisive, versions = decisive_tree(recipe), current_versions(job.device)
    return {"recipe": decisive, "epochs": recipe.train.epochs, "seed": recipe.seed, "versions": versions, "data": data}


def _changed_file(what: str, known: record.Teacher | record.File | None, path: Path | None) -> list[str]:
    """A phrase if a file has changed; a missing one is reported where it is read."""
    if known is None or path is None or not from_main(path.is_file):
        return []
    now = from_main(lambda: sha256_of(path))
    return [] if known.sha256 == now else [f"{what} sha256 {printable(known.sha256)[:8]}, now {now[:8]}"]


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    pairs = ((key, before.get(key), now.get(key)) for key in keys)
    return [f"{key} {printable(old)}, now {printable(new)}" for key, old, new in pairs if old != new]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix[1:]: tree}
    return {key: value for name, below in tree.items() for key, value in _flat(below, f"{prefix}.{name}").items()}


def current_versions(device: torch.device) -> record.Versions:
    """Versions, device type, threads and processes of this process."""
    packages = {"bpfn": bpfn_cli.__version__, "torch": torch.__version__, "numpy": np.__version__}
    here = {"device": device.type, "python": platform.python_version(), "platform": platform.platform()}
    return record.Versions(**packages, **here, threads=torch.get_num_threads(), processes=size())


def _code_state() -> dict[str, Any]:
    """Git state of bpfn, if it runs from a clone, and of the current folder."""
    package = Path(bpfn_cli.__file__).parent
    own = _git_state(package) if _git(package, "ls-files", "__init__.py") else None
    return {"bpfn": own, "here": _git_state(Path())}


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a folder, and whether tracked files differ from it; None: not in a repository."""
    lines = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "changed": any(not line.startswith("#") for line in lines)} if commit else None


def _git(folder: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
