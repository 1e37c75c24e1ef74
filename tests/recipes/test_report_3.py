# SPDX-License-Identifier: MIT
"""The recipes and studies of report 3 train what it trained, on the scenes that it tested on."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_folders import write_scene
from torch import Tensor
from toys import TINY, batch_of, network

from bpfn_cli.cli.main import run
from bpfn_cli.data.datasets.kitti import evaluation_scenes
from bpfn_cli.losses import build_losses
from bpfn_cli.models import build_model, save_checkpoint
from bpfn_cli.recipes.identity import decisive_tree
from bpfn_cli.recipes.reading import load_recipe
from bpfn_cli.recipes.recipe import SCRATCH
from bpfn_cli.structures import FlowPyramid
from bpfn_cli.studies.study import cells_of, read_study
from bpfn_cli.training import Job
from bpfn_cli.training.build import check_job
from bpfn_cli.training.loop.validate import Validator

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("reports/report3/*.yaml"))
BASIC = CONFIGS / "reports" / "report3" / "kitti-half-basic.yaml"
TEACHERS = {"kitti": "report3-kitti-baseline-teacher", "flyingthings3d": "flyingthings3d-baseline-teacher"}
GAMMAS = ("1", "0.7", "0.5", "0.3", "0.1")
LEARNED, OTHER = (2, 3, 7, 199), (0, 1, 4, 5)  # evaluated by papers, and not


def by_name(path: Path) -> str:
    return path.stem


def command_of(path: Path) -> list[str]:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# bpfn ")
    return shlex.split(first[2:])[1:]


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes under their real names."""
    folder, generator = tmp_path_factory.mktemp("kitti") / "kitti_processed", np.random.default_rng(0)
    assert set(LEARNED) < set(evaluation_scenes()) and not set(OTHER) & set(evaluation_scenes())
    for scene in (*LEARNED, *OTHER):
        pc1 = generator.uniform((-5, -1, 2), (5, 3, 20), (1100, 3))
        write_scene(folder / f"{scene:06d}", pc1, pc1 + generator.normal(0, 0.5, pc1.shape))
    return folder


def test_report_3_has_a_recipe_for_each_kind_of_row() -> None:
    assert [path.stem for path in RECIPES] == ["kitti-baseline-teacher", "kitti-half-basic", "kitti-half-scratch"]


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_recipe_of_report_3_names_command_report_and_schedule(path: Path) -> None:
    _, variant, method = path.stem.split("-")
    words = command_of(path)
    name = f"report3-{path.stem}"
    data = ["-c", f"configs/reports/report3/{path.name}", "--data", "data/kitti", "--name", name, "--resume"]
    teacher = ["--teacher", "runs/report3-kitti-baseline-teacher/student.safetensors"]
    assert words == (["distill", *data, *teacher] if method == "basic" else ["train", *data])
    assert path.read_text().splitlines()[1].startswith(f'# Compression report 3, row "{variant}, ')
    recipe = load_recipe(path, [], {})
    assert (recipe.variant.name, recipe.teacher.name) == (variant, "baseline")
    assert recipe.loss == (("basic",) if method == "basic" else ("none",))
    train = recipe.train
    assert (train.epochs, train.batch_size, train.lr, train.decay, train.lr_floor) == (1200, 8, 1e-3, 0.5, 1e-5)
    assert (train.schedule, train.step_epochs) == ("step", 80 if method == "teacher" else 150)
    assert (recipe.data.points, recipe.data.kind) == (8192, "kitti")


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_report_3_learns_from_all_scenes_it_is_tested_on_and_selects_on_them(path: Path, kitti: Path) -> None:
    job = Job.resolve(load_recipe(path, ["data.points=1024"], {}), kitti, Path("/elsewhere"), torch.device("cpu"))
    tested = tuple(f"{scene:06d}" for scene in LEARNED)
    assert job.data.train.names == job.data.test.names == tested
    assert (job.split.learn, job.split.held_out) == ([0, 1, 2, 3], [])
    validator = Validator.create(job)
    assert validator is not None and validator.dataset is job.data.test
    check_job(job)
    honest = Job.resolve(
        load_recipe(path, ["data.points=1024", "data.split=train"], {}), kitti, Path("/elsewhere"), job.device
    )
    assert set(honest.data.train.names).isdisjoint(tested)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_loss_of_report_3_is_shared_between_teacher_and_truth(gamma: str) -> None:
    recipe = load_recipe(BASIC, [f"objective.gamma={gamma}"], {})
    batch = batch_of(2)
    with torch.no_grad():
        own, teacher = (network(seed=seed)(batch.pc1, batch.pc2) for seed in (1, 2))
    found = sum(build_losses(recipe.loss, TINY, TINY, recipe.objective)(own, teacher, batch).values())
    share = float(gamma)
    expected = share * reduced(own, teacher.flows[0]) + (1 - share) * reduced(own, batch.flow)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def at_all_levels(finest: Tensor, output: FlowPyramid) -> list[Tensor]:
    """(B, N, 3) at the sample points of each level; indices refer to the level above."""
    found = [finest]
    for level in (1, 2, 3):
        indices = output.sample_indices1[level]
        found.append(torch.stack([rows[index] for rows, index in zip(found[-1], indices, strict=True)]))
    return found


def reduced(output: FlowPyramid, finest: Tensor) -> Tensor:
    """R: the weighted sum over levels of the mean over the batch of the sum over points of the distances."""
    triples = zip((0.02, 0.04, 0.08, 0.16), output.flows, at_all_levels(finest, output), strict=True)
    distances = [weight * (own - other).square().sum(2).sqrt().sum(1).mean() for weight, own, other in triples]
    return torch.stack(distances).sum()


@pytest.mark.parametrize("trained_on", TEACHERS)
def test_study_of_report_3_is_the_recipe_with_each_gamma(trained_on: str) -> None:
    path = CONFIGS / "studies" / f"report3-{trained_on}.yaml"
    study = read_study(path)
    assert command_of(path) == ["compare", f"configs/studies/{path.name}", "--data", "data/kitti"]
    assert study.teacher == f"runs/{TEACHERS[trained_on]}/student.safetensors"
    found = {cell.method: decisive_tree(cell.recipe) for cell in cells_of(study)}
    expected = {f"basic-{gamma}": load_recipe(BASIC, [f"objective.gamma={gamma}"], {}) for gamma in GAMMAS}
    expected[SCRATCH] = load_recipe(BASIC.with_name("kitti-half-scratch.yaml"), [], {})
    assert found == {method: decisive_tree(recipe) for method, recipe in expected.items()}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_dry_run_of_report_3_takes_trial_steps(
    path: Path, kitti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as printed, with other data."""
    monkeypatch.chdir(CONFIGS.parent)
    save_checkpoint(tmp_path / "teacher.safetensors", build_model("baseline"))
    words = command_of(path)
    for option, value in (("--data", kitti), ("--teacher", tmp_path / "teacher.safetensors")):
        if option in words:
            words[words.index(option) + 1] = str(value)
    assert run([*words, "--set", "data.points=1024", "--set", "train.batch_size=1", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "4 of the 142 evaluation scenes" in printed.err and "s per step" in printed.out
