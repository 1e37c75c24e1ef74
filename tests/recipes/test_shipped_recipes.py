# SPDX-License-Identifier: MIT
"""Every recipe in configs/ loads, works, and its first line is the command that runs it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tiny_world import write_things

from bpfn_cli.cli.main import run
from bpfn_cli.models import build_model, read_checkpoint, save_checkpoint
from bpfn_cli.recipes.reading import load_recipe
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.reporting.published import read_published
from bpfn_cli.shipped import shipped_networks
from bpfn_cli.studies.study import cells_of, read_study

FOLDER = Path(__file__).parents[2] / "configs"
REPORTS = sorted(FOLDER.glob("reports/*.yaml"))
STUDIES = sorted(FOLDER.glob("studies/*.yaml"))
NETWORKS = sorted(FOLDER.glob("networks/*.yaml"))
SOURCES = {"flyingthings3d": "flyingthings3d", "fifth": "flyingthings3d_1_5", "kitti": "kitti"}
LOSSES = {
    "scratch": ("none",),
    "teacher": ("none",),
    "learned_from_teacher": ("basic",),
    "learned_from_student": ("basic",),
    "hint": ("basic", "hint"),
    "bihint": ("basic", "bihint"),
    "bihint_scratch": ("basic", "bihint"),
    "bridge": ("basic", "bridge"),
    "bridge_mix": ("basic", "bridge"),
}


def command_of(path: Path) -> list[str]:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# bpfn ")
    return shlex.split(first[2:])[1:]


def test_synthetic_recipe_is_the_embedded_default() -> None:
    path = FOLDER / "synthetic.yaml"
    assert load_recipe(path, [], {}) == Recipe()
    assert command_of(path) == ["distill", "-c", "configs/synthetic.yaml"]


def test_every_experiment_of_the_reports_has_a_recipe() -> None:
    wanted = {(entry.trained_on, entry.variant, entry.method) for entry in read_published().results}
    found = set()
    for path in REPORTS:
        where, variant, method = path.stem.split("-")
        found.add((SOURCES[where], variant, method))
    assert found >= wanted
    assert len(REPORTS) == 26


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_recipe_of_a_report_names_report_and_row(path: Path) -> None:
    assert re.match(r'# Compression reports? \d( and \d)?, row "[^"]+"', path.read_text().splitlines()[1])


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_recipe_of_a_report_has_its_schedule(path: Path) -> None:
    recipe = load_recipe(path, [], {})
    where, variant, method = path.stem.split("-")
    assert recipe.variant.name == ("declinear34" if variant == "declinear" else variant)
    assert recipe.loss == LOSSES.get(method, (method,))
    assert recipe.teacher.name == ("half" if method == "learned_from_student" else "baseline")
    train = recipe.train
    epochs = 1200 if path.stem == "kitti-half-basic" else 560  # report 3
    assert (train.epochs, train.batch_size, train.schedule, train.decay) == (epochs, 8, "step", 0.5)
    assert (train.lr, train.validation_calendar) == (1e-3, "fast")
    if method == "teacher":
        assert (train.step_epochs, train.lr_floor) == (80, 1e-5)
    elif where == "kitti":  # reports 1 and 3
        assert (train.step_epochs, train.lr_floor) == (150, 1e-5)
    else:
        assert (train.step_epochs, train.lr_floor) == (100, 1e-5 if method == "scratch" else 5e-5)
    assert recipe.data.points == 8192


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("data") / "things", train=3, points=1100)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_checkpoint(path, build_model("baseline"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_dry_run_of_a_report_takes_trial_steps(
    path: Path, things: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as printed, with other data."""
    monkeypatch.chdir(FOLDER.parent)
    arguments = command_of(path)
    assert arguments[2] == f"configs/reports/{path.name}"
    for option, value in (("--data", things), ("--teacher", teacher)):
        if option in arguments:
            arguments[arguments.index(option) + 1] = str(value)
    smaller = ["--set", "data.points=1024", "--set", "train.batch_size=1", "--dry-run", "--json"]
    assert run([*arguments, *smaller]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["seconds_per_step"] > 0
    assert found["recipe"]["train"]["epochs"] == load_recipe(path, [], {}).train.epochs


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_study_loads_and_names_its_command(path: Path) -> None:
    assert cells_of(read_study(path))
    assert command_of(path)[:2] == ["compare", f"configs/studies/{path.name}"]


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.name)
def test_recipe_of_a_network_has_its_command_and_sizes(path: Path) -> None:
    assert command_of(path)[:3] == ["train", "-c", f"configs/networks/{path.name}"]
    (shipped,) = [one for one in shipped_networks().values() if f"configs/networks/{path.name}" in one.card.recipes]
    recipe = load_recipe(path, [], {})
    assert recipe.variant == read_checkpoint(shipped.path).variant
    if path.stem == shipped.name:  # the last of its recipes
        assert recipe.data.cloud_points == shipped.card.points
