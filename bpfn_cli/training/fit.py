# SPDX-License-Identifier: MIT
"""The training loop."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.data.loader import training_batches
from bpfn_cli.data.sampling import keyed_generator
from bpfn_cli.metrics.evaluation import MODEL, evaluate, network_flow
from bpfn_cli.strategies import PlainStrategy
from bpfn_cli.training.progress import Bar
from bpfn_cli.training.recipe import Recipe, learning_rate
from bpfn_cli.training.run_folder import RunFolder

SCENES_OF_A_SEQUENCE = 10  # consecutive numbers in FlyingThings3D; approximate, where frames are left out


@dataclass(frozen=True)
class Split:
    """Indices of the training scenes that are learned from, and of those that choose the best checkpoint."""

    learn: list[int]
    held_out: list[int]


def split_holdout(dataset: SceneDataset, share: float, seed: int) -> Split:
    """Hold out a share of the training scenes, by whole sequences, the same for every run with this seed."""
    length = 1 if dataset.kind == "synthetic" else SCENES_OF_A_SEQUENCE
    sequences = [int(name) // length if name.isdecimal() else name for name in dataset.names]
    ranked = sorted(set(sequences), key=lambda sequence: keyed_generator("holdout", seed, sequence).random())
    count = min(len(ranked) - 1, max(1, round(share * len(ranked)))) if share > 0 else 0
    out = set(ranked[:count])
    held_out = [index for index, sequence in enumerate(sequences) if sequence in out]
    return Split([index for index, sequence in enumerate(sequences) if sequence not in out], held_out)


def count_steps(dataset: SceneDataset, recipe: Recipe) -> int:
    """Optimizer steps of a whole training."""
    learned = len(split_holdout(dataset, recipe.data.holdout, recipe.seed).learn)
    return recipe.train.epochs * -(-learned // recipe.train.batch_size)


def fit(
    strategy: PlainStrategy,
    dataset: SceneDataset,
    recipe: Recipe,
    run: RunFolder,
    bar: Bar,
    device: torch.device,
) -> Path:
    """Train, validate, keep `last` and `best`; return the checkpoint to deploy.

    The best is the one with the lowest EPE3D on the held-out training scenes; without any, the last.
    Raises: NonFiniteError, DataError, DiskError.
    """
    options, split = recipe.train, split_holdout(dataset, recipe.data.holdout, recipe.seed)
    total = count_steps(dataset, recipe)
    steps_per_epoch = total // options.epochs
    best_epe3d, best = float("inf"), None
    for epoch in range(options.epochs):
        sums = TermMeans()
        started = time.monotonic()
        for batch in training_batches(
            dataset,
            split.learn,
            points=recipe.data.points,
            batch_size=options.batch_size,
            seed=recipe.seed,
            epoch=epoch,
            augmentation=recipe.data.augment,
            workers=recipe.data.workers,
        ):
            rate = learning_rate(options, strategy.steps, steps_per_epoch)
            sums.add(strategy.step(batch.to(device), rate), len(batch.names))
            bar(strategy.steps, total, f"loss {sums.total():.1f}" + _validated(best_epe3d))
        seconds = time.monotonic() - started
        record = {"epoch": epoch + 1, "lr": rate, "seconds": round(seconds, 3), **sums.means()}
        record |= strategy.objective.scales()
        if split.held_out and is_validation_epoch(epoch, options.epochs, options.validate_every):
            record["validation_epe3d"] = _validation_epe3d(strategy, dataset, split.held_out, recipe, device)
        last = run.save("last", strategy.student, epoch=epoch + 1)
        if record.get("validation_epe3d", float("inf")) < best_epe3d:
            best_epe3d = record["validation_epe3d"]
            best = run.save("best", strategy.student, epoch=epoch + 1, validation_epe3d=best_epe3d)
        run.log_metrics(record)
        run.record(epochs_done=epoch + 1)
    return best or last


def is_validation_epoch(epoch: int, epochs: int, every: int) -> bool:
    """True for every `every`-th epoch and the last; epochs count from 0."""
    return (epoch + 1) % every == 0 or epoch + 1 == epochs


class TermMeans:
    """Means of the loss terms over samples: sums and a count, divided once."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.samples = 0

    def add(self, terms: dict[str, float], samples: int) -> None:
        for name, value in terms.items():
            self.sums[name] += value * samples
        self.samples += samples

    def means(self) -> dict[str, float]:
        return {f"loss_{name}": value / self.samples for name, value in self.sums.items()}

    def total(self) -> float:
        return sum(self.means().values())


def _validation_epe3d(
    strategy: PlainStrategy, dataset: SceneDataset, held_out: list[int], recipe: Recipe, device: torch.device
) -> float:
    predictors = {MODEL: network_flow(strategy.student, device)}
    measured = evaluate(predictors, dataset, points=recipe.data.points, seed=recipe.seed, indices=held_out)
    return measured.means[MODEL].epe3d


def _validated(best_epe3d: float) -> str:
    return "" if best_epe3d == float("inf") else f", validation EPE3D {best_epe3d:.3f} m"
