# SPDX-License-Identifier: MIT
"""Train the cells of a study: each once, resumed after interruptions, shared by any number of processes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import bpfn_cli
from bpfn_cli.config import json_hash
from bpfn_cli.errors import BusyError, CheckpointError, NonFiniteError, UsageError, printable
from bpfn_cli.files import make_folder, sha256_of
from bpfn_cli.locks import only_holder
from bpfn_cli.metrics.statistics import learning_seconds
from bpfn_cli.parallel import Shard
from bpfn_cli.progress import Progress
from bpfn_cli.recipes.identity import decisive_tree, teacher_key
from bpfn_cli.recipes.recipe import SCRATCH, Recipe
from bpfn_cli.runs.listing import find_runs
from bpfn_cli.runs.record import RunRecord
from bpfn_cli.shipped import find_weights
from bpfn_cli.studies.study import Cell, Study, cells_of, teacher_recipe

LOCKS = ".locks"
POLL_SECONDS = 5.0


class Trainer(Protocol):
    """Trains recipes on one dataset into one folder of runs.

    Raises: UsageError: `check`: the recipe cannot be trained; `resume`: something that decides the numbers has changed.
        BusyError: `train_teacher`: another process does. Interrupted: `check_stop`.
    """

    @property
    def data_sha256(self) -> str: ...
    def check(self, recipe: Recipe, teacher: Path | None) -> None: ...
    def train(self, recipe: Recipe, name: str, teacher: Path | None, labels: Mapping[str, Any]) -> None: ...
    def resume(self, run: Path, teacher: Path | None) -> None: ...
    def find_teacher(self, recipe: Recipe) -> Path | None: ...
    def train_teacher(self, recipe: Recipe) -> Path: ...
    def check_stop(self) -> None: ...


State = Literal["finished", "failed", "to do", "waiting"]
Ended = Mapping[str, RunRecord]


@dataclass(frozen=True)
class CellState:
    """A cell: finished, failed (by NaN; `--retry` trains it again), to do, or waiting for the times of others."""

    cell: Cell
    state: State


def untrained(study: Study, shard: Shard) -> list[CellState]:
    """The cells of a shard before any of them is trained."""
    cells = shard.of(cells_of(study))
    return [CellState(cell, "waiting" if cell.control == "equal_time" else "to do") for cell in cells]


@dataclass(frozen=True)
class StudyRunner:
    """Carries out a study in a folder of runs. shard: the cells that this process trains."""

    study: Study
    folder: Path
    trainer: Trainer
    shard: Shard

    @cached_property
    def cells(self) -> list[Cell]:
        return cells_of(self.study)

    def planned(self) -> list[CellState]:
        """The cells of this shard with their states. Raises: UsageError: as `run`."""
        return list(self.shard.of(self._check_all()))

    def states(self) -> list[CellState]:
        """Every cell of the study, whatever its shard. Raises: UsageError: the study has changed."""
        ended = self._ended()
        for cell in self.cells:
            if cell.name in ended and ended[cell.name].cell_key != self._key(cell):
                trained = f"{printable(self.folder)}: {cell.name} was trained with another recipe, teacher, dataset"
                raise UsageError(f"{trained} or version of bpfn; give the study another --name, or delete that folder")
        return [CellState(cell, self._state(cell, ended)) for cell in self.cells]

    def run(self, progress: Progress, retry: bool = False) -> list[CellState]:
        """Train the unfinished cells of this shard one after another; returns the states of all cells.

        Cells of another process are left to it. A training that fails by NaN is skipped, and repeated if `retry`.
        Raises: as a training; NonFiniteError: of the teacher; UsageError: the study has changed since one of its
            trainings, or is invalid.
        """
        locks = make_folder(self.folder / LOCKS)
        self._check_all()
        # Controls of equal time come last, since they depend on the others.
        own = sorted(self.shard.of(self.cells), key=lambda cell: cell.control == "equal_time")
        for number, cell in enumerate(own, start=1):
            if not self._is_wanted(cell, retry):
                continue
            try:
                with only_holder(locks / cell.name):
                    if self._is_wanted(cell, retry):  # no other process was faster
                        progress.line(f"training {number} of {len(own)}: {cell.name}")
                        self._train(cell, progress)
            except BusyError:
                progress.line(f"{cell.name}: another process is training it")
        return self.states()

    def _state(self, cell: Cell, ended: Ended) -> State:
        is_timed, known = cell.control == "equal_time", ended.get(cell.name)
        if known is None:
            return "waiting" if is_timed and self._times_as_long(cell, ended) is None else "to do"
        is_stale = is_timed and list(known.slowest_of or ()) != self._methods(cell)
        if is_stale and self._times_as_long(cell, ended):
            return "to do"
        return "finished" if known.is_finished else "failed"

    def _is_wanted(self, cell: Cell, retry: bool) -> bool:
        state = next(one.state for one in self.states() if one.cell is cell)
        return state == "to do" or (retry and state == "failed")

    def _train(self, cell: Cell, progress: Progress) -> None:
        recipe = cell.recipe
        teacher = self._teacher(cell, progress) if _needs_teacher(cell) else None
        labels: dict[str, Any] = {"cell": cell.name, "control": cell.control, "cell_key": self._key(cell)}
        labels["method"] = cell.method
        if cell.control == "equal_time":
            longer = self._times_as_long(cell, self._ended())
            if longer is None:
                return
            longer = round(longer, 3)  # as other seeds read it
            epochs = max(1, round(longer * recipe.train.epochs))
            recipe = replace(recipe, train=replace(recipe.train, epochs=epochs))
            labels |= {"times_as_long": longer, "slowest_of": tuple(self._methods(cell))}
        try:
            self._train_or_resume(recipe, cell.name, teacher, labels, progress)
        except NonFiniteError as error:
            progress.line(f"{cell.name}: failed: {error}")

    def _train_or_resume(
        self, recipe: Recipe, name: str, teacher: Path | None, labels: Mapping[str, Any], progress: Progress
    ) -> None:
        if (started := self._started(labels)) is not None:
            progress.line(f"resuming {printable(started)}")
            try:
                return self.trainer.resume(started, teacher)
            except UsageError as error:  # for example other versions: train all of it with these
                progress.line(f"restarting: {error}")
        self.trainer.train(recipe, name, teacher, labels)

    def _started(self, labels: Mapping[str, Any]) -> Path | None:
        """The newest run of a cell that was stopped by something other than its own numbers."""
        for run in reversed(find_runs(self.folder).runs):
            is_same = all(getattr(run.record, key) == value for key, value in labels.items())
            if is_same and run.record.can_resume and run.record.paths is not None:
                return run.path
        return None

    def _teacher(self, cell: Cell, progress: Progress) -> Path:
        """The teacher of all seeds: given, found, or trained by whichever process comes first."""
        if (given := self._given_teacher(cell)) is not None:
            return given
        recipe = teacher_recipe(self.study, cell)
        lock, is_reported = self.folder / LOCKS / f"teacher-{recipe.teacher.name}", False
        while (found := self.trainer.find_teacher(recipe)) is None:
            self.trainer.check_stop()
            try:
                with only_holder(lock):
                    return self.trainer.find_teacher(recipe) or self.trainer.train_teacher(recipe)
            except BusyError:
                if not is_reported:
                    progress.line(f"teacher: waiting for another process to train {recipe.teacher.name}")
                is_reported = True
                time.sleep(POLL_SECONDS)
        return found

    def _given_teacher(self, cell: Cell) -> Path | None:
        if self.study.teacher is None or cell.control == "same_width_teacher" or not _needs_teacher(cell):
            return None
        return find_weights(Path(self.study.teacher))

    def _check_all(self) -> list[CellState]:
        """Refuse what cannot work in any cell before the first one is trained; returns the states of all."""
        found = self.states()
        for cell in self.cells:
            if cell.recipe.seed == self.study.seeds[0]:
                self.trainer.check(cell.recipe, self._given_teacher(cell))
        return found

    def _ended(self) -> Ended:
        """The record of each cell that is finished or has failed by its numbers; the last finished one, if several."""
        found: dict[str, RunRecord] = {}
        for run in find_runs(self.folder).runs:
            record = run.record
            if record.cell is not None and record.is_finished:
                found[record.cell] = record
            elif record.cell is not None and record.failed_by_numbers:
                found.setdefault(record.cell, record)
        return found

    @cached_property
    def _teacher_sha256(self) -> str | None:
        return None if self.study.teacher is None else _sha256_of_weights(self.study.teacher, "teacher")

    @cached_property
    def _initial_sha256(self) -> dict[str, str]:
        """The hashes of all initial weights by their names in recipes."""
        named = {cell.recipe.initial: cell.method for cell in reversed(self.cells) if cell.recipe.initial}
        return {name: _sha256_of_weights(name, f"methods.{method}.initial") for name, method in named.items()}

    def _key(self, cell: Cell) -> str:
        """Identifies what the results of a cell depend on: equal keys, equal trainings."""
        given, data, teacher = self._teacher_sha256, self.trainer.data_sha256, None
        if _needs_teacher(cell):
            is_given = given is not None and cell.control != "same_width_teacher"
            teacher = given if is_given else teacher_key(teacher_recipe(self.study, cell), data)
        decisive = {"recipe": decisive_tree(cell.recipe), "control": cell.control, "teacher": teacher, "data": data}
        if cell.recipe.initial is not None:
            decisive["initial"] = self._initial_sha256[cell.recipe.initial]
        return json_hash({**decisive, "bpfn": bpfn_cli.__version__})

    def _times_as_long(self, cell: Cell, ended: Ended) -> float | None:
        """How much longer than from scratch the slowest method of this variant learns; None: not all have ended.

        The factor of a trained control of this variant holds for other seeds too, as long as the methods are the same.
        Failed methods do not count.
        """
        same = [other for other in self.cells if other.recipe.variant == cell.recipe.variant]
        for known in (ended[other.name] for other in same if other.name in ended):
            if known.times_as_long is not None and list(known.slowest_of or ()) == self._methods(cell):
                return known.times_as_long
        times: dict[str, list[RunRecord]] = {}
        for other in (other for other in same if other.control is None):
            if other.name not in ended:
                return None
            if ended[other.name].is_finished:
                times.setdefault(other.method, []).append(ended[other.name])
        scratch = times.pop(SCRATCH, None)
        if not scratch or not times:
            return None
        return max(1.0, max(_seconds(runs) for runs in times.values()) / _seconds(scratch))

    def _methods(self, cell: Cell) -> list[str]:
        """The methods of a cell's variant."""
        same = (one for one in self.cells if one.control is None and one.recipe.variant == cell.recipe.variant)
        return sorted({one.method for one in same})


def _needs_teacher(cell: Cell) -> bool:
    return bool(cell.recipe.distillation_losses()) and cell.recipe.control != "random"


def _sha256_of_weights(name: str, place: str) -> str:
    try:
        path = find_weights(Path(name))
    except CheckpointError as error:
        raise UsageError(f"{place}: {error}") from None
    if not path.is_file():
        raise UsageError(f"{place}: {printable(path)}: no such file")
    return sha256_of(path)


def _seconds(records: Sequence[RunRecord]) -> float:
    return learning_seconds([one.epoch_seconds for one in records], [one.prepare_seconds or 0 for one in records])
