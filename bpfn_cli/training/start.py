# SPDX-License-Identifier: MIT
"""Start a run: its folder, and what run.json says before the training."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import datetime, timezone

from bpfn_cli.config import to_yaml
from bpfn_cli.files import sha256_of
from bpfn_cli.recipes.recipe import SCRATCH, decisive_tree, recipe_tree
from bpfn_cli.runs import record
from bpfn_cli.runs.environment import code_state, current_versions
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.training.job import Job


def create_run(job: Job, role: str) -> RunFolder:
    """The folder of a run that has not started."""
    first = _first_record(job, role)
    method = re.sub(r"[^\w+.-]", "_", first.method)
    name = job.name or f"{role}-{job.recipe.variant}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = to_yaml(recipe_tree(job.recipe))
    return RunFolder.create(
        job.runs, name, config=config, command=job.command, record=first, must_be_new=job.must_be_new
    )


def _first_record(job: Job, role: str) -> record.RunRecord:
    """What run.json says before the training starts."""
    recipe, initial = job.recipe, job.initial
    method, is_distilled = recipe.method(), bool(recipe.distillation_losses())
    is_plain_supervised = method == SCRATCH and initial is None and recipe.objective.w_gt is None
    as_teacher = replace(job, recipe=replace(recipe, teacher=recipe.variant)).teacher_key
    if initial is not None:
        method = "fine-tuned" if method == SCRATCH else f"fine-tuned+{method}"
    held_out = len(job.split.held_out) + len(job.split.meta_val)
    return record.RunRecord(
        command="distill" if is_distilled or recipe.strategy.kind != "plain" else "train",
        role=role,  # type: ignore[arg-type]
        variant=recipe.variant,
        method=method,
        seed=recipe.seed,
        points=recipe.data.points,
        epochs=recipe.train.epochs,
        data=record.TrainingData(**vars(job.data.identity), held_out_scenes=held_out),
        teacher_key=as_teacher if is_plain_supervised else None,
        initial=None if initial is None else record.File(path=str(initial), sha256=sha256_of(initial)),
        selected_on=recipe.train.select_on,
        recipe=decisive_tree(recipe),
        paths=paths_of(job),
        versions=current_versions(job.device),
        code=code_state(),
        started=datetime.now(timezone.utc).replace(microsecond=0),
        **job.labels,
    )


def paths_of(job: Job) -> record.Paths:
    """What the recipe does not say and resuming needs."""
    return record.Paths(
        data=str(job.data.path.resolve()),
        device=str(job.device),
        teacher=None if job.teacher is None else str(job.teacher.resolve()),
        initial=None if job.initial is None else str(job.initial.resolve()),
    )
