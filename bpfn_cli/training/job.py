# SPDX-License-Identifier: MIT
"""A recipe with its place: what to train, on which data, where to write."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bpfn_cli import distributed
from bpfn_cli.data.datasets import SceneDataset, open_dataset
from bpfn_cli.errors import BpfnError, UsageError, printable
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.fit import epoch_batches, split_of
from bpfn_cli.training.stop import Interruption


@dataclass(frozen=True)
class Experiment:
    """Where and how a recipe is carried out.

    Attributes:
        data: a prepared dataset or subset. runs: the folder of run folders.
        teacher: a checkpoint; None: the recipe's teacher is found among the runs, or trained first.
        initial: a checkpoint that the student starts from, whole or sliced; None: fresh.
        command: what the user typed, for the record.
        has_own_name: a name that is taken is an error; else a number is put behind it.
        labels: more for run.json, where the training is part of a study.
        stop: asks for an end before the end.
    """

    recipe: Recipe
    data: Path
    runs: Path
    device: torch.device
    command: str
    name: str | None = None
    has_own_name: bool = False
    teacher: Path | None = None
    initial: Path | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    stop: Interruption = field(default_factory=Interruption)


def open_training_data(experiment: Experiment) -> SceneDataset:
    """The training scenes. Raises: as `open_dataset`; UsageError: of another kind than the recipe says."""
    dataset, kind = open_dataset(experiment.data, "train"), experiment.recipe.data.kind
    if kind not in ("auto", dataset.kind):
        raise UsageError(f"data.kind {kind}: {printable(dataset.root)} is {dataset.kind}; change one of them")
    return dataset


def first_batch(experiment: Experiment, dataset: SceneDataset) -> FlowBatch:
    """The batch that the training begins with, or this process's part of it, on its device."""
    recipe = without_workers(experiment.recipe)
    with contextlib.closing(
        epoch_batches(dataset, split_of(dataset, recipe).learn, recipe, 0, experiment.device, is_shared=True)
    ) as batches:
        error: BpfnError | None = None
        try:
            batch = next(iter(batches))
        except BpfnError as one:
            error = one
    distributed.raise_any(error)
    return batch


def without_workers(recipe: Recipe) -> Recipe:
    """The same recipe whose scenes are loaded by this process: for a single batch."""
    return replace(recipe, data=replace(recipe.data, workers=0))
