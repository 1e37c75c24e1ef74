# SPDX-License-Identifier: MIT
"""Trainings without labels: on one's own clouds, and on a dataset whose labels are withheld."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import NAME, StopAfter, digest, job_for, metrics_of, record_of, resume_run, small_recipe, train_run
from tiny_world import BIG, LEAST, TINY, tiny_network

from bpfn_cli.cli.main import run
from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.errors import Interrupted, UsageError
from bpfn_cli.losses import LOSSES
from bpfn_cli.models import load_checkpoint
from bpfn_cli.recipes.identity import decisive_tree
from bpfn_cli.recipes.reading import CONFIDENCE_M, load_recipe
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import STRATEGIES
from bpfn_cli.training.build import check_job
from bpfn_cli.training.loop.validate import Validator

pytestmark = pytest.mark.usefixtures("one_thread")

WITHHELD = {"labels": False, "holdout": 0.3}


def unlabeled(*losses: str, **changes: Any) -> Recipe:
    data, train = {**WITHHELD, **changes.pop("data", {})}, {"epochs": 2, **changes.pop("train", {})}
    return small_recipe(
        loss=list(losses), data=data, train=train, objective={"basic": {"confidence_m": 0.1}}, **changes
    )


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of a LiDAR."""
    folder, generator = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    cloud = generator.normal(0, (12, 8, 0.7), (LEAST + 300, 3))
    for number in range(4):
        np.save(folder / f"{number}.npy", (cloud + np.array([0.3 * number, 0, 0])).astype(np.float32))
    return folder


def lines_of(words: list[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = run([*map(str, words), "--device", "cpu"])
    said = capsys.readouterr()
    return code, (said.out + said.err).splitlines()


# --- recipes ------------------------------------------------------------------------------------------


def test_default_without_labels_is_the_teachers_flow_by_its_confidence() -> None:
    recipe = load_recipe(None, ["data.labels=false"], {})
    assert (recipe.loss, recipe.objective.basic.confidence_m) == (("basic",), CONFIDENCE_M)
    assert recipe.method() == "basic+unlabeled"
    for given in (["data.frame=lidar"], ["data.kind=pairs"]):
        assert load_recipe(None, given, {}).loss == ("basic",)
    own = load_recipe(None, ["data.labels=false", "loss=[basic,chamfer]", "objective.basic.confidence_m=null"], {})
    assert (own.loss, own.objective.basic.confidence_m) == (("basic", "chamfer"), None)
    labeled = load_recipe(None, ["loss=[basic]"], {})
    assert (labeled.objective.basic.confidence_m, labeled.method()) == (None, "basic")


def test_recipe_with_labels_has_the_identity_that_it_had_before_labels_could_be_left_out() -> None:
    tree = decisive_tree(small_recipe(loss=["basic"]))
    assert not {"labels", "frame", "remove_ground"} & tree["data"].keys()
    assert "confidence_m" not in tree["objective"]["basic"]
    assert decisive_tree(unlabeled("basic"))["data"]["labels"] is False


# --- what needs labels is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        *(({"loss": ["basic", name]}, f"loss {name} needs labels") for name in LOSSES if LOSSES[name].needs_truth),
        ({"loss": ["none"]}, "the supervised loss (--loss none) needs labels"),
        *(
            ({"loss": ["basic"], "strategy": {"kind": name}}, f"strategy.kind {name}: needs labels")
            for name in STRATEGIES
            if STRATEGIES[name].needs_truth
        ),
        ({"loss": ["basic"], "early_stop": {"kind": "hard"}}, "early_stop.kind hard: without labels, nothing would be"),
    ],
)
def test_what_needs_labels_is_refused_with_one_line_before_training(
    changes: dict[str, Any], expected: str, things: Path, runs: Path
) -> None:
    job = job_for(things, runs, small_recipe(data={**WITHHELD, "meta_val": 0.2}, **changes))
    with pytest.raises(UsageError) as caught:
        check_job(job)
    assert str(caught.value).startswith(expected)
    assert str(caught.value).isprintable()


def test_teacher_cannot_be_trained_without_labels(things: Path, runs: Path) -> None:
    with pytest.raises(UsageError, match="no teacher big is given, and none can be trained without labels; give --tea"):
        train_run(things, runs, unlabeled("basic"))
    assert not list(runs.iterdir())


def test_selection_on_test_scenes_needs_a_labeled_dataset(frames: Path, runs: Path) -> None:
    recipe = unlabeled("basic", data={"frame": "lidar"}, train={"select_on": "test"})
    with pytest.raises(UsageError, match=r"^train\.select_on test: these data have no labels; name a labeled dataset"):
        check_job(job_for(frames, runs, recipe))


# --- labels withheld ----------------------------------------------------------------------------------


def test_withheld_labels_are_not_loaded_and_the_scenes_are_otherwise_the_same(things: Path) -> None:
    labeled = open_dataset(things, "train")
    withheld = labeled.without_labels()
    assert (labeled.has_flow, withheld.has_flow) == (True, False)
    assert withheld.identity() == labeled.identity()
    first, second = labeled.load(0), withheld.load(0)
    assert first.flow is not None and second.flow is None
    assert np.array_equal(first.pc1, second.pc1) and np.array_equal(first.pc2, second.pc2)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [("basic", "chamfer"), ("chamfer",)])
def test_run_without_labels_resumes_to_the_same_weights_and_is_tested_with_labels(
    losses: tuple[str, ...], things: Path, teacher: Path, tmp_path: Path
) -> None:
    recipe, given = unlabeled(*losses), {"teacher": teacher} if "basic" in losses else {}
    said = train_run(things, tmp_path / "whole", recipe, **given)
    assert "labels: none; the student learns without the supervised loss" in said.lines
    with pytest.raises(Interrupted):
        train_run(things, tmp_path / "parts", recipe, stop=StopAfter(4), **given)
    resume_run(tmp_path / "parts")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    record, by = record_of(tmp_path / "whole"), "teacher_distance" if given else "nearest"
    assert (record["selected_by"], record["method"]) == (by, "+".join([*losses, "unlabeled"]))
    assert record.get("best_validation_epe3d") is None
    assert record["epe3d"] > 0
    metrics = metrics_of(tmp_path / "whole")
    assert all(math.isfinite(line[f"validation_{by}"]) for line in metrics)
    assert not any(key.startswith(("loss_supervised", "validation_epe3d")) for line in metrics for key in line)


@pytest.mark.slow
def test_views_from_the_teacher_cache_give_the_same_weights(things: Path, teacher: Path, tmp_path: Path) -> None:
    recipe = unlabeled("basic", data={"views": 1})
    cached = replace(recipe, train=replace(recipe.train, teacher_cache=str(tmp_path / "cache")))
    train_run(things, tmp_path / "with", cached, teacher=teacher)
    train_run(things, tmp_path / "without", recipe, teacher=teacher)
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert digest(tmp_path / "with") == digest(tmp_path / "without")


def test_best_epoch_is_the_one_nearest_to_the_teacher_or_to_the_second_cloud(things: Path, runs: Path) -> None:
    job = job_for(things, runs, unlabeled("basic"))
    scene = job.data.train.sample(job.split.held_out[0], LEAST, np.random.default_rng(0))
    assert scene.flow is None
    student, guide = tiny_network(1), tiny_network(2, BIG)
    near, far = (Validator.create(job, network) for network in (guide, None))
    assert near is not None and far is not None
    assert (near.by, far.by) == ("teacher_distance", "nearest")
    assert near.measure(guide) == 0 < near.measure(student)
    assert far.measure(student) == far.measure(student) > 0


# --- one's own clouds ---------------------------------------------------------------------------------


def recipe_file(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"variant: {TINY.name}\nteacher: {BIG.name}\ndata: {{points: {LEAST}, holdout: 0.3}}\n"
        "train: {epochs: 2, batch_size: 1, validate_every: 1, warmup_steps: 0}\n"
    )
    return path


def test_distill_on_ones_own_clouds_then_evaluate_and_report(
    frames: Path, things: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, recipe = tmp_path / "runs", recipe_file(tmp_path)
    given = ["--data", frames, "--frame", "lidar", "--teacher", teacher, "--runs", runs]
    code, lines = lines_of(["distill", "-c", recipe, *given, "--name", NAME], capsys)
    assert code == 0, lines
    said = " ".join(" ".join(lines).split())
    assert "pairs, 3 pairs without true flow" in said
    assert "not tested: these data have no labels; test it with `bpfn eval --checkpoint" in said
    found = record_of(runs)
    assert (found["method"], found["selected_by"]) == ("basic+unlabeled", "teacher_distance")
    assert found.get("epe3d") is None
    assert found["data"]["kind"] == "pairs"
    load_checkpoint(runs / NAME / "student.safetensors")
    # Finished: resuming says so. Evaluation is on labeled data.
    assert resume_run(runs).lines == [f"{runs / NAME}: already finished"]
    words = ["eval", "--checkpoint", runs / NAME, "--data", things, "--points", LEAST, "--runs", runs, "--json"]
    assert run([*map(str, words), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"]["kind"] == "flyingthings3d"
    assert run(["report", "--runs", str(runs)]) == 0
    assert "basic+unlabeled" in capsys.readouterr().out


@pytest.mark.slow
def test_interrupted_run_on_ones_own_clouds_is_resumed_from_its_folder(
    frames: Path, teacher: Path, tmp_path: Path
) -> None:
    recipe = unlabeled("basic", data={"labels": True, "frame": "lidar"})
    train_run(frames, tmp_path / "whole", recipe, teacher=teacher)
    with pytest.raises(Interrupted):
        train_run(frames, tmp_path / "parts", recipe, teacher=teacher, stop=StopAfter(3))
    resume_run(tmp_path / "parts")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["missing", "unit", "empty"])
def test_bad_clouds_are_refused_before_anything_is_written(
    fault: str, frames: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(frames, tmp_path / "scans")
    source = folder
    if fault == "missing":
        source = tmp_path / "pairs.txt"
        source.write_text("scans/0.npy scans/1.npy\nscans/1.npy scans/9.npy\n")
    else:
        np.save(folder / "3.npy", np.load(folder / "3.npy") / 100 if fault == "unit" else np.empty((0, 3), np.float32))
    words = ["distill", "-c", recipe_file(tmp_path), "--data", source, "--frame", "lidar", "--teacher", teacher]
    code, lines = lines_of([*words, "--runs", tmp_path / "runs"], capsys)
    assert code == 3
    told = {"missing": "line 2: ", "unit": "in different units?", "empty": "3.npy: empty"}[fault]
    assert len(lines) == 1 and told in lines[0]
    assert not (tmp_path / "runs").exists()
