# SPDX-License-Identifier: MIT
"""Carrying out a study: each cell is trained once, whichever process trains it, and controls wait for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from small_studies import SHORT, names, study
from tiny_world import BIG, LEAST, Quiet, tiny_network

from bpfn_cli.errors import NonFiniteError, UsageError
from bpfn_cli.locks import only_holder
from bpfn_cli.models import save_checkpoint
from bpfn_cli.parallel import Shard
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.runs.record import Paths, RunRecord, TrainingData
from bpfn_cli.studies.runner import LOCKS, StudyRunner
from bpfn_cli.studies.study import Study, cells_of, teacher_recipe

SECONDS = {"scratch": 1.0, "basic": 2.0, "hint": 3.0}  # of an epoch, by method


class InstantTrainer:
    """Writes the record of a finished run, without training.

    Attributes: broken: methods whose training fails by NaN. stop_at: number of the training that is stopped.
    """

    data_sha256 = "data"

    def __init__(self, folder: Path):
        self.folder = folder
        self.broken: set[str] = set()
        self.has_broken_teacher = False
        self.stop_at: int | None = None
        self.trained: list[str] = []
        self.resumed: list[str] = []
        self.teachers: dict[tuple[str, int], Path] = {}

    def check(self, recipe: Recipe, teacher: Path | None) -> None:
        pass

    def train(self, recipe: Recipe, name: str, teacher: Path | None, labels: Mapping[str, Any]) -> None:
        self.trained.append(name)
        method, epochs = labels["method"], recipe.train.epochs
        first = RunRecord(
            role="student",
            variant=recipe.variant.name,
            seed=recipe.seed,
            points=1024,
            epochs=epochs,
            data=TrainingData(source_kind="synthetic", train_scenes=3, fraction=None),
            paths=Paths(data="data", device="cpu"),
            started=datetime(2025, 1, 1, 0, len(self.trained), tzinfo=timezone.utc),
            **labels,
        )
        run = RunFolder.create(self.folder, name, config="", command="", record=first)
        with run.working():
            if len(self.trained) == self.stop_at:
                raise KeyboardInterrupt
            if method in self.broken:
                raise NonFiniteError(f"term {method} is nan")
            run.update(epochs_done=epochs, epoch_seconds=(SECONDS.get(method, 1.0),) * epochs, prepare_seconds=0.0)

    def resume(self, run: Path, teacher: Path | None) -> None:
        self.resumed.append(run.name)
        folder = RunFolder.open(run)
        with folder.working():
            folder.update(epochs_done=folder.record.epochs, epoch_seconds=(1.0,) * folder.record.epochs)

    def find_teacher(self, recipe: Recipe) -> Path | None:
        return self.teachers.get((recipe.teacher.name, recipe.seed))

    def train_teacher(self, recipe: Recipe) -> Path:
        if self.has_broken_teacher:
            raise NonFiniteError("the teacher is nan")
        path = self.folder / f"teacher-{recipe.teacher.name}-{recipe.seed}"
        self.teachers[recipe.teacher.name, recipe.seed] = path
        return path

    def check_stop(self) -> None:
        pass


@pytest.fixture
def trainer(tmp_path: Path) -> InstantTrainer:
    return InstantTrainer(tmp_path / "runs")


def runner_of(given: Study, trainer: InstantTrainer, shard: Shard = Shard()) -> StudyRunner:  # noqa: B008
    return StudyRunner(given, trainer.folder, trainer, shard)


def states_of(given: Study, trainer: InstantTrainer) -> dict[str, str]:
    return {one.cell.name: one.state for one in runner_of(given, trainer).states()}


def test_run_trains_each_cell_once_with_one_teacher_for_all_seeds(trainer: InstantTrainer) -> None:
    given = study(controls=("equal_time", "same_width_teacher", "random_teacher"), control_loss="hint")
    after = runner_of(given, trainer).run(Quiet())
    assert {one.state for one in after} == {"finished"}
    assert sorted(trainer.trained) == sorted(names(given))
    assert set(trainer.teachers) == {("big", 0), ("tiny", 1_000_003)}  # the latter differs from every student
    runner_of(given, trainer).run(progress := Quiet())
    assert (progress.lines, len(trainer.trained)) == ([], len(names(given)))


def test_control_of_equal_time_trains_as_long_as_the_slowest_method(trainer: InstantTrainer) -> None:
    given = study(controls=("equal_time",))
    runner_of(given, trainer).run(Quiet())
    record = RunFolder.open(trainer.folder / "tiny-equal_time-seed0").record
    assert (record.times_as_long, record.epochs) == (3.0, 3)
    assert record.slowest_of == ("basic", "hint", "scratch")


def test_methods_of_equal_loss_are_kept_apart(trainer: InstantTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECONDS, "basic-0.1", 4.0)
    methods = {f"basic-{gamma}": {"loss": ["basic"], "objective": {"gamma": gamma}} for gamma in (0.1, 0.3)}
    given = study(losses=("none",), methods=methods, controls=("equal_time",))
    runner_of(given, trainer).run(Quiet())
    records = [RunFolder.open(trainer.folder / f"tiny-basic-{gamma}-seed0").record for gamma in (0.1, 0.3)]
    assert [record.method for record in records] == ["basic-0.1", "basic-0.3"]
    assert len({record.cell_key for record in records}) == 2
    equal = RunFolder.open(trainer.folder / "tiny-equal_time-seed0").record
    assert (equal.times_as_long, equal.slowest_of) == (4.0, ("basic-0.1", "basic-0.3", "scratch"))


def test_methods_share_the_teacher_of_the_study_whatever_their_own_training(trainer: InstantTrainer) -> None:
    slow = {"loss": ["hint"], "train": {"lr": 0.5}, "data": {"points": LEAST + 1}}
    given = study(methods={"slow": slow, "other-teacher": {"loss": ["hint"], "teacher": "baseline"}})
    recipes = {cell.method: teacher_recipe(given, cell) for cell in cells_of(given)}
    assert recipes["slow"] == recipes["hint"]
    assert recipes["hint"].train.lr != 0.5
    assert recipes["other-teacher"].teacher.name == "baseline"


def test_initial_weights_of_a_method_are_identified_by_their_content(trainer: InstantTrainer, tmp_path: Path) -> None:
    start, moved = tmp_path / "start.safetensors", tmp_path / "moved.safetensors"
    save_checkpoint(start, tiny_network(0))
    save_checkpoint(moved, tiny_network(0))
    given = study(losses=("none",), methods={"tuned": {"initial": str(start)}}, seeds=(0,))
    runner_of(given, trainer).run(Quiet())
    same = replace(given, methods={"tuned": {"initial": str(moved)}})
    assert set(states_of(same, trainer).values()) == {"finished"}
    save_checkpoint(moved, tiny_network(1))
    with pytest.raises(UsageError, match=r"tiny-tuned-seed0 was trained with another recipe"):
        states_of(same, trainer)
    moved.unlink()
    with pytest.raises(UsageError, match=r"methods\.tuned\.initial: .*moved\.safetensors: no such file"):
        states_of(same, trainer)


def test_more_seeds_and_losses_continue_a_study(trainer: InstantTrainer) -> None:
    given = study(controls=("equal_time",))
    runner_of(given, trainer).run(Quiet())
    found = states_of(replace(given, seeds=(0, 1, 2), losses=(*given.losses, "ail")), trainer)
    assert found["tiny-basic-seed1"] == "finished"
    assert found["tiny-ail-seed0"] == found["tiny-basic-seed2"] == "to do"
    assert found["tiny-equal_time-seed2"] == "waiting"  # for the times of the new loss
    # With the same losses, it takes as long as those of the other seeds.
    assert states_of(replace(given, seeds=(0, 1, 2)), trainer)["tiny-equal_time-seed2"] == "to do"


def test_control_of_equal_time_is_trained_again_for_a_new_method(trainer: InstantTrainer) -> None:
    given = study(losses=("none", "hint"), seeds=(0,), controls=("equal_time",))
    runner_of(given, trainer).run(Quiet())
    more = replace(given, losses=("none", "hint", "basic"))
    runner_of(more, trainer).run(Quiet())
    records = [
        RunFolder.open(trainer.folder / name).record for name in ("tiny-equal_time-seed0", "tiny-equal_time-seed0-2")
    ]
    assert [record.slowest_of for record in records] == [("hint", "scratch"), ("basic", "hint", "scratch")]
    assert set(states_of(more, trainer).values()) == {"finished"}


def test_study_with_another_recipe_or_teacher_is_refused(trainer: InstantTrainer, tmp_path: Path) -> None:
    given = study()
    runner_of(given, trainer).run(Quiet())
    teacher = tmp_path / "other.safetensors"
    save_checkpoint(teacher, tiny_network(0, BIG))
    changed = {**SHORT, "train": {**SHORT["train"], "lr": 5e-4}}  # type: ignore[dict-item]
    for other in (
        replace(given, recipe=changed),
        replace(given, teacher=str(teacher)),
        replace(given, seeds=(1, 0)),
    ):
        with pytest.raises(UsageError, match=r"was trained with another recipe, teacher, dataset .* another --name"):
            runner_of(other, trainer).run(Quiet())
    with pytest.raises(UsageError, match=r"teacher: gone: no such file"):
        runner_of(replace(given, teacher="gone"), trainer).states()


def test_cell_that_fails_by_nan_is_reported_and_trained_again_only_on_request(trainer: InstantTrainer) -> None:
    given = study(seeds=(0,), controls=("equal_time",))
    trainer.broken = {"basic"}
    runner_of(given, trainer).run(progress := Quiet())
    assert "tiny-basic-seed0: failed: term basic is nan" in progress.lines
    found = states_of(given, trainer)
    assert found["tiny-basic-seed0"] == "failed"
    assert found["tiny-equal_time-seed0"] == "finished"  # by the methods that did not fail
    runner_of(given, trainer).run(again := Quiet())
    assert again.lines == []
    trainer.broken = set()
    runner_of(given, trainer).run(Quiet(), retry=True)
    assert set(states_of(given, trainer).values()) == {"finished"}


def test_teacher_that_fails_by_nan_ends_the_study(trainer: InstantTrainer) -> None:
    trainer.has_broken_teacher = True
    with pytest.raises(NonFiniteError, match="the teacher is nan"):
        runner_of(study(seeds=(0,)), trainer).run(Quiet())
    assert trainer.trained == ["tiny-scratch-seed0"]


def test_shards_split_the_cells(trainer: InstantTrainer) -> None:
    given = study(losses=("none", "basic"))
    for index in (1, 2):
        shard = Shard.parse(f"{index}/2")
        assert len(runner_of(given, trainer, shard).planned()) == 2
        runner_of(given, trainer, shard).run(Quiet())
        assert len(trainer.trained) == 2 * index
    assert set(states_of(given, trainer).values()) == {"finished"}


def test_stopped_study_resumes_the_interrupted_run(trainer: InstantTrainer) -> None:
    given = study(losses=("none", "basic"))
    trainer.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        runner_of(given, trainer).run(Quiet())
    assert list(states_of(given, trainer).values()) == ["finished", "finished", "to do", "to do"]
    runner_of(given, trainer).run(progress := Quiet())
    assert trainer.resumed == [names(given)[2]]
    assert f"resuming {trainer.folder / names(given)[2]}" in progress.lines
    assert set(states_of(given, trainer).values()) == {"finished"}
    assert trainer.trained == names(given)


def test_run_that_cannot_be_resumed_is_restarted(trainer: InstantTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    given = study(losses=("none", "basic"))
    trainer.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        runner_of(given, trainer).run(Quiet())

    def refuse(*_: object) -> None:
        raise UsageError("torch 1.0, now 2.0")

    monkeypatch.setattr(trainer, "resume", refuse)
    runner_of(given, trainer).run(progress := Quiet())
    assert "restarting: torch 1.0, now 2.0" in progress.lines
    assert set(states_of(given, trainer).values()) == {"finished"}


def test_cell_of_another_process_is_left_to_it(trainer: InstantTrainer) -> None:
    given = study(losses=("none", "hint"), seeds=(0,))
    lock = trainer.folder / LOCKS / "tiny-scratch-seed0"
    lock.parent.mkdir(parents=True)
    progress = Quiet()
    with only_holder(lock):
        after = runner_of(given, trainer).run(progress)
    assert {one.cell.name: one.state for one in after} == {
        "tiny-scratch-seed0": "to do",
        "tiny-hint-seed0": "finished",
    }
    assert "tiny-scratch-seed0: another process is training it" in progress.lines
