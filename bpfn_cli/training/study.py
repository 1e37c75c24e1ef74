# SPDX-License-Identifier: MIT
"""A study: variants x losses x strategies x seeds, with the controls that tell whether a teacher helped at all."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

import bpfn_cli
from bpfn_cli.config import Tree, build, read_yaml, settings
from bpfn_cli.data.concurrency import only_writer
from bpfn_cli.data.datasets import data_identity
from bpfn_cli.errors import BusyError, NonFiniteError, UsageError, printable
from bpfn_cli.files import make_folder
from bpfn_cli.losses import NO_DISTILLATION
from bpfn_cli.training.assembly import build_objective
from bpfn_cli.training.experiment import (
    run_experiment,
    teacher_at_hand,
    train_teacher,
)
from bpfn_cli.training.fit import count_steps
from bpfn_cli.training.job import Experiment, open_training_data
from bpfn_cli.training.load import checked_recipe
from bpfn_cli.training.progress import Progress
from bpfn_cli.training.recipe import Recipe, recipe_tree
from bpfn_cli.training.run_folder import find_runs

Control = Literal["equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher"]
FOLDER_OF_LOCKS = ".locks"
SECONDS_BETWEEN_LOOKS = 5.0

Names = Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=1000)]


@settings
class Study:
    """What a study file holds.

    recipe: keys of a recipe that all trainings share. variants, losses, strategies, seeds: one training for each
    combination; `basic+hint` is the sum of two losses, `none` the baseline from scratch, always needed.
    controls: equal_time, from scratch for as long as the slowest method took; same_width_teacher, taught by a network
    of the student's own variant; random_teacher, shuffled_teacher, taught by one that knows nothing. control_loss:
    theirs.
    teacher: a checkpoint for all; null: the recipe's, trained once with the first seed.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    variants: Names = ("weightnet48",)
    losses: Names = ("none", "basic", "hint", "bihint", "ail", "bounded")
    strategies: Names = ("plain",)
    seeds: Seeds = (0, 1, 2)
    controls: tuple[Control, ...] = ("equal_time", "random_teacher", "shuffled_teacher")
    control_loss: str = "bihint"
    teacher: str | None = None


@dataclass(frozen=True)
class Cell:
    """One training of a study: its recipe, what kind of control it is (None: a method), and a name for its folder."""

    name: str
    recipe: Recipe
    control: Control | None = None


@dataclass(frozen=True)
class Place:
    """Where a study reads and writes. `folder` holds its run folders; shard (i, n): every n-th cell from the i-th."""

    folder: Path
    data: Path
    device: torch.device
    command: str
    shard: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class CellState:
    """A cell, and whether it is finished, to be done, or waits for others."""

    cell: Cell
    state: Literal["finished", "to do", "waiting"]


def read_study(path: Path) -> Study:
    """Read a study file. Raises: UsageError: all mistakes in one line."""
    study = build(Study, read_yaml(path))
    cells_of(study)
    return study


def cells_of(study: Study) -> list[Cell]:
    """All trainings: seed by seed, so that an unfinished study compares like with like.

    Raises: UsageError: a recipe that cannot be carried out; no baseline from scratch.
    """
    reserved = {"variant", "loss", "seed", "strategy.kind", "control"} & set(study.recipe)
    if reserved:
        raise UsageError(f"recipe.{min(reserved)}: the study itself says so; leave it out of the recipe")
    if NO_DISTILLATION not in study.losses:
        raise UsageError("losses: add none, the baseline from scratch that all others are compared with")
    if study.controls and study.control_loss == NO_DISTILLATION:
        raise UsageError("control_loss: none has no teacher to control; name a loss")
    found: dict[str, Cell] = {}
    for seed in study.seeds:
        for variant in study.variants:
            for cell in _cells_of_seed(study, variant, seed):
                found.setdefault(cell.name, cell)
    return list(found.values())


def _cells_of_seed(study: Study, variant: str, seed: int) -> Iterator[Cell]:
    for strategy in study.strategies:
        for loss in study.losses:
            yield _cell(_recipe(study, variant, loss, seed, strategy=strategy))
    controlled = _recipe(study, variant, study.control_loss, seed)
    for control in study.controls:
        if control == "equal_time":
            yield _cell(_recipe(study, variant, NO_DISTILLATION, seed), control)
        elif control == "same_width_teacher":
            yield _cell(replace(controlled, teacher=variant), control)
        else:
            yield _cell(replace(controlled, control="random" if control == "random_teacher" else "shuffled"), control)


def _recipe(study: Study, variant: str, loss: str, seed: int, strategy: str = "plain") -> Recipe:
    tree = {**study.recipe, "variant": variant, "loss": loss.split("+"), "seed": seed}
    tree["strategy"] = {**tree.get("strategy", {}), "kind": strategy}
    return checked_recipe(Tree(tree, {}, f"study, loss {printable(loss)}"))


def _cell(recipe: Recipe, control: Control | None = None) -> Cell:
    what = recipe.method() if control is None else control
    if control in ("same_width_teacher", "random_teacher", "shuffled_teacher"):
        what = f"{'+'.join(recipe.distillation_losses())}-{control}"
    return Cell(re.sub(r"[^\w+.-]", "_", f"{recipe.variant}-{what}-seed{recipe.seed}"), recipe, control)


def states(study: Study, place: Place) -> list[CellState]:
    """Every cell of the study (of all shards) with its state. Raises: UsageError: the study has changed since."""
    cells = cells_of(study)
    done = _finished(place)
    found = []
    for cell in cells:
        if cell.name in done:
            _check_unchanged(cell, done[cell.name], place)
            found.append(CellState(cell, "finished"))
        else:
            waits = cell.control == "equal_time" and _slowest_over_scratch(cells, done, cell) is None
            found.append(CellState(cell, "waiting" if waits else "to do"))
    return found


def run_study(study: Study, place: Place, progress: Progress) -> list[CellState]:
    """Train what is not finished of this shard, one after another; the states of all cells afterwards.

    What another process works on is left to it. A training that fails by NaN is told and passed over.
    Raises: as `run_experiment`; UsageError: the study has changed since a training of it.
    """
    make_folder(place.folder / FOLDER_OF_LOCKS)
    _check_all(study, place)
    index, count = place.shard
    own = cells_of(study)[index - 1 :: count]
    own.sort(key=lambda cell: cell.control == "equal_time")  # last: they depend on the others
    for number, cell in enumerate(own, start=1):
        if {state.cell.name: state.state for state in states(study, place)}[cell.name] != "to do":
            continue
        lock = make_folder(place.folder / FOLDER_OF_LOCKS / cell.name)
        try:
            with only_writer(lock):
                if cell.name in _finished(place):
                    continue
                progress.line(f"training {number} of {len(own)}: {cell.name}")
                _train(study, cell, place, progress)
        except BusyError:
            progress.line(f"{cell.name}: another process works on it")
        except NonFiniteError as error:
            progress.line(f"{cell.name}: failed: {error}")
    return states(study, place)


def _train(study: Study, cell: Cell, place: Place, progress: Progress) -> None:
    recipe, teacher = cell.recipe, None
    if recipe.distillation_losses() and recipe.control != "random":
        teacher = _teacher(study, cell, place, progress)
    labels: dict[str, Any] = {"cell": cell.name, "control": cell.control, "cell_key": _key(cell, place)}
    if cell.control == "equal_time":
        longer = _slowest_over_scratch(cells_of(study), _finished(place), cell)
        if longer is None:
            return
        epochs = max(1, round(longer * recipe.train.epochs))
        recipe = replace(recipe, train=replace(recipe.train, epochs=epochs))
        labels["times_as_long"] = round(longer, 3)
    run_experiment(
        Experiment(
            recipe=recipe,
            data=place.data,
            runs=place.folder,
            device=place.device,
            command=place.command,
            name=cell.name,
            teacher=teacher,
            labels=labels,
        ),
        progress,
    )


def _teacher(study: Study, cell: Cell, place: Place, progress: Progress) -> Path:
    """The teacher of all seeds: given, found, or trained by whichever process comes first."""
    if study.teacher is not None and cell.control != "same_width_teacher":
        return Path(study.teacher)
    recipe = replace(cell.recipe, seed=study.seeds[0], control="none")
    experiment = Experiment(
        recipe=recipe, data=place.data, runs=place.folder, device=place.device, command=place.command
    )
    lock = make_folder(place.folder / FOLDER_OF_LOCKS / f"teacher-{recipe.teacher}")
    told = False
    while (found := teacher_at_hand(experiment)) is None:
        try:
            with only_writer(lock):
                if teacher_at_hand(experiment) is None:
                    train_teacher(experiment, progress)
        except BusyError:
            if not told:
                progress.line(f"teacher: another process trains {recipe.teacher}; waiting for it")
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return found


def _check_all(study: Study, place: Place) -> None:
    """Refuse what cannot work in any cell before the first one is trained."""
    for cell in cells_of(study):
        experiment = Experiment(
            recipe=cell.recipe, data=place.data, runs=place.folder, device=place.device, command=place.command
        )
        dataset = open_training_data(experiment)
        build_objective(cell.recipe).check_length(count_steps(dataset, cell.recipe))
    if study.teacher is not None and not Path(study.teacher).is_file():
        raise UsageError(f"teacher: {printable(study.teacher)}: no such file")
    states(study, place)


def _finished(place: Place) -> dict[str, Mapping[str, Any]]:
    """run.json of each finished cell, by the cell's name; of several the first."""
    found: dict[str, Mapping[str, Any]] = {}
    for _, about in find_runs(place.folder):
        if isinstance(about.get("cell"), str) and about.get("state") == "finished":
            found.setdefault(about["cell"], about)
    return found


def _key(cell: Cell, place: Place) -> str:
    """What a cell's result depends on; equal keys, equal trainings."""
    known = {
        "recipe": recipe_tree(cell.recipe),
        "control": cell.control,
        "data": data_identity(place.data)["sha256"],
        "bpfn": bpfn_cli.__version__,
    }
    for ignored in ("workers", "path", "kind"):
        known["recipe"]["data"].pop(ignored)
    known["recipe"]["train"].pop("teacher_cache")
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _check_unchanged(cell: Cell, about: Mapping[str, Any], place: Place) -> None:
    if about.get("cell_key") != _key(cell, place):
        raise UsageError(
            f"{printable(place.folder)}: {cell.name} was trained by another recipe, on other data or by another bpfn; "
            "give the study another --name, or delete that folder"
        )


def _slowest_over_scratch(cells: Sequence[Cell], done: Mapping[str, Mapping[str, Any]], cell: Cell) -> float | None:
    """How many times as long as from scratch the slowest method of this variant takes; None: not all are finished.

    By medians over seeds of each training's fastest epoch, on which other work of the machine weighs least.
    """
    times: dict[str, list[float]] = {}
    for other in cells:
        if other.control is None and other.recipe.variant == cell.recipe.variant:
            seconds = done.get(other.name, {}).get("fastest_epoch_seconds")
            if seconds is None:
                return None
            times.setdefault(other.recipe.method(), []).append(float(seconds))
    scratch = times.pop("scratch", None)
    if not scratch or not times:
        return None
    return max(1.0, max(median(seconds) for seconds in times.values()) / median(scratch))
