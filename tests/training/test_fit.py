# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from bpfn_cli.training.stop import Interruption
from tiny_world import LEAST, TINY, Scenes, tiny_network

from bpfn_cli.data.augment import AugmentSettings
from bpfn_cli.data.loader import training_batches
from bpfn_cli.errors import NonFiniteError
from bpfn_cli.losses import build_losses
from bpfn_cli.metrics.evaluation import evaluate, network_flow
from bpfn_cli.models import load_checkpoint, read_checkpoint
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.recipe import DataSettings, Recipe, TrainSettings
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.strategies import PlainStrategy, TermRecord
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.loop.checkpointer import Keeper
from bpfn_cli.training.loop.fit import Examination, batches_per_epoch, count_steps, fit, split_holdout, split_of
from bpfn_cli.training.loop.state import EpochLog, Training

CPU = torch.device("cpu")


def numbered(count: int, step: int = 1) -> tuple[str, ...]:
    return tuple(f"{index * step:07d}" for index in range(count))


def things(*names: str) -> Scenes:
    return Scenes(names, kind="flyingthings3d")


# --- holding out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["flyingthings3d", "synthetic"])
def test_split_is_a_partition_by_whole_sequences(share: float, kind: str) -> None:
    dataset = Scenes(numbered(95), kind=kind)
    split = split_holdout(dataset, share, seed=0)
    assert sorted(split.learn + split.held_out) == list(range(95))
    assert split.learn == sorted(split.learn)
    assert split.held_out == sorted(split.held_out)
    assert split.learn and split.held_out
    if kind == "flyingthings3d":
        assert not {index // 10 for index in split.learn} & {index // 10 for index in split.held_out}


def test_share_is_of_the_sequences_and_at_least_one() -> None:
    dataset = things(*numbered(200))
    sizes = {share: len(split_holdout(dataset, share, 0).held_out) for share in (0, 0.001, 0.05, 0.2, 0.5)}
    assert sizes == {0: 0, 0.001: 10, 0.05: 10, 0.2: 40, 0.5: 100}
    assert len(split_holdout(Scenes(numbered(200)), 0.05, 0).held_out) == 10  # each synthetic scene is one


@pytest.mark.parametrize(
    "dataset", [things("0000003"), things("0000000", "0000009"), Scenes(("0000004",))], ids=["one", "sequence", "scene"]
)
def test_a_single_sequence_is_learned_from(dataset: Scenes) -> None:
    split = split_holdout(dataset, 0.9, 0)
    assert (split.learn, split.held_out) == (list(range(len(dataset))), [])


def test_something_is_always_left_to_learn_from() -> None:
    assert len(split_holdout(things(*numbered(2, 10)), 0.99, 0).learn) == 1
    assert len(split_holdout(things(*numbered(3, 10)), 0.99, 0).held_out) == 2


def test_split_is_a_function_of_seed_and_names_alone() -> None:
    names = numbered(300)
    splits = {}
    for seed in (0, 1):
        split = split_holdout(things(*names), 0.2, seed)
        splits[seed] = {names[index] for index in split.held_out}
        assert split_holdout(things(*names), 0.2, seed) == split
        turned = things(*reversed(names))
        assert {turned.names[index] for index in split_holdout(turned, 0.2, seed).held_out} == splits[seed]
    assert splits[0] != splits[1]


def test_the_split_of_seed_0_stays_what_it_is() -> None:
    """If this fails, runs before and after the change held out other scenes: their figures do not compare."""
    assert split_holdout(Scenes(numbered(20)), 0.2, 0).held_out == [0, 2, 5, 6]


def test_names_that_are_no_numbers_are_sequences_of_their_own() -> None:
    split = split_holdout(things("a", "b", "c", "d"), 0.5, 0)
    assert len(split.learn) == len(split.held_out) == 2


def test_name_of_a_digit_that_is_no_decimal_is_a_sequence_of_its_own() -> None:
    assert len(split_holdout(things("\N{SUPERSCRIPT TWO}", "b"), 0.5, 0).held_out) == 1


# --- counting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "batch", "steps"), [(1, 1, 10), (3, 4, 9), (2, 10, 2), (2, 64, 2), (1, 9, 2)])
def test_steps_are_batches_of_the_learned_scenes_times_epochs(epochs: int, batch: int, steps: int) -> None:
    train = TrainSettings(epochs=epochs, batch_size=batch)
    recipe = Recipe(data=DataSettings(holdout=0.15), train=train)
    dataset = Scenes(numbered(12))  # 2 are held out
    assert count_steps(dataset, recipe) == steps
    batches = training_batches(
        Scenes(numbered(12), points=5),
        split_holdout(dataset, 0.15, 0).learn,
        points=5,
        batch_size=batch,
        seed=0,
        epoch=0,
        augmentation=None,
    )
    assert len(list(batches)) * epochs == steps


def record(weighted: float, share: float | None = None, weight: float = 2.0) -> TermRecord:
    return TermRecord(weighted, weighted / weight, weight, None, share, {}, {})


def test_epoch_log_weighs_batches_by_their_samples() -> None:
    log = EpochLog()
    log.add({"supervised": record(1.0, 0.75), "hint": record(2.0, 0.25)}, 4)
    log.add({"supervised": record(6.0), "hint": record(0.0, weight=3.0)}, 1)
    figures = log.figures()
    assert figures["loss_supervised"] == 2.0
    assert figures["loss_hint"] == 1.6
    assert figures["raw_supervised"] == 1.0
    assert (figures["weight_supervised"], figures["weight_hint"]) == (2.0, 3.0)  # of the last step
    assert (figures["gradient_share_supervised"], figures["gradient_share_hint"]) == (0.75, 0.25)  # of the first
    assert log.total() == pytest.approx(3.6)


def test_epoch_log_takes_the_mean_of_a_term_over_the_steps_that_had_it() -> None:
    log = EpochLog()
    log.add({"supervised": record(1.0), "augmented": record(4.0)}, 2)
    log.add({"supervised": record(1.0)}, 2)
    assert log.figures()["loss_augmented"] == 4.0


# --- the loop ---------------------------------------------------------------------------------------


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
        objective = build_losses(["none"], TINY)
        self.strategy = PlainStrategy(tiny_network(), None, objective, weight_decay=0, clip_norm=None)
        self.run = RunFolder.create(self.folder, "a", config="", command="", about={})
        self.bar: list[tuple[int, int, str]] = []
        self.said: list[str] = []
        early_stop, steps = EarlyStop(self.recipe.early_stop), batches_per_epoch(self.dataset, self.recipe)
        self.training = Training(self.strategy, self.recipe, early_stop, steps, self.said.append)

    def fit(self) -> Path:
        """Returns the deployed weights."""
        keeper = Keeper(self.training, self.run, Interruption())
        examination = Examination.of(self.dataset, None, self.recipe, CPU)
        fit(self.training, self.dataset, examination, keeper, self._bar, CPU)
        return self.run.deploy(self.training.number if self.training.best is None else self.training.best)

    def _bar(self, done: int, total: int, figures: str = "") -> None:
        self.bar.append((done, total, figures))

    def lines(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.run.path / "metrics.jsonl").read_text().splitlines()]

    def checkpoints(self) -> dict[str, int]:
        """Epoch by checkpoint that people find."""
        found = [path for path in (self.run.path / "checkpoints").glob("*.safetensors") if path.is_symlink()]
        return {path.stem: read_checkpoint(path).metadata["epoch"] for path in found}


def scripted(monkeypatch: pytest.MonkeyPatch, *epe3d: float) -> None:
    """Let validations find these figures."""
    figures = iter(epe3d)
    monkeypatch.setattr(Examination, "epe3d", lambda *_: next(figures))


def test_fit_returns_the_epoch_of_the_lowest_validation_and_keeps_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Short(tmp_path)
    scripted(monkeypatch, 0.5, 0.3, 0.4)
    deployed = training.loop.fit()
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
    assert training.run.about["epochs_done"] == 3


def test_equal_validations_keep_the_earlier_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Short(tmp_path, epochs=2)
    scripted(monkeypatch, 0.5, 0.5)
    training.loop.fit()
    assert training.checkpoints() == {"best": 1, "last": 2}


def test_fit_validates_on_the_held_out_scenes_with_the_present_weights(tmp_path: Path) -> None:
    training = Short(tmp_path, epochs=2, every=2)
    deployed = training.loop.fit()
    held_out = split_holdout(training.dataset, 0.2, 0).held_out
    assert len(held_out) == 1
    predictors = {"model": network_flow(load_checkpoint(deployed))}
    expected = evaluate(predictors, training.dataset, points=LEAST, seed=0, indices=held_out).means["model"].epe3d
    first, second = training.lines()
    assert "validation_epe3d" not in first
    assert second["validation_epe3d"] == pytest.approx(expected, rel=1e-6)
    assert read_checkpoint(deployed).metadata["validation_epe3d"] == second["validation_epe3d"]


def test_fit_without_held_out_scenes_returns_the_last(tmp_path: Path) -> None:
    training = Short(tmp_path, epochs=2, holdout=0)
    assert read_checkpoint(training.loop.fit()).metadata == {"run": "a", "epoch": 2}
    assert training.checkpoints() == {"last": 2}
    assert all("validation_epe3d" not in line for line in training.lines())


def test_fit_writes_a_line_an_epoch_with_means_over_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Short(tmp_path, epochs=2)
    steps: list[tuple[int, float, float]] = []
    step = training.strategy.step

    def spy(batch: FlowBatch, rate: float, measure_gradients: bool) -> dict[str, TermRecord]:
        terms = step(batch, rate, measure_gradients)
        steps.append((len(batch.names), rate, terms["supervised"].weighted))
        return terms

    monkeypatch.setattr(training.strategy, "step", spy)
    training.loop.fit()
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


def test_each_epoch_takes_its_own_batches_of_the_learned_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Short(tmp_path, epochs=2)
    seen: list[FlowBatch] = []
    terms = {"supervised": record(1.0)}
    monkeypatch.setattr(training.strategy, "step", lambda batch, rate, _: seen.append(batch) or terms)
    training.loop.fit()
    data, learn = training.recipe.data, split_holdout(training.dataset, 0.2, 0).learn
    expected = [
        batch
        for epoch in (0, 1)
        for batch in training_batches(
            training.dataset, learn, points=LEAST, batch_size=3, seed=0, epoch=epoch, augmentation=data.augment
        )
    ]
    assert [batch.names for batch in seen] == [batch.names for batch in expected]
    assert all(torch.equal(one.pc1, other.pc1) for one, other in zip(seen, expected, strict=True))


def poison(training: Short, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
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


def test_step_whose_gradient_is_not_finite_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Short(tmp_path, epochs=2)
    poison(training, monkeypatch, {1})
    training.loop.fit()
    assert training.strategy.steps == 3  # of four
    (told,) = training.said
    assert re.fullmatch(r"skipped: step 2, epoch 1: the gradient is nan for the samples 000000\d; lower .*", told)
    assert [line.get("skipped_steps") for line in training.lines()] == [1, None]
    assert all(bool(tensor.isfinite().all()) for tensor in training.strategy.student.state_dict().values())
    assert [line["lr"] for line in training.lines()] == [1e-3, 5e-4]  # a step left out moves no schedule


def test_training_that_skips_too_much_ends_and_keeps_the_epochs_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Short(tmp_path)
    training.recipe = replace(training.recipe, train=replace(training.recipe.train, most_skipped=1))
    training.training.recipe = training.recipe
    poison(training, monkeypatch, {2, 3})
    with pytest.raises(NonFiniteError, match=r"2 steps of epoch 2 were left out \(train.most_skipped\)"):
        training.loop.fit()
    assert training.checkpoints() == {"best": 1, "last": 1}
    assert len(training.lines()) == training.run.about["epochs_done"] == 1


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
        training.loop.fit()
    assert training.checkpoints() == {"best": 1, "last": 1}


# --- what chooses the best ----------------------------------------------------------------------------


def test_published_practice_learns_from_all_and_chooses_by_the_test_split(tmp_path: Path) -> None:
    training = Short(tmp_path, epochs=2)
    recipe = replace(training.recipe, train=replace(training.recipe.train, select_on="test"))
    assert len(split_of(training.dataset, recipe).learn) == 5
    test = Scenes(("0000070", "0000080"), split="test")
    chosen = Examination.of(training.dataset, test, recipe, CPU)
    assert chosen is not None and chosen.dataset is test
    expected = evaluate({"model": network_flow(tiny_network())}, test, points=LEAST, seed=0).means["model"].epe3d
    assert chosen.epe3d(tiny_network()) == expected == chosen.epe3d(tiny_network())
    held_out = Examination.of(training.dataset, test, training.recipe, CPU)
    assert held_out is not None and held_out.dataset is training.dataset


def test_accumulated_step_counts_as_one(tmp_path: Path) -> None:
    training = Short(tmp_path, epochs=1, holdout=0)
    training.strategy.accumulate = 2
    training.loop.fit()
    assert training.strategy.steps == 2  # five scenes in batches of three
