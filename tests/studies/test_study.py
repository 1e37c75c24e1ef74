# SPDX-License-Identifier: MIT
"""Studies: which trainings there are, that each is done once whoever does it, and what the controls are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import BIG, LEAST, Quiet, write_things

from bpfn_cli.config import build, parse_yaml
from bpfn_cli.errors import NonFiniteError, UsageError
from bpfn_cli.locks import only_holder
from bpfn_cli.models import build_model, save_checkpoint
from bpfn_cli.reporting import read_runs
from bpfn_cli.reporting.comparison import comparison_report
from bpfn_cli.studies import study as module
from bpfn_cli.studies.study import Place, Study, cells_of, read_study, run_study, states
from bpfn_cli.training import pipeline as experiment_module

SHORT = {
    "teacher": "big",
    "data": {"points": LEAST, "holdout": 0},
    "train": {"epochs": 1, "batch_size": 2, "warmup_steps": 0},
    "objective": {"calibration_step": 1},
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("data") / "things", val=2)


def study(**changes: Any) -> Study:
    given: dict[str, Any] = {
        "recipe": SHORT,
        "variants": ("tiny",),
        "losses": ("none", "basic", "hint"),
        "seeds": (0, 1),
        "controls": (),
    }
    return Study(**{**given, **changes})


def place(things: Path, folder: Path, shard: tuple[int, int] = (1, 1)) -> Place:
    return Place(folder=folder, data=things, device=torch.device("cpu"), command="bpfn compare", shard=shard)


def names(given: Study) -> list[str]:
    return [cell.name for cell in cells_of(given)]


def runs_of(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/run.json") if not path.parent.is_symlink())


# --- which trainings ---


def test_cells_are_all_combinations_seed_by_seed() -> None:
    given = study(losses=("none", "basic+hint"), strategies=("plain", "online", "meta"), controls=("equal_time",))
    methods = ("scratch", "basic+hint", "online", "basic+hint+online", "basic+hint+meta", "equal_time")
    assert names(given) == [f"tiny-{what}-seed{seed}" for seed in (0, 1) for what in methods]
    assert names(study(losses=("none", "basic"), strategies=("online",), seeds=(0,)))[0] == "tiny-scratch-seed0"
    cell = cells_of(given)[1]
    assert (cell.recipe.loss, cell.recipe.seed, cell.recipe.variant) == (("basic", "hint"), 0, "tiny")
    assert cell.recipe.objective.calibration_step == 1


def test_controls_have_recipes_of_their_own() -> None:
    controls = ("equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher")
    given = study(controls=controls, control_loss="hint", seeds=(0,))
    controls = {cell.control: cell.recipe for cell in cells_of(given) if cell.control}
    assert controls["equal_time"].loss == ("none",)
    assert controls["same_width_teacher"].teacher == "tiny"
    assert [controls[f"{kind}_teacher"].control for kind in ("random", "shuffled")] == ["random", "shuffled"]
    assert all(controls[kind].loss == ("hint",) for kind in controls if kind != "equal_time")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"losses": ("basic",)}, "losses: add none"),
        ({"recipe": {"seed": 1}}, r"recipe\.seed: the study itself says so"),
        ({"recipe": {"train": {"epoch": 3}}}, r"unknown key train\.epoch, did you mean train\.epochs"),
        ({"losses": ("none", "hnit")}, "did you mean hint"),
        ({"recipe": {"strategy": "online"}}, r"recipe\.strategy: give options of strategies"),
        ({"recipe": {"strategy": {"kind": "self"}}}, r"recipe\.strategy\.kind: the study itself says so"),
        ({"variants": ("tyni",)}, "unknown variant 'tyni'"),
        (
            {"controls": ("random_teacher",), "control_loss": "none"},
            "control_loss none: is none of the losses",
        ),
        ({"controls": ("random_teacher",), "control_loss": "ail"}, "control_loss ail: is none of the losses"),
        ({"seeds": (0, 1, 0)}, "seeds: one stands twice"),
    ],
)
def test_mistakes_of_a_study_are_told(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        cells_of(study(**changes))


def test_study_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("variants: [tiny]\nlosses: [none, basic]\nseeds: [0]\nrecipe: {teacher: big}\n")
    assert read_study(path).seeds == (0,)
    assert build(Study, parse_yaml("{}", "x")) == Study()
    path.write_text("seed: [0]\ncontrols: [equal]\n")
    with pytest.raises(UsageError, match=r"controls\.0: input should be.*unknown key seed, did you mean seeds\?"):
        read_study(path)


# --- doing them ---


@pytest.fixture(scope="module")
def done(things: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Place, Quiet]:
    """A whole study with all controls."""
    controls = ("equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher")
    given = study(controls=controls, control_loss="hint")
    where, progress = place(things, tmp_path_factory.mktemp("study") / "runs"), Quiet()
    assert {state.state for state in run_study(given, where, progress)} == {"finished"}
    return given, where, progress


def about(where: Place, name: str) -> dict[str, Any]:
    return json.loads((where.folder / name / "run.json").read_text())


def test_each_cell_is_trained_once_with_one_teacher_for_all_seeds(done: tuple[Study, Place, Quiet]) -> None:
    given, where, _ = done
    teachers = [name for name in runs_of(where.folder) if name.startswith("teacher-big")]
    own = [name for name in runs_of(where.folder) if name.startswith("teacher-tiny")]
    assert (len(teachers), len(own)) == (1, 1)
    assert runs_of(where.folder) == sorted([*names(given), *teachers, *own])
    taught = [f"tiny-{loss}-seed{seed}" for loss in ("basic", "hint") for seed in (0, 1)]
    weights = about(where, teachers[0])["weights_sha256"]
    assert {about(where, name)["teacher"]["sha256"] for name in taught} == {weights}


def test_controls_are_what_they_say(done: tuple[Study, Place, Quiet]) -> None:
    _, where, _ = done
    equal = about(where, "tiny-equal_time-seed0")
    assert equal["epochs"] == max(1, round(equal["times_as_long"]))
    assert about(where, "tiny-hint-random_teacher-seed0")["teacher"]["path"] == "random weights"
    assert about(where, "tiny-hint-shuffled_teacher-seed1")["method"] == "hint+shuffled-teacher"
    own = about(where, "tiny-hint-same_width_teacher-seed1")["teacher"]
    assert own["variant"] == "tiny"
    assert about(where, own["run"])["seed"] == 1_000_003  # no twin of a student


def test_repeated_study_trains_nothing(done: tuple[Study, Place, Quiet]) -> None:
    given, where, _ = done
    before, progress = runs_of(where.folder), Quiet()
    run_study(given, where, progress)
    assert runs_of(where.folder) == before
    assert progress.lines == []


def test_more_seeds_and_losses_go_on_from_there(done: tuple[Study, Place, Quiet]) -> None:
    given, where, _ = done
    more = replace(given, seeds=(0, 1, 2), losses=(*given.losses, "ail"))
    found = {state.cell.name: state.state for state in states(more, where)}
    assert found["tiny-basic-seed1"] == "finished"
    assert found["tiny-ail-seed0"] == found["tiny-basic-seed2"] == "to do"
    assert found["tiny-equal_time-seed2"] == "waiting"  # for the times of the new loss
    seeds = {state.cell.name: state.state for state in states(replace(given, seeds=(0, 1, 2)), where)}
    assert seeds["tiny-equal_time-seed2"] == "to do"  # as long as those of the other seeds


def test_study_that_has_changed_is_refused(done: tuple[Study, Place, Quiet]) -> None:
    given, where, _ = done
    other = replace(given, recipe={**SHORT, "train": {**SHORT["train"], "lr": 5e-4}})
    with pytest.raises(UsageError, match=r"tiny-scratch-seed0 was trained by another recipe.*another --name"):
        run_study(other, where, Quiet())


def test_tables_of_a_study_have_a_row_for_each_method_and_control(done: tuple[Study, Place, Quiet]) -> None:
    _, where, _ = done
    means, differences = comparison_report(read_runs(where.folder)).tables
    labels = ["scratch", "scratch, equal time", "hint, same-width teacher", "basic", "hint"]
    labels += ["hint, random teacher", "hint, shuffled teacher"]
    assert [row.cells[0] for row in means.rows] == ["teacher (big)", *labels]
    assert [row.cells[0] for row in differences.rows] == labels[1:]
    assert {row.cells[1] for row in differences.rows} == {2}


def test_study_whose_teacher_has_changed_is_refused(done: tuple[Study, Place, Quiet], tmp_path: Path) -> None:
    given, where, _ = done
    teacher = tmp_path / "other.safetensors"
    save_checkpoint(teacher, build_model(BIG, LEAST))
    for other in (replace(given, teacher=str(teacher)), replace(given, seeds=(1, 0))):
        with pytest.raises(UsageError, match=r"was trained by another recipe or teacher"):
            run_study(other, where, Quiet())


def test_control_of_equal_time_is_trained_anew_when_a_slower_method_comes(things: Path, tmp_path: Path) -> None:
    given, where = (
        study(losses=("none", "hint"), seeds=(0,), controls=("equal_time",)),
        place(things, tmp_path / "runs"),
    )
    run_study(given, where, Quiet())
    more = replace(given, losses=("none", "hint", "basic"))
    assert about(where, "tiny-equal_time-seed0")["slowest_of"] == ["hint", "scratch"]
    run_study(more, where, Quiet())
    assert about(where, "tiny-equal_time-seed0-2")["slowest_of"] == ["basic", "hint", "scratch"]
    assert {state.state for state in states(more, where)} == {"finished"}


def test_training_that_fails_by_nan_is_told_and_not_repeated_until_asked(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = study(losses=("none", "basic", "hint"), seeds=(0,), controls=("equal_time",))
    where, progress = place(things, tmp_path / "runs"), Quiet()
    fit, broken = experiment_module.fit, True

    def failing(training: Any, *rest: Any) -> Any:
        if broken and training.recipe.loss == ("basic",):
            raise NonFiniteError("term basic is nan")
        return fit(training, *rest)

    monkeypatch.setattr(experiment_module, "fit", failing)
    run_study(given, where, progress)
    assert "tiny-basic-seed0: failed: term basic is nan" in progress.lines
    found = {state.cell.name: state.state for state in states(given, where)}
    assert found["tiny-basic-seed0"] == "failed"
    assert found["tiny-equal_time-seed0"] == "finished"  # by the methods that did not fail
    run_study(given, where, again := Quiet())
    assert again.lines == []
    broken = False
    run_study(given, where, Quiet(), retry=True)
    assert {state.state for state in states(given, where)} == {"finished"}


def test_shards_share_the_work(things: Path, tmp_path: Path) -> None:
    given = study(losses=("none", "basic"))
    for index in (1, 2):
        run_study(given, place(things, tmp_path / "runs", (index, 2)), Quiet())
        trained = [name for name in runs_of(tmp_path / "runs") if not name.startswith("teacher-")]
        assert len(trained) == 2 * index
    assert {state.state for state in states(given, place(things, tmp_path / "runs"))} == {"finished"}


def test_study_that_was_stopped_goes_on(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, where = study(losses=("none", "basic")), place(things, tmp_path / "runs")
    run = module.run_experiment
    count = 0

    def stopped(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(module, "run_experiment", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(given, where, Quiet())
    assert [state.state for state in states(given, where)] == ["finished", "finished", "to do", "to do"]
    run_study(given, where, Quiet())
    assert {state.state for state in states(given, where)} == {"finished"}
    assert len([name for name in runs_of(where.folder) if not name.startswith("teacher-")]) == 4


def test_cell_of_another_process_is_left_to_it(things: Path, tmp_path: Path) -> None:
    given, where = study(losses=("none", "hint"), seeds=(0,)), place(things, tmp_path / "runs")
    lock = where.folder / module.FOLDER_OF_LOCKS / "tiny-scratch-seed0"
    lock.parent.mkdir(parents=True)
    progress = Quiet()
    with only_holder(lock):
        after = run_study(given, where, progress)
    assert {state.cell.name: state.state for state in after} == {
        "tiny-scratch-seed0": "to do",
        "tiny-hint-seed0": "finished",
    }
    assert "tiny-scratch-seed0: another process works on it" in progress.lines
