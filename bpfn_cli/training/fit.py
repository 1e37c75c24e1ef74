# SPDX-License-Identifier: MIT
"""The training loop."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.data.loader import training_batches
from bpfn_cli.data.sampling import keyed_generator
from bpfn_cli.data.scenes import sequence_of
from bpfn_cli.metrics.evaluation import MODEL, evaluate, network_flow
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.strategies import STRATEGIES, PlainStrategy, TermRecord
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.calendar import is_validation_epoch
from bpfn_cli.training.early_stop import EarlyStop
from bpfn_cli.training.progress import Bar
from bpfn_cli.training.recipe import Recipe, learning_rate
from bpfn_cli.training.run_folder import RunFolder


@dataclass(frozen=True)
class Split:
    """Indices of the training scenes that are learned from, of those that choose the best checkpoint, and of those that
    a strategy quizzes its student with."""

    learn: list[int]
    held_out: list[int]
    quiz: list[int] = field(default_factory=list)


def split_holdout(dataset: SceneDataset, share: float, seed: int, quiz: float = 0) -> Split:
    """Hold out a share of the training scenes, by whole sequences, the same for every run with this seed.

    Args: quiz: share of the scenes that is held back besides.
    """
    sequences = [sequence_of(dataset.kind, name) for name in dataset.names]
    ranked = sorted(set(sequences), key=lambda sequence: keyed_generator("holdout", seed, sequence).random())
    count = min(len(ranked) - 1, max(1, round(share * len(ranked)))) if share > 0 else 0
    quizzed = min(len(ranked) - 1 - count, max(1, round(quiz * len(ranked)))) if quiz > 0 else 0
    out, asked = set(ranked[:count]), set(ranked[count : count + quizzed])

    def of(chosen: set[int | str]) -> list[int]:
        return [index for index, sequence in enumerate(sequences) if sequence in chosen]

    return Split(of(set(ranked) - out - asked), of(out), of(asked))


def split_of(dataset: SceneDataset, recipe: Recipe) -> Split:
    """The split of a recipe."""
    strategy = STRATEGIES[recipe.strategy.kind]
    needs_quiz = strategy.needs_quiz(getattr(recipe.strategy, recipe.strategy.kind, None))
    return split_holdout(dataset, recipe.data.holdout, recipe.seed, recipe.data.quiz if needs_quiz else 0)


def count_steps(dataset: SceneDataset, recipe: Recipe) -> int:
    """Optimizer steps of a whole training."""
    return recipe.train.epochs * -(-len(split_of(dataset, recipe).learn) // recipe.train.batch_size)


def epoch_batches(dataset: SceneDataset, indices: Sequence[int], recipe: Recipe, epoch: int) -> Iterator[FlowBatch]:
    """The batches of an epoch, as a recipe draws them."""
    return training_batches(
        dataset,
        indices,
        points=recipe.data.points,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        epoch=epoch,
        augmentation=recipe.data.augment,
        workers=recipe.data.workers,
        views=recipe.data.views,
    )


def fit(
    strategy: PlainStrategy,
    dataset: SceneDataset,
    recipe: Recipe,
    run: RunFolder,
    bar: Bar,
    device: torch.device,
    early_stop: EarlyStop | None = None,
) -> Path:
    """Train, validate, keep `last` and `best`; return the checkpoint to deploy.

    The best is the one with the lowest EPE3D on the held-out training scenes; without any, the last.
    Raises: NonFiniteError, DataError, DiskError.
    """
    options, split = recipe.train, split_of(dataset, recipe)
    early_stop = early_stop or EarlyStop(recipe.early_stop)
    total = count_steps(dataset, recipe)
    steps_per_epoch = total // options.epochs
    best_epe3d, best = float("inf"), None
    epoch_seconds: list[float] = []
    for epoch in range(options.epochs):
        log, started = EpochLog(), time.monotonic()
        strategy.objective.teacher_share = early_stop.share(epoch, options.epochs)
        strategy.begin_epoch(epoch, options.epochs)
        for number, batch in enumerate(epoch_batches(dataset, split.learn, recipe, epoch)):
            rate = learning_rate(options, strategy.steps, steps_per_epoch)
            is_measured = number == 0 and options.gradient_every > 0 and epoch % options.gradient_every == 0
            log.add(strategy.step(batch.to(device), rate, is_measured), len(batch.names))
            bar(strategy.steps, total, f"loss {log.total():.1f}" + _validated(best_epe3d))
        seconds = time.monotonic() - started
        epoch_seconds.append(round(seconds, 3))
        record = {"epoch": epoch + 1, "lr": rate, "seconds": round(seconds, 3), **log.figures()}
        record |= {**strategy.objective.scales(), **strategy.figures()}
        if recipe.distillation_losses():
            record["teacher_share"] = strategy.objective.teacher_share
        calendar = options.validation_calendar
        if split.held_out and is_validation_epoch(epoch, options.epochs, calendar, options.validate_every):
            record["validation_epe3d"] = validation_epe3d(strategy.student, dataset, split.held_out, recipe, device)
            early_stop.observe(record["validation_epe3d"])
        last = run.save("last", strategy.student, epoch=epoch + 1)
        if record.get("validation_epe3d", float("inf")) < best_epe3d:
            best_epe3d = record["validation_epe3d"]
            best = run.save("best", strategy.student, epoch=epoch + 1, validation_epe3d=best_epe3d)
        run.log_metrics(record)
        run.record(epochs_done=epoch + 1, epoch_seconds=epoch_seconds)
    return best or last


class EpochLog:
    """What the terms of an epoch's steps amount to: means over samples (sums and counts, divided once).

    Gradient shares are those of the step at which they were measured; weights those of the last step.
    """

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.samples: defaultdict[str, int] = defaultdict(int)
        self.latest: dict[str, float] = {}

    def add(self, terms: dict[str, TermRecord], samples: int) -> None:
        for name, term in terms.items():
            means = {f"loss_{name}": term.weighted, f"raw_{name}": term.raw}
            means |= {f"raw_{name}_level{level}": value for level, value in term.levels.items()}
            means |= {f"figure_{name}_{figure}": value for figure, value in term.figures.items()}
            if term.active is not None:
                means[f"active_{name}"] = term.active
            for key, value in means.items():
                self.sums[key] += value * samples
                self.samples[key] += samples
            self.latest[f"weight_{name}"] = term.weight
            if term.gradient_share is not None:
                self.latest[f"gradient_share_{name}"] = term.gradient_share

    def figures(self) -> dict[str, float]:
        """All of them by name."""
        return {**{key: value / self.samples[key] for key, value in self.sums.items()}, **self.latest}

    def total(self) -> float:
        """The mean of the whole loss."""
        return sum(value for key, value in self.figures().items() if key.startswith("loss_"))


def validation_epe3d(
    network: BiPointFlowNet, dataset: SceneDataset, held_out: list[int], recipe: Recipe, device: torch.device
) -> float:
    """EPE3D on the held-out scenes, metres."""
    predictors = {MODEL: network_flow(network, device)}
    measured = evaluate(predictors, dataset, points=recipe.data.points, seed=recipe.seed, indices=held_out)
    return measured.means[MODEL].epe3d


def _validated(best_epe3d: float) -> str:
    return "" if best_epe3d == float("inf") else f", validation EPE3D {best_epe3d:.3f} m"
