# SPDX-License-Identifier: MIT
"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

import torch

from bpfn_cli import distributed
from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.data.datasets.scenes import sequence_of
from bpfn_cli.data.loader import explained_workers, training_batches
from bpfn_cli.errors import BpfnError
from bpfn_cli.metrics.evaluation import MODEL, SceneResult, evaluate, network_flow
from bpfn_cli.metrics.scene_flow import MeanMetrics
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.parallel import usable_cores
from bpfn_cli.progress import Bar
from bpfn_cli.recipes.calendar import is_validation_epoch
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.rng import keyed_generator
from bpfn_cli.strategies import STRATEGIES
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.checkpointer import Keeper
from bpfn_cli.training.state import Training

MOST_WORKERS = 8  # a sample is read and augmented in milliseconds


@dataclass(frozen=True)
class Split:
    """Indices of the training scenes that are learned from, of those that choose the best checkpoint, and of those that
    a strategy validates its student on."""

    learn: list[int]
    held_out: list[int]
    meta_val: list[int] = field(default_factory=list)


def split_holdout(dataset: SceneDataset, share: float, seed: int, meta_val: float = 0) -> Split:
    """Hold out a share of the training scenes, by whole sequences, the same for every run with this seed.

    Args: meta_val: share of the scenes that is held back besides.
    """
    sequences = [sequence_of(dataset.kind, name) for name in dataset.names]
    ranked = sorted(set(sequences), key=lambda sequence: keyed_generator("holdout", seed, sequence).random())
    count = min(len(ranked) - 1, max(1, round(share * len(ranked)))) if share > 0 else 0
    meta_val_scenes = min(len(ranked) - 1 - count, max(1, round(meta_val * len(ranked)))) if meta_val > 0 else 0
    out, asked = set(ranked[:count]), set(ranked[count : count + meta_val_scenes])

    def of(chosen: set[int | str]) -> list[int]:
        return [index for index, sequence in enumerate(sequences) if sequence in chosen]

    return Split(of(set(ranked) - out - asked), of(out), of(asked))


def split_of(dataset: SceneDataset, recipe: Recipe) -> Split:
    """The split of a recipe."""
    strategy = STRATEGIES[recipe.strategy.kind]
    needs_meta_val = strategy.needs_meta_val(getattr(recipe.strategy, recipe.strategy.kind, None))
    holdout = recipe.data.holdout if recipe.train.select_on == "held_out" else 0
    return split_holdout(dataset, holdout, recipe.seed, recipe.data.meta_val if needs_meta_val else 0)


def batches_per_epoch(dataset: SceneDataset, recipe: Recipe) -> int:
    """Optimizer steps of an epoch."""
    return -(-len(split_of(dataset, recipe).learn) // recipe.train.batch_size)


def count_steps(dataset: SceneDataset, recipe: Recipe) -> int:
    """Optimizer steps of a whole training."""
    return recipe.train.epochs * batches_per_epoch(dataset, recipe)


def epoch_batches(
    dataset: SceneDataset,
    indices: Sequence[int],
    recipe: Recipe,
    epoch: int,
    device: torch.device,
    start: int = 0,
    is_shared: bool = False,
) -> Generator[FlowBatch, None, None]:
    """The batches of an epoch from the `start`-th on, as a recipe draws them, on a device.

    Args: is_shared: only this process's part of each, where several train together.
    """
    workers = recipe.data.workers
    batches = training_batches(
        dataset,
        indices,
        points=recipe.data.points,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        epoch=epoch,
        augmentation=recipe.data.augment,
        workers=default_workers(device) if workers is None else workers,
        views=recipe.data.views,
        start=start,
        timeout=recipe.data.timeout,
        part=(distributed.rank(), distributed.size()) if is_shared else (0, 1),
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield batch.to(device)


def default_workers(device: torch.device) -> int:
    """Processes that load scenes while the device computes: none beside a CPU, which they would share."""
    return 0 if device.type == "cpu" else max(1, min(MOST_WORKERS, usable_cores() - 1))


def fit(
    training: Training,
    dataset: SceneDataset,
    examination: Examination | None,
    keeper: Keeper,
    bar: Bar,
    device: torch.device,
) -> None:
    """Train and validate, from where `training` stands to the end of its last epoch.

    Args: examination: chooses the best checkpoint; None: the last one is the best.
    Raises: NonFiniteError, DataError, DiskError, OutOfMemoryError; Interrupted: somebody has asked for it.
    """
    recipe = training.recipe
    learn, total = split_of(dataset, recipe).learn, count_steps(dataset, recipe)
    with keeper.stop.deferred(), explained_workers():
        while not training.is_done:
            training.begin_epoch()
            left = epoch_batches(dataset, learn, recipe, training.epoch, device, training.batch, is_shared=True)
            with contextlib.closing(left) as batches:
                for batch in keeper.guarded(batches):
                    training.step(batch)
                    bar(training.position, total, training.glance())
                    keeper.save_in_time()
                    keeper.stop_if_asked()
            if examination is not None and examination.is_due(training.epoch):
                started = time.monotonic()
                epe3d = keeper.saving_first(partial(examination.epe3d, training.strategy.student, keeper.stop.check))
                training.observe(epe3d, time.monotonic() - started)
            keeper.end_epoch()
            keeper.stop_if_asked()


@dataclass(frozen=True)
class Examination:
    """What chooses the best checkpoint: scenes that nothing is learned from.

    Attributes: indices: of the scenes of `dataset`.
    """

    dataset: SceneDataset
    indices: Sequence[int]
    recipe: Recipe
    device: torch.device

    @classmethod
    def of(
        cls, dataset: SceneDataset, test: SceneDataset | None, recipe: Recipe, device: torch.device
    ) -> Examination | None:
        """Of a recipe: the scenes held out of the training ones, or those of the test split; None: there are none.

        Args: test: the test split, where the recipe selects on it.
        """
        if recipe.train.select_on == "test" and test is not None:
            return cls(test, range(len(test)), recipe, device)
        held_out = split_of(dataset, recipe).held_out
        return cls(dataset, held_out, recipe, device) if held_out else None

    def is_due(self, epoch: int) -> bool:
        """Whether the recipe validates after an epoch, counted from 0."""
        options = self.recipe.train
        return is_validation_epoch(epoch, options.epochs, options.validation_calendar, options.validate_every)

    def epe3d(self, network: BiPointFlowNet, check: Callable[[], None] = lambda: None) -> float:
        """EPE3D of a network, metres; the same figure twice.

        Args: check: called after each scene; may raise to end the work.
        """
        own = list(self.indices)[distributed.rank() :: distributed.size()]
        scenes: list[SceneResult] = []
        error: BpfnError | None = None
        try:
            if own:
                predictors = {MODEL: network_flow(network, self.device)}
                points, seed = self.recipe.data.points, self.recipe.seed
                scenes = list(
                    evaluate(
                        predictors, self.dataset, points=points, seed=seed, indices=own, progress=lambda *_: check()
                    ).scenes
                )
        except BpfnError as one:
            error = one
        distributed.raise_any(error)
        mean = MeanMetrics()
        # In the order of one process alone, since sums depend on it.
        for row in zip_longest(*distributed.gather(scenes)):
            for scene in row:
                if scene is not None:
                    mean.add(scene.metrics[MODEL])
        return mean.result().epe3d
