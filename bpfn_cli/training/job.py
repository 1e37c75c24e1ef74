# SPDX-License-Identifier: MIT
"""A job: a recipe and everything it needs, looked up once and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.config import json_hash
from bpfn_cli.data.datasets import Pairs, SceneDataset, find_data, find_dataset
from bpfn_cli.data.datasets.base import DataIdentity
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.losses import LOSSES, is_own_loss
from bpfn_cli.recipes.identity import teacher_key
from bpfn_cli.recipes.recipe import DataSettings, Recipe
from bpfn_cli.rng import keyed_generator
from bpfn_cli.shipped import find_weights
from bpfn_cli.stop import Interruption
from bpfn_cli.strategies import STRATEGIES


@dataclass(frozen=True)
class OpenedDataset:
    """A dataset, opened once: what identifies it, and its training and test scenes, which may be the same ones.

    test: None: there are none, since the data have no labels. test_path: another dataset, whose test scenes these are;
    it is part of the identity.
    """

    path: Path
    identity: DataIdentity
    train: SceneDataset
    test: SceneDataset | None
    test_path: Path | None = None

    @classmethod
    def open(
        cls, path: Path, test_path: Path | None = None, split: str = "train", data: DataSettings | None = None
    ) -> OpenedDataset:
        """Args: split: the one to train on. data: how to read it; None: by default.

        Raises: as `find_data` and `Dataset.open`.
        """
        data = data or DataSettings()
        found = find_data(path, data.kind, data.frame, data.remove_ground)
        train, identity = found.open(split), found.identity
        if isinstance(found.format, Pairs):
            found.format.check(train)
        if split != "train":
            identity = replace(identity, train_scenes=len(train))
        if test_path is None:
            return cls(path, identity, train, found.open("test") if found.format.has_flow else None)
        test = find_dataset(test_path).open("test")
        identity = replace(identity, sha256=json_hash([identity.sha256, test.identity()]))
        return cls(path, identity, train, test, test_path)

    @cached_property
    def test_sha256(self) -> str:
        """Identifies the test split; empty if there is none."""
        return "" if self.test is None else self.test.identity()

    def without_labels(self) -> OpenedDataset:
        """The same with labels of the test scenes alone."""
        return replace(self, train=self.train.without_labels())


@dataclass(frozen=True)
class Split:
    """Indices of training scenes: to learn from, to select the best checkpoint, and for strategies that validate."""

    learn: list[int]
    held_out: list[int]
    meta_val: list[int] = field(default_factory=list)


def split_scenes(dataset: SceneDataset, held_out: float, seed: int, meta_val: float = 0) -> Split:
    """Hold out shares of the training scenes, by whole sequences; equal seeds give equal splits."""
    sequences = [dataset.format.sequence(name) for name in dataset.names]
    ranked = sorted(set(sequences), key=lambda sequence: keyed_generator("holdout", seed, sequence).random())
    first = min(len(ranked) - 1, max(1, round(held_out * len(ranked)))) if held_out > 0 else 0
    second = min(len(ranked) - 1 - first, max(1, round(meta_val * len(ranked)))) if meta_val > 0 else 0
    groups = map(set, (ranked[first + second :], ranked[:first], ranked[first : first + second]))
    return Split(*([index for index, one in enumerate(sequences) if one in group] for group in groups))


@dataclass(frozen=True)
class Job:
    """One training, resolved: the recipe, its data and where everything is.

    Attributes: runs: the folder of run folders. command: what the user typed, for the record.
        must_be_new: an existing run of this name is an error; otherwise a number is appended to the name.
        teacher: a checkpoint; None: the recipe's teacher is found among the runs, or trained first.
        initial: a checkpoint to start the student from, copied or sliced; None: random weights. That of the recipe,
            unless a resumed run knows where it was.
        allow_code: a recipe may name a loss of the user's own, which is code; import it.
        labels: more entries for run.json, where the training is part of a study.
        notes: what was changed in the recipe, for the user.
    """

    recipe: Recipe
    data: OpenedDataset
    split: Split
    runs: Path
    device: torch.device
    command: str = ""
    name: str | None = None
    must_be_new: bool = False
    teacher: Path | None = None
    initial: Path | None = None
    allow_code: bool = False
    labels: Mapping[str, Any] = field(default_factory=dict)
    stop: Interruption = field(default_factory=Interruption)
    notes: tuple[str, ...] = ()

    @classmethod
    def resolve(cls, recipe: Recipe, data: Path | OpenedDataset, runs: Path, device: torch.device, **more: Any) -> Job:
        """Open and split the data. Raises: as `OpenedDataset.open`; UsageError: another format; `runs` inside."""
        test = None if recipe.data.test is None else Path(recipe.data.test)
        split = recipe.data.split
        opened = OpenedDataset.open(data, test, split, recipe.data) if isinstance(data, Path) else data
        if opened.test_path != test:
            raise UsageError(f"data.test {printable(test)}: all trainings here test on {printable(opened.test_path)}")
        if opened.train.split != split:
            raise UsageError(f"data.split {split}: all trainings here learn from split {opened.train.split}")
        wanted, root = recipe.data.kind, opened.train.root
        if wanted not in ("auto", opened.train.kind):
            raise UsageError(f"data.kind {wanted}: {printable(root)} is {opened.train.kind}; change one of them")
        if opened.path.is_dir() and root.resolve() in (runs.resolve(), *runs.resolve().parents):
            raise UsageError(f"--runs {printable(runs)}: lies inside the dataset {printable(root)}; choose another")
        if recipe.initial is not None and more.get("initial") is None:
            more["initial"] = find_weights(Path(recipe.initial))
        if not recipe.data.labels:
            opened = opened.without_labels()
        return cls(recipe, opened, split_for(recipe, opened.train), runs, device, **more)._with_early_calibration()

    def _with_early_calibration(self) -> Job:
        """In a training too short for `calibration_step`, hints get their weight after a quarter of the steps."""
        names, options = self.recipe.losses(), self.recipe.objective
        wanted = options.calibration_step
        if self.steps > wanted or not options.scales_hints or not options.gamma:
            return self
        if not any(is_own_loss(name) or LOSSES[name].kind == "hint" for name in names):
            return self
        lowered = self.steps // 4
        objective = replace(options, calibration_step=lowered)
        why = f"lowered to {lowered}, since the training ends after {self.steps} steps"
        note = f"objective.calibration_step {wanted}: {why}"
        return replace(self, recipe=replace(self.recipe, objective=objective), notes=(*self.notes, note))

    def for_teacher(self) -> Job:
        """The job that trains the recipe's teacher, on the same data."""
        recipe = self.recipe.for_teacher()
        split, stop = split_for(recipe, self.data.train), self.stop
        return Job(recipe, self.data, split, self.runs, self.device, command=self.command, stop=stop)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.split.learn) // self.recipe.train.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.recipe.train.epochs * self.steps_per_epoch

    @property
    def teacher_key(self) -> str:
        """Identifies the teacher that this job would train."""
        return teacher_key(self.recipe, self.data.identity.sha256)


def split_for(recipe: Recipe, dataset: SceneDataset) -> Split:
    """The split that a recipe asks for."""
    strategy = STRATEGIES[recipe.strategy.kind]
    needs_meta_val = strategy.needs_meta_val(getattr(recipe.strategy, recipe.strategy.kind, None))
    held_out = recipe.data.holdout if recipe.train.select_on == "held_out" else 0
    seed = recipe.seed if recipe.data.holdout_seed is None else recipe.data.holdout_seed
    return split_scenes(dataset, held_out, seed, recipe.data.meta_val if needs_meta_val else 0)
