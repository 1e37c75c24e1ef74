# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from small_runs import CPU
from tiny_world import LEAST, TINY, Scenes, tiny_network

from bpfn_cli.data.datasets.base import DataIdentity
from bpfn_cli.data.loader import AugmentSettings, training_batches
from bpfn_cli.errors import NonFiniteError
from bpfn_cli.losses import build_losses
from bpfn_cli.metrics.evaluation import evaluate, network_flow
from bpfn_cli.models import load_checkpoint, read_checkpoint
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.recipe import DataSettings, Recipe, TrainSettings
from bpfn_cli.stop import Interruption
from bpfn_cli.strategies import PlainStrategy, TermRecord
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.job import Job, OpenedDataset
from bpfn_cli.training.loop.batches import Batches, epoch_batches
from bpfn_cli.training.loop.checkpointer import Checkpointer
from bpfn_cli.training.loop.fit import fit
from bpfn_cli.training.loop.state import Training
from bpfn_cli.training.loop.validate import Validator
from bpfn_cli.training.start import create_run

IDENTITY = DataIdentity("synthetic", "synthetic", "memory", 5, 5, None, None, None, "0")


def numbered(count: int) -> tuple[str, ...]:
    return tuple(f"{index:07d}" for index in range(count))


@dataclass
class Short:
    """A short training on five scenes in memory, one of them held out."""

    folder: Path
    epochs: int = 3
    every: int = 1
    holdout: float = 0.2

    def __post_init__(self) -> None:
        augment = AugmentSettings(scale=0, rotation_degrees=0, shift_m=0, shift2_m=0)
        train = TrainSettings(
            epochs=self.epochs, batch_size=3, validate_every=self.every, schedule="step", step_epochs=1, lr=1e-3
        )
        data = DataSettings(points=LEAST, holdout=self.holdout, augment=augment)
        self.recipe = Recipe(loss=("none",), data=data, train=train)
        self.dataset = Scenes(numbered(5))
        opened = OpenedDataset(Path("memory"), None, self.dataset, self.dataset)  # type: ignore[arg-type]
        self.job = Job.resolve(self.recipe, opened, self.folder, CPU)
        objective = build_losses(["none"], TINY)
        self.strategy = PlainStrategy(tiny_network(), None, objective, weight_decay=0, clip_norm=None)
        self.run = create_run(replace(self.job, data=replace(opened, identity=IDENTITY), name="a"), "student")
        self.bar: list[tuple[int, int, str]] = []
        self.said: list[str] = []
        early_stop, steps = EarlyStop(self.recipe.early_stop), self.job.steps_per_epoch
        self.training = Training(self.strategy, self.recipe, early_stop, steps, self.said.append)

    def fit(self) -> Path:
        """Train to the end; returns the deployed weights."""

        def batches_of(epoch: int, start: int) -> Batches:
            return epoch_batches(self.job, self.job.split.learn, epoch, start=start, shared=True)

        checkpointer = Checkpointer(self.training, self.run, Interruption())
        fit(self.training, batches_of, Validator.create(self.job), checkpointer, self._bar)
        return self.run.deploy(self.training.number if self.training.best is None else self.training.best)

    def _bar(self, done: int, total: int, figures: str = "") -> None:
        self.bar.append((done, total, figures))

    def lines(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.run.path / "metrics.jsonl").read_text().splitlines()]

    def checkpoints(self) -> dict[str, int]:
        """The epochs of the linked checkpoints."""
        found = [path for path in (self.run.path / "checkpoints").glob("*.safetensors") if path.is_symlink()]
        return {path.stem: read_checkpoint(path).metadata["epoch"] for path in found}


def scripted(monkeypatch: pytest.MonkeyPatch, *epe3d: float) -> None:
    """Let validations measure these values."""
    figures = iter(epe3d)
    monkeypatch.setattr(Validator, "measure", lambda *_: next(figures))


def test_fit_deploys_the_epoch_of_the_lowest_validation_and_keeps_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Short(tmp_path)
    scripted(monkeypatch, 0.5, 0.3, 0.4)
    deployed = training.fit()
    assert training.checkpoints() == {"best": 2, "last": 3}
    assert read_checkpoint(deployed).metadata == {"run": "a", "epoch": 2, "validation_epe3d": 0.3}
    assert not read_checkpoint(deployed).beside
    kept = training.run.path / "checkpoints" / "last.safetensors"
    assert "validation_epe3d" not in read_checkpoint(kept).metadata
    last, student = load_checkpoint(kept), training.strategy.student
    for name, tensor in student.state_dict().items():
        assert torch.equal(last.state_dict()[name], tensor)
    assert not torch.equal(load_checkpoint(deployed).flow0.fc.bias, student.flow0.fc.bias)
    assert [line["validation_epe3d"] for line in training.lines()] == [0.5, 0.3, 0.4]
    assert training.run.record.epochs_done == 3


def test_equal_validations_keep_the_earlier_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Short(tmp_path, epochs=2)
    scripted(monkeypatch, 0.5, 0.5)
    training.fit()
    assert training.checkpoints() == {"best": 1, "last": 2}


def test_fit_validates_the_present_weights_on_the_held_out_scenes(tmp_path: Path) -> None:
    training = Short(tmp_path, epochs=2, every=2)
    deployed = training.fit()
    held_out = training.job.split.held_out
    assert len(held_out) == 1
    predictors = {"model": network_flow(load_checkpoint(deployed))}
    expected = evaluate(predictors, training.dataset, points=LEAST, seed=0, indices=held_out).means["model"].epe3d
    first, second = training.lines()
    assert "validation_epe3d" not in first
    assert second["validation_epe3d"] == pytest.approx(expected, rel=1e-6)
    assert read_checkpoint(deployed).metadata["validation_epe3d"] == second["validation_epe3d"]


def test_fit_without_held_out_scenes_deploys_the_last_epoch(tmp_path: Path) -> None:
    training = Short(tmp_path, epochs=2, holdout=0)
    assert read_checkpoint(training.fit()).metadata == {"run": "a", "epoch": 2}
    assert training.checkpoints() == {"last": 2}
    assert all("validation_epe3d" not in line for line in training.lines())


def test_fit_logs_means_over_samples_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Short(tmp_path, epochs=2)
    steps: list[tuple[int, float, float]] = []
    step = training.strategy.step

    def spy(batch: FlowBatch, rate: float, measure_gradients: bool) -> dict[str, TermRecord]:
        terms = step(batch, rate, measure_gradients)
        steps.append((len(batch.names), rate, terms["supervised"].weighted))
        return terms

    monkeypatch.setattr(training.strategy, "step", spy)
    training.fit()
    assert [size for size, _, _ in steps] == [3, 1, 3, 1]  # four scenes are learned from
    for number, line in enumerate(training.lines()):
        (_, rate, many), (_, _, one) = steps[2 * number : 2 * number + 2]
        assert line["epoch"] == number + 1
        assert line["lr"] == rate == 1e-3 / 2**number
        assert line["loss_supervised"] == pytest.approx((3 * many + one) / 4)
        assert line["seconds"] >= 0
    assert [(done, total) for done, total, _ in training.bar] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "validation" not in training.bar[0][2]
    assert f"validation EPE3D {training.lines()[0]['validation_epe3d']:.3f} m" in training.bar[-1][2]


def test_each_epoch_has_its_own_batches_of_the_learned_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Short(tmp_path, epochs=2)
    seen: list[FlowBatch] = []
    terms = {"supervised": TermRecord(1.0, 0.5, 2.0, None, None, {}, {})}
    monkeypatch.setattr(training.strategy, "step", lambda batch, rate, _: seen.append(batch) or terms)
    training.fit()
    data, learn = training.recipe.data, training.job.split.learn
    expected = [
        batch
        for epoch in (0, 1)
        for batch in training_batches(
            training.dataset, learn, points=LEAST, batch_size=3, seed=0, epoch=epoch, augmentation=data.augment
        )
    ]
    assert [batch.names for batch in seen] == [batch.names for batch in expected]
    assert all(torch.equal(one.pc1, other.pc1) for one, other in zip(seen, expected, strict=True))


def make_gradients_nan(training: Short, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let the gradients of these batches, counted from 0, be NaN, though their losses are not."""
    step, number = training.strategy.step, iter(range(10**6))

    def poisoned(batch: FlowBatch, rate: float, measure_gradients: bool) -> dict[str, TermRecord]:
        if next(number) not in steps:
            return step(batch, rate, measure_gradients)
        bias = training.strategy.student.flow0.fc.bias
        hook = bias.register_hook(lambda gradient: gradient * torch.nan)
        try:
            return step(batch, rate, measure_gradients)
        finally:
            hook.remove()

    monkeypatch.setattr(training.strategy, "step", poisoned)


def test_step_with_a_non_finite_gradient_is_skipped_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Short(tmp_path, epochs=2)
    make_gradients_nan(training, monkeypatch, {1})
    training.fit()
    assert training.strategy.steps == 3  # of four
    (told,) = training.said
    assert re.fullmatch(r"skipped step 2, epoch 1: the gradient is nan for the samples 000000\d; lower .*", told)
    assert [line.get("skipped_steps") for line in training.lines()] == [1, None]
    assert all(bool(tensor.isfinite().all()) for tensor in training.strategy.student.state_dict().values())
    assert [line["lr"] for line in training.lines()] == [1e-3, 5e-4]  # a skipped step does not shift the schedule


def test_training_that_skips_too_many_steps_fails_and_keeps_earlier_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Short(tmp_path)
    training.recipe = replace(training.recipe, train=replace(training.recipe.train, most_skipped=1))
    training.training.recipe = training.recipe
    make_gradients_nan(training, monkeypatch, {2, 3})
    with pytest.raises(NonFiniteError, match=r"2 steps of epoch 2 were skipped \(train.most_skipped\)"):
        training.fit()
    assert training.checkpoints() == {"best": 1, "last": 1}
    assert len(training.lines()) == training.run.record.epochs_done == 1


def test_network_that_predicts_nan_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Short(tmp_path)
    step = training.strategy.step

    def poisoned(batch: FlowBatch, rate: float, measure_gradients: bool) -> dict[str, TermRecord]:
        terms = step(batch, rate, measure_gradients)
        if training.strategy.steps == 4:
            with torch.no_grad():
                training.strategy.student.flow0.fc.bias.fill_(torch.nan)
        return terms

    monkeypatch.setattr(training.strategy, "step", poisoned)
    with pytest.raises(NonFiniteError):
        training.fit()
    assert training.checkpoints() == {"best": 1, "last": 1}


def test_accumulated_step_counts_as_one(tmp_path: Path) -> None:
    training = Short(tmp_path, epochs=1, holdout=0)
    training.strategy.accumulate = 2
    training.fit()
    assert training.strategy.steps == 2  # five scenes in batches of three
