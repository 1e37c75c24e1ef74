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
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

import bpfn_cli
from bpfn_cli.config import Tree, build, read_yaml, settings
from bpfn_cli.data.datasets import data_identity
from bpfn_cli.errors import BusyError, NonFiniteError, UsageError, printable
from bpfn_cli.files import make_folder, sha256_of
from bpfn_cli.locks import only_holder
from bpfn_cli.losses import NO_DISTILLATION
from bpfn_cli.metrics.statistics import learning_seconds
from bpfn_cli.models import build_model
from bpfn_cli.progress import Progress
from bpfn_cli.recipes.load import checked_recipe
from bpfn_cli.recipes.recipe import SCRATCH, Recipe, decisive_tree, teacher_key
from bpfn_cli.runs.folder import find_runs
from bpfn_cli.strategies import STRATEGIES
from bpfn_cli.training.build import build_strategy, check_recipe
from bpfn_cli.training.job import Experiment, open_training_data
from bpfn_cli.training.pipeline import run_experiment, teacher_at_hand, train_teacher
from bpfn_cli.training.resume import Changes, resume
from bpfn_cli.training.stop import Interruption
from bpfn_cli.training.teacher import random_guide

Control = Literal["equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher"]
FOLDER_OF_LOCKS = ".locks"
SECONDS_BETWEEN_LOOKS = 5.0
TWIN_APART = 1_000_003  # from the first seed to that of a teacher of the student's own size

Names = Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=1000)]


@settings
class Study:
    """What a study file holds.

    recipe: keys of a recipe that all trainings share. variants, losses, strategies, seeds: one training for each
    combination that makes sense; `basic+hint` is the sum of two losses, `none` the baseline, always needed.
    controls: equal_time, from scratch for as long as the slowest method took; same_width_teacher, taught by a network
    of the student's own variant; random_teacher, shuffled_teacher, taught by one that knows nothing. control_loss:
    theirs, one of the losses; null: bihint if it is one of them, else the first.
    teacher: a checkpoint for all; null: the recipe's, trained once with the first seed.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    variants: Names = ("weightnet48",)
    losses: Names = ("none", "basic", "hint", "bihint", "ail", "bounded")
    strategies: Names = ("plain",)
    seeds: Seeds = (0, 1, 2)
    controls: tuple[Control, ...] = ("equal_time", "random_teacher", "shuffled_teacher")
    control_loss: str | None = None
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
    stop: Interruption = field(default_factory=Interruption)


@dataclass(frozen=True)
class CellState:
    """A cell: finished, failed (by NaN; `--retry` trains it again), to be done, or waiting for the times of others."""

    cell: Cell
    state: Literal["finished", "failed", "to do", "waiting"]


def read_study(path: Path) -> Study:
    """Read a study file. Raises: UsageError: all mistakes in one line."""
    study = build(Study, read_yaml(path, "no such study file; docs/losses.md has one to start from"))
    cells_of(study)
    return study


def cells_of(study: Study) -> list[Cell]:
    """All trainings: seed by seed, so that an unfinished study compares like with like.

    Raises: UsageError: a recipe that cannot be carried out; no baseline from scratch.
    """
    strategy = study.recipe.get("strategy", {})
    if not isinstance(strategy, dict):
        raise UsageError("recipe.strategy: give options of strategies, such as {online: {target: naive}}")
    said: list[str] = [key for key in ("variant", "loss", "seed", "control") if key in study.recipe]
    said += ["strategy.kind"] if "kind" in strategy else []
    if said:
        raise UsageError(f"recipe.{said[0]}: the study itself says so; leave it out of the recipe")
    if NO_DISTILLATION not in study.losses:
        raise UsageError("losses: add none, the baseline from scratch that all others are compared with")
    if study.control_loss is not None and study.control_loss not in _taught(study):
        raise UsageError(f"control_loss {printable(study.control_loss)}: is none of the losses that have a teacher")
    if len(set(study.seeds)) < len(study.seeds):
        raise UsageError("seeds: one stands twice")
    found: dict[str, Cell] = {}
    for seed in study.seeds:
        for variant in study.variants:
            for cell in _cells_of_seed(study, variant, seed):
                found.setdefault(cell.name, cell)
    return list(found.values())


def _cells_of_seed(study: Study, variant: str, seed: int) -> Iterator[Cell]:
    yield _cell(_recipe(study, variant, NO_DISTILLATION, seed))
    for strategy in study.strategies:
        for loss in study.losses:
            recipe = _recipe(study, variant, loss, seed, strategy=strategy)
            if recipe.distillation_losses() or not STRATEGIES[strategy].needs_teacher:
                yield _cell(recipe)
    taught = _taught(study)
    if not taught:
        return  # nothing to control
    loss = study.control_loss or ("bihint" if "bihint" in taught else taught[0])
    controlled = _recipe(study, variant, loss, seed)
    for control in study.controls:
        if control == "equal_time":
            yield _cell(_recipe(study, variant, NO_DISTILLATION, seed), control)
        elif control == "same_width_teacher":
            yield _cell(replace(controlled, teacher=variant), control)
        else:
            yield _cell(replace(controlled, control="random" if control == "random_teacher" else "shuffled"), control)


def _taught(study: Study) -> list[str]:
    """The losses that have a teacher."""
    return [loss for loss in study.losses if loss != NO_DISTILLATION]


def _recipe(study: Study, variant: str, loss: str, seed: int, strategy: str = "plain") -> Recipe:
    tree = {**study.recipe, "variant": variant, "loss": loss.split("+"), "seed": seed}
    tree["strategy"] = {**tree.get("strategy", {}), "kind": strategy}
    return checked_recipe(Tree(tree, {}, f"study, loss {printable(loss)}"))


def _cell(recipe: Recipe, control: Control | None = None) -> Cell:
    what = recipe.method() if control is None else control
    if control in ("same_width_teacher", "random_teacher", "shuffled_teacher"):
        what = f"{'+'.join(recipe.distillation_losses())}-{control}"
    return Cell(re.sub(r"[^\w+.-]", "_", f"{recipe.variant}-{what}-seed{recipe.seed}"), recipe, control)


def planned(study: Study, place: Place) -> list[CellState]:
    """The cells of this shard with their states. Raises: UsageError: as `run_study`."""
    cells, keys = cells_of(study), _Keys(study, place)
    found = _check_all(study, cells, place, keys)
    index, count = place.shard
    return found[index - 1 :: count]


def states(study: Study, place: Place) -> list[CellState]:
    """Every cell of the study (of all shards) with its state. Raises: UsageError: the study has changed since."""
    return _states(cells_of(study), _ended(place), _Keys(study, place))


def _states(cells: Sequence[Cell], ended: _Ended, keys: _Keys) -> list[CellState]:
    found = []
    for cell in cells:
        about = ended.get(cell.name)
        if about is not None:
            keys.check_unchanged(cell, about)
            is_stale = cell.control == "equal_time" and about.get("slowest_of") != _methods(cells, cell)
            ended_as: Literal["finished", "failed"] = "finished" if about["state"] == "finished" else "failed"
            found.append(CellState(cell, "to do" if is_stale and _times_as_long(cells, ended, cell) else ended_as))
        else:
            waits = cell.control == "equal_time" and _times_as_long(cells, ended, cell) is None
            found.append(CellState(cell, "waiting" if waits else "to do"))
    return found


def run_study(study: Study, place: Place, progress: Progress, retry: bool = False) -> list[CellState]:
    """Train what is not finished of this shard, one after another; the states of all cells afterwards.

    What another process works on is left to it. A training that fails by NaN is told, and passed over until `retry`.
    Raises: as `run_experiment`; UsageError: the study has changed since a training of it, or cannot be carried out.
    """
    locks = make_folder(place.folder / FOLDER_OF_LOCKS)
    cells, keys = cells_of(study), _Keys(study, place)
    _check_all(study, cells, place, keys)
    index, count = place.shard
    own = cells[index - 1 :: count]
    own.sort(key=lambda cell: cell.control == "equal_time")  # last: they depend on the others
    for number, cell in enumerate(own, start=1):
        if not _is_wanted(cell, cells, place, keys, retry):
            continue
        try:
            with only_holder(locks / cell.name):
                if not _is_wanted(cell, cells, place, keys, retry):
                    continue  # another process was faster
                progress.line(f"training {number} of {len(own)}: {cell.name}")
                _train(study, cells, cell, place, keys, progress)
        except BusyError:
            progress.line(f"{cell.name}: another process works on it")
        except NonFiniteError as error:
            progress.line(f"{cell.name}: failed: {error}")
    return _states(cells, _ended(place), keys)


def _is_wanted(cell: Cell, cells: Sequence[Cell], place: Place, keys: _Keys, retry: bool) -> bool:
    """Whether to train a cell now."""
    state = next(one.state for one in _states(cells, _ended(place), keys) if one.cell is cell)
    return state == "to do" or (retry and state == "failed")


def _train(study: Study, cells: Sequence[Cell], cell: Cell, place: Place, keys: _Keys, progress: Progress) -> None:
    recipe, teacher = cell.recipe, None
    if recipe.distillation_losses() and recipe.control != "random":
        teacher = _teacher(study, cell, place, progress)
    labels: dict[str, Any] = {"cell": cell.name, "control": cell.control, "cell_key": keys.of(cell)}
    if cell.control == "equal_time":
        longer = _times_as_long(cells, _ended(place), cell)
        if longer is None:
            return
        epochs = max(1, round(longer * recipe.train.epochs))
        recipe = replace(recipe, train=replace(recipe.train, epochs=epochs))
        labels |= {"times_as_long": round(longer, 3), "slowest_of": _methods(cells, cell)}
    begun = _begun(place, labels)
    if begun is not None:
        progress.line(f"going on with {printable(begun)}")
        try:
            resume(begun, progress, place.stop, Changes(data=place.data, teacher=teacher, device=str(place.device)))
            return
        except UsageError as error:  # other versions, say: then the whole of it by these
            progress.line(f"{error}; begun anew")
    experiment = _experiment(place, recipe)
    run_experiment(replace(experiment, name=cell.name, teacher=teacher, labels=labels), progress)


def _begun(place: Place, labels: Mapping[str, Any]) -> Path | None:
    """The folder of a cell's training that was stopped before its end, by something other than its own numbers."""
    for folder, about in reversed(find_runs(place.folder)):
        is_same = all(about.get(key) == value for key, value in labels.items())
        is_open = about.get("state") != "finished" and about.get("failed_by") != NonFiniteError.__name__
        if is_same and is_open and about.get("place") is not None:
            return folder
    return None


def _experiment(place: Place, recipe: Recipe) -> Experiment:
    return Experiment(
        recipe=recipe, data=place.data, runs=place.folder, device=place.device, command=place.command, stop=place.stop
    )


def _teacher(study: Study, cell: Cell, place: Place, progress: Progress) -> Path:
    """The teacher of all seeds: given, found, or trained by whichever process comes first."""
    if study.teacher is not None and cell.control != "same_width_teacher":
        return Path(study.teacher)
    experiment = _experiment(place, _teacher_recipe(study, cell))
    lock = place.folder / FOLDER_OF_LOCKS / f"teacher-{experiment.recipe.teacher}"
    told = False
    while (found := teacher_at_hand(experiment)) is None:
        place.stop.check()
        try:
            with only_holder(lock):
                if teacher_at_hand(experiment) is None:
                    train_teacher(experiment, progress)
        except BusyError:
            if not told:
                progress.line(f"teacher: another process trains {experiment.recipe.teacher}; waiting for it")
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return found


def _teacher_recipe(study: Study, cell: Cell) -> Recipe:
    """The recipe that says how the teacher of all seeds is trained."""
    first = study.seeds[0]
    # A student of the teacher's own size must not be its twin.
    seed = (first + TWIN_APART) % 2**31 if cell.recipe.teacher == cell.recipe.variant else first
    return replace(cell.recipe, seed=seed, control="none")


def _check_all(study: Study, cells: Sequence[Cell], place: Place, keys: _Keys) -> list[CellState]:
    """Refuse what cannot work in any cell before the first one is trained; the states of all."""
    found = _states(cells, _ended(place), keys)
    for cell in cells:
        if cell.recipe.seed != study.seeds[0]:
            continue
        experiment = _experiment(place, cell.recipe)
        dataset = open_training_data(experiment)
        check_recipe(cell.recipe, dataset)
        student = build_model(cell.recipe.variant, cell.recipe.data.points)
        guide = random_guide(cell.recipe) if cell.recipe.distillation_losses() else None
        build_strategy(experiment, student, guide, dataset)
    return found


_Ended = Mapping[str, Mapping[str, Any]]


def _ended(place: Place) -> _Ended:
    """run.json of each cell that is finished or has failed by its numbers; of several the last that is finished."""
    found: dict[str, Mapping[str, Any]] = {}
    for _, about in find_runs(place.folder):
        name, state = about.get("cell"), about.get("state")
        if not isinstance(name, str):
            continue
        if state == "finished":
            found[name] = about
        elif state == "failed" and about.get("failed_by") == NonFiniteError.__name__:
            found.setdefault(name, about)
    return found


class _Keys:
    """What the results of cells depend on; equal keys, equal trainings."""

    def __init__(self, study: Study, place: Place):
        self.study, self.place = study, place
        self.data = data_identity(place.data)
        if study.teacher is not None and not Path(study.teacher).is_file():
            raise UsageError(f"teacher: {printable(study.teacher)}: no such file")
        self.teacher = None if study.teacher is None else sha256_of(Path(study.teacher))

    def of(self, cell: Cell) -> str:
        known = {
            "recipe": decisive_tree(cell.recipe),
            "control": cell.control,
            "teacher": self._teacher(cell),
            "data": self.data["sha256"],
            "bpfn": bpfn_cli.__version__,
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def check_unchanged(self, cell: Cell, about: Mapping[str, Any]) -> None:
        """Raises: UsageError: a training of the cell was another one."""
        if about.get("cell_key") != self.of(cell):
            raise UsageError(
                f"{printable(self.place.folder)}: {cell.name} was trained by another recipe or teacher, on other data "
                "or by another bpfn; give the study another --name, or delete that folder"
            )

    def _teacher(self, cell: Cell) -> str | None:
        if not cell.recipe.distillation_losses() or cell.recipe.control == "random":
            return None
        if self.teacher is not None and cell.control != "same_width_teacher":
            return self.teacher
        return teacher_key(_teacher_recipe(self.study, cell), self.data)


def _times_as_long(cells: Sequence[Cell], ended: _Ended, cell: Cell) -> float | None:
    """How many times as long as from scratch the slowest method of this variant learns; None: not all have ended.

    Once a control of this variant has been trained, its figure holds for other seeds too, as long as the methods are
    the same. Methods that failed do not count.
    """
    same = [other for other in cells if other.recipe.variant == cell.recipe.variant]
    for other in same:
        about = ended.get(other.name, {})
        known = about.get("times_as_long")
        if isinstance(known, int | float) and about.get("slowest_of") == _methods(cells, cell):
            return float(known)
    times: dict[str, list[Mapping[str, Any]]] = {}
    for other in same:
        if other.control is None:
            if other.name not in ended:
                return None
            if ended[other.name]["state"] == "finished":
                times.setdefault(other.recipe.method(), []).append(ended[other.name])
    scratch = times.pop(SCRATCH, None)
    if not scratch or not times:
        return None
    return max(1.0, max(map(_learning_seconds, times.values())) / _learning_seconds(scratch))


def _methods(cells: Sequence[Cell], cell: Cell) -> list[str]:
    """The methods of a cell's variant."""
    same = (other for other in cells if other.control is None and other.recipe.variant == cell.recipe.variant)
    return sorted({other.recipe.method() for other in same})


def _learning_seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    prepared = [float(run.get("prepare_seconds", 0)) for run in runs]
    return learning_seconds([run["epoch_seconds"] for run in runs], prepared)
