# SPDX-License-Identifier: MIT
"""Let losses look at the teacher before the first step, and keep what they learn for later runs."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

import bpfn_cli
from bpfn_cli.config import json_hash, to_tree
from bpfn_cli.distributed import is_main
from bpfn_cli.errors import DiskError
from bpfn_cli.files import make_folder, write_atomic
from bpfn_cli.losses import LOSSES, DistillationLoss
from bpfn_cli.progress import Bar, Progress
from bpfn_cli.strategies import Strategy
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.job import Job
from bpfn_cli.training.loop.batches import epoch_batches
from bpfn_cli.training.teacher import TeacherNetwork

FOLDER = ".prepared"


def prepare_losses(job: Job, strategy: Strategy, teacher: TeacherNetwork | None, progress: Progress) -> None:
    """Prepare each loss that needs it on all training scenes, or restore what an earlier run has prepared."""
    if teacher is None or strategy.teacher is None:
        return
    for name, term in strategy.objective.items():
        if not term.needs_preparation():
            continue
        path = job.runs / FOLDER / f"{_key(job, teacher, name, term)}.safetensors"
        if _restore(path, term):
            progress.line(f"{name}: prepared by an earlier run")
            continue
        before = {key: tensor.clone() for key, tensor in term.state_dict().items() if isinstance(tensor, Tensor)}
        with progress.bar(f"preparing {name}") as bar:
            strategy.objective.prepare(strategy.teacher.passes(partial(_counted, job, bar)), only=name)
        if is_main():
            _keep(path, term, before)
    strategy.after_preparation()


def _counted(job: Job, bar: Bar) -> Iterator[FlowBatch]:
    done, total = 0, len(job.split.learn)
    for batch in epoch_batches(job, job.split.learn, 0):
        yield batch
        done += len(batch.names)
        bar(done, total)


def _key(job: Job, teacher: TeacherNetwork, name: str, term: DistillationLoss) -> str:
    """Identifies everything that a loss learns before the first step."""
    recipe, names = job.recipe, job.data.train.names
    decisive: dict[str, Any] = {"teacher": teacher.sha256, "control": recipe.control}
    decisive |= {"dataset": job.data.identity.sha256, "names": [names[index] for index in job.split.learn]}
    decisive["recipe"] = [recipe.seed, recipe.data.points, to_tree(recipe.data.augment), recipe.train.batch_size]
    if recipe.data.split != "train":  # scenes of different splits may have the same names
        decisive["split"] = recipe.data.split
    decisive |= {"precision": recipe.train.teacher_precision.value, "loss": name, "options": to_tree(term.options)}
    return json_hash({**decisive, "code": _code_of(term), "bpfn": bpfn_cli.__version__})


def _code_of(term: DistillationLoss) -> str:
    """The source code of a user's own loss, so that an edited one is prepared again; empty for ours."""
    if type(term) in LOSSES.values():
        return ""
    try:
        return inspect.getsource(inspect.getmodule(term) or type(term))
    except (OSError, TypeError):
        return ""


def _restore(path: Path, term: nn.Module) -> bool:
    """Load the prepared tensors of a loss; False: there are none that fit."""
    state: dict[str, Any] = term.state_dict()
    try:
        kept = safetensors.torch.load(path.read_bytes())
        if not kept or any(state[name].shape != tensor.shape for name, tensor in kept.items()):
            return False
    except (OSError, KeyError, safetensors.SafetensorError):
        return False
    term.load_state_dict({**state, **kept})
    return True


def _keep(path: Path, term: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write the tensors that preparation has changed. On a full disk the next run prepares again."""
    after = {name: tensor for name, tensor in term.state_dict().items() if name in before}
    changed = {name: tensor.cpu().contiguous() for name, tensor in after.items() if not tensor.equal(before[name])}
    if changed:
        with contextlib.suppress(DiskError):
            make_folder(path.parent)
            write_atomic(path, safetensors.torch.save(changed))
