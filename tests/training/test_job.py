# SPDX-License-Identifier: MIT
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import CPU, small_recipe, train_run
from tiny_world import BIG, LEAST, Scenes, tiny_network, write_things

from bpfn_cli.errors import UsageError
from bpfn_cli.metrics.evaluation import evaluate, network_flow
from bpfn_cli.models import save_checkpoint
from bpfn_cli.recipes.recipe import DataSettings, Recipe, TrainSettings
from bpfn_cli.training.job import Job, OpenedDataset, split_scenes
from bpfn_cli.training.loop.batches import epoch_batches
from bpfn_cli.training.loop.validate import Validator
from bpfn_cli.training.start import paths_of


def job_on(recipe: Recipe, train: Scenes, test: Any = None) -> Job:
    """A job on scenes in memory."""
    opened = OpenedDataset(Path("memory"), None, train, test)  # type: ignore[arg-type]
    return Job.resolve(recipe, opened, Path("/elsewhere"), CPU)


def numbered(count: int, step: int = 1) -> tuple[str, ...]:
    return tuple(f"{index * step:07d}" for index in range(count))


def things(*names: str) -> Scenes:
    return Scenes(names, kind="flyingthings3d")


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["flyingthings3d", "synthetic"])
def test_split_is_a_partition_into_whole_sequences(share: float, kind: str) -> None:
    dataset = Scenes(numbered(95), kind=kind)
    split = split_scenes(dataset, share, seed=0)
    assert sorted(split.learn + split.held_out) == list(range(95))
    assert split.learn == sorted(split.learn)
    assert split.held_out == sorted(split.held_out)
    assert split.learn and split.held_out
    if kind == "flyingthings3d":
        assert not {index // 10 for index in split.learn} & {index // 10 for index in split.held_out}


def test_split_holds_out_a_share_of_the_sequences_and_at_least_one() -> None:
    dataset = things(*numbered(200))
    sizes = {share: len(split_scenes(dataset, share, 0).held_out) for share in (0, 0.001, 0.05, 0.2, 0.5)}
    assert sizes == {0: 0, 0.001: 10, 0.05: 10, 0.2: 40, 0.5: 100}
    assert len(split_scenes(Scenes(numbered(200)), 0.05, 0).held_out) == 10  # each synthetic scene is a sequence


@pytest.mark.parametrize(
    "dataset", [things("0000003"), things("0000000", "0000009"), Scenes(("0000004",))], ids=["one", "sequence", "scene"]
)
def test_split_learns_from_a_single_sequence(dataset: Scenes) -> None:
    split = split_scenes(dataset, 0.9, 0)
    assert (split.learn, split.held_out) == (list(range(len(dataset))), [])


def test_split_always_leaves_scenes_to_learn_from() -> None:
    assert len(split_scenes(things(*numbered(2, 10)), 0.99, 0).learn) == 1
    assert len(split_scenes(things(*numbered(3, 10)), 0.99, 0).held_out) == 2


def test_split_depends_on_seed_and_names_alone() -> None:
    names = numbered(300)
    splits = {}
    for seed in (0, 1):
        split = split_scenes(things(*names), 0.2, seed)
        splits[seed] = {names[index] for index in split.held_out}
        assert split_scenes(things(*names), 0.2, seed) == split
        turned = things(*reversed(names))
        assert {turned.names[index] for index in split_scenes(turned, 0.2, seed).held_out} == splits[seed]
    assert splits[0] != splits[1]


def test_split_of_seed_0_is_unchanged() -> None:
    """If this fails, runs before and after the change hold out different scenes and cannot be compared."""
    assert split_scenes(Scenes(numbered(20)), 0.2, 0).held_out == [0, 2, 5, 6]


def test_names_that_are_not_numbers_are_separate_sequences() -> None:
    split = split_scenes(things("a", "b", "c", "d"), 0.5, 0)
    assert len(split.learn) == len(split.held_out) == 2


def test_name_of_a_non_decimal_digit_is_a_separate_sequence() -> None:
    assert len(split_scenes(things("\N{SUPERSCRIPT TWO}", "b"), 0.5, 0).held_out) == 1


@pytest.mark.parametrize(("epochs", "batch", "steps"), [(1, 1, 10), (3, 4, 9), (2, 10, 2), (2, 64, 2), (1, 9, 2)])
def test_steps_of_a_job_are_its_batches_times_its_epochs(epochs: int, batch: int, steps: int) -> None:
    train = TrainSettings(epochs=epochs, batch_size=batch)
    recipe = Recipe(loss=("none",), data=DataSettings(points=1024, holdout=0.15), train=train)
    dataset = Scenes(numbered(12), points=1100)
    job = job_on(recipe, dataset)
    assert len(job.split.held_out) == 2
    assert job.steps == epochs * job.steps_per_epoch == steps
    assert len(list(epoch_batches(job, job.split.learn, 0))) == job.steps_per_epoch


def test_held_out_scenes_may_have_a_seed_of_their_own() -> None:
    recipe = Recipe(loss=("none",), seed=1, data=DataSettings(holdout=0.2))
    other = replace(recipe, data=replace(recipe.data, holdout_seed=7))
    scenes = Scenes(numbered(50))
    assert job_on(recipe, scenes).split == split_scenes(scenes, 0.2, 1)
    assert job_on(other, scenes).split == split_scenes(scenes, 0.2, 7) != split_scenes(scenes, 0.2, 1)


def test_published_practice_learns_from_all_scenes_and_selects_on_the_test_split() -> None:
    recipe = Recipe(loss=("none",), data=DataSettings(points=LEAST), train=TrainSettings(select_on="test"))
    test = Scenes(("0000070", "0000080"), split="test")
    job = job_on(recipe, Scenes(numbered(5)), test)
    assert len(job.split.learn) == 5
    chosen = Validator.create(job)
    assert chosen is not None and chosen.dataset is test
    expected = evaluate({"model": network_flow(tiny_network())}, test, points=LEAST, seed=0).means["model"].epe3d
    assert chosen.measure(tiny_network()) == expected == chosen.measure(tiny_network())
    held_out = job_on(replace(recipe, train=TrainSettings()), Scenes(numbered(5)), test)
    other = Validator.create(held_out)
    assert other is not None and other.dataset is held_out.data.train


def test_name_that_no_record_can_hold_is_refused() -> None:
    job = SimpleNamespace(
        data=SimpleNamespace(path=Path("/data/caf\udce9"), test_path=None), teacher=None, initial=None
    )
    with pytest.raises(UsageError, match=r"/data/caf\\udce9: not UTF-8, so run\.json cannot hold this name; rename it"):
        paths_of(job)  # type: ignore[arg-type]


def test_loss_of_whole_batches_takes_no_parts(tmp_path: Path) -> None:
    save_checkpoint(teacher := tmp_path / "big.safetensors", tiny_network(0, BIG))
    recipe = small_recipe(
        loss=["ail"], objective={"ail": {"granularity": "batch"}}, train={"batch_size": 2, "accumulate": 2}
    )
    with pytest.raises(
        UsageError, match=r"loss ail with granularity batch needs whole batches: leave train\.accumulate"
    ):
        train_run(write_things(tmp_path / "things", train=6, val=1), tmp_path / "runs", recipe, teacher=teacher)
