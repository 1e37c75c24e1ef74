# SPDX-License-Identifier: MIT
"""The cells of a study."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from small_studies import SHORT, names, study
from tiny_world import BIG, TINY, tiny_network

from bpfn_cli.config import build, parse_yaml
from bpfn_cli.errors import UsageError
from bpfn_cli.models import Variant, save_checkpoint, slim
from bpfn_cli.recipes.identity import decisive_tree
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs.record import RunRecord
from bpfn_cli.studies.study import Study, cells_of, cells_without_run, read_study


def test_cells_are_all_combinations_seed_by_seed() -> None:
    given = study(losses=("none", "basic+hint"), strategies=("plain", "online", "meta"), controls=("equal_time",))
    methods = ("scratch", "basic+hint", "online", "basic+hint+online", "basic+hint+meta", "equal_time")
    assert names(given) == [f"tiny-{what}-seed{seed}" for seed in (0, 1) for what in methods]
    assert names(study(losses=("none", "basic"), strategies=("online",), seeds=(0,)))[0] == "tiny-scratch-seed0"
    cell = cells_of(given)[1]
    assert (cell.recipe.loss, cell.recipe.seed, cell.recipe.variant.name) == (("basic", "hint"), 0, "tiny")
    assert cell.recipe.objective.calibration_step == 1


def test_controls_have_their_own_recipes() -> None:
    controls = ("equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher")
    given = study(controls=controls, control_loss="hint", seeds=(0,))
    controls = {cell.control: cell.recipe for cell in cells_of(given) if cell.control}
    assert controls["equal_time"].loss == ("none",)
    assert controls["same_width_teacher"].teacher.name == "tiny"
    assert [controls[f"{kind}_teacher"].control for kind in ("random", "shuffled")] == ["random", "shuffled"]
    assert all(controls[kind].loss == ("hint",) for kind in controls if kind != "equal_time")


def test_random_teacher_has_the_sizes_of_the_teacher_of_the_study(tmp_path: Path) -> None:
    path, sizes = tmp_path / "teacher.safetensors", replace(slim(BIG, "mine", c_mid=3), estimator_neighbors=7)
    controls = ("random_teacher", "shuffled_teacher", "same_width_teacher")
    given = study(controls=controls, control_loss="hint", seeds=(0,), teacher=str(path))

    def teachers() -> dict[str | None, Variant]:
        return {cell.control: cell.recipe.teacher for cell in cells_of(given)}

    recipes = {None: BIG, "random_teacher": BIG, "shuffled_teacher": BIG, "same_width_teacher": TINY}
    assert teachers() == recipes  # before the teacher is trained
    save_checkpoint(path, tiny_network(0, sizes))
    assert teachers() == {**recipes, "random_teacher": sizes}
    path.write_text("no weights")
    with pytest.raises(UsageError, match=r"^teacher: .*teacher.safetensors: damaged"):
        cells_of(given)


def test_variants_are_names_files_or_sizes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{base: tiny, c_mid: 2}")
    (tmp_path / "study.yaml").write_text(
        f"variants: [tiny, {tmp_path}/mine.yaml, {{base: tiny, name: inline, c_mid: 3}}]\n"
        "losses: [none, basic]\nseeds: [0]\ncontrols: [same_width_teacher]\n"
    )
    given = read_study(tmp_path / "study.yaml")
    assert [name for name in names(given) if "scratch" in name] == [
        f"{name}-scratch-seed0" for name in ("tiny", "mine", "inline")
    ]
    assert {cell.recipe.variant.levels[0].c_mid for cell in cells_of(given)} == {1, 2, 3}
    taught = [cell.recipe for cell in cells_of(given) if cell.control == "same_width_teacher"]
    assert all(recipe.teacher == recipe.variant for recipe in taught)


def test_different_variants_of_one_name_are_refused() -> None:
    same = [{"base": "tiny", "name": "mine", "c_mid": count} for count in (2, 3)]
    with pytest.raises(UsageError, match="mine-scratch-seed0: two different trainings would have this name"):
        cells_of(study(variants=same))


def test_unknown_variant_is_named_with_its_line() -> None:
    with pytest.raises(UsageError, match=r"line 2: variants\.0: unknown variant 'tyni'") as caught:
        build(Study, parse_yaml("variants:\n- tyni\n", "study.yaml"))
    assert ";" not in str(caught.value)
    with pytest.raises(UsageError, match="name 1 to 100 variants"):
        build(Study, parse_yaml("variants: []", "study.yaml"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"losses": ("basic",)}, "losses: add none"),
        ({"recipe": {"initial": "a"}}, r"recipe\.initial: scratch would not start from scratch"),
        ({"recipe": {"seed": 1}}, r"recipe\.seed: the study sets this key"),
        ({"recipe": {"train": {"epoch": 3}}}, r"unknown key train\.epoch, did you mean train\.epochs"),
        ({"losses": ("none", "hnit")}, "did you mean hint"),
        ({"recipe": {"strategy": "online"}}, r"recipe\.strategy: give a mapping of strategy options"),
        ({"recipe": {"strategy": {"kind": "self"}}}, r"recipe\.strategy\.kind: the study sets this key"),
        (
            {"controls": ("random_teacher",), "control_loss": "none"},
            "control_loss none: not one of the study's losses or methods with a teacher",
        ),
        (
            {"controls": ("random_teacher",), "control_loss": "ail"},
            "control_loss ail: not one of the study's losses or methods with a teacher",
        ),
        ({"seeds": (0, 1, 0)}, "seeds: duplicate seed"),
        ({"methods": {"basic": {}}}, r"methods\.basic: also one of the losses"),
        (
            {"methods": {"scratch": {}, "equal_time": {"train": {"lr": 0.1}}}, "controls": ("equal_time",)},
            "rename a met",
        ),
        ({"methods": {"a": {"loss": ["none", "hint"]}}}, r"methods\.a: --loss none means no distillation"),
        (
            {"methods": {"a": {"data": {"path": "b"}}}},
            r"methods\.a\.data\.path: all trainings of a study read the same data",
        ),
        ({"teacher": "baseline", "methods": {"a": {"teacher": "half"}}}, r"methods\.a\.teacher: the study names"),
    ],
)
def test_invalid_study_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        cells_of(study(**changes))


def test_method_differs_from_the_shared_recipe_in_its_keys_alone() -> None:
    methods = {
        "basic-0.1": {"loss": ["basic"], "objective": {"gamma": 0.1}, "train": {"lr": 0.5}},
        "tuned": {"initial": "a.safetensors"},
    }
    given = study(losses=("none", "basic"), methods=methods, seeds=(0,), strategies=("plain", "online"))
    methods_ = ("scratch", "basic", "online", "basic+online", "basic-0.1", "tuned")
    assert names(given) == [f"tiny-{what}-seed0" for what in methods_]
    cells = {cell.method: cell for cell in cells_of(given)}
    assert set(cells) == set(methods_)
    scratch, basic, tuned = (cells[name].recipe for name in ("scratch", "basic-0.1", "tuned"))
    assert (basic.loss, basic.objective.gamma, basic.objective.calibration_step) == (("basic",), 0.1, 1)
    assert (basic.train.lr, basic.train.epochs) == (0.5, scratch.train.epochs)
    assert (tuned.loss, tuned.method()) == (("none",), "fine-tuned")
    assert replace(tuned, initial=None) == scratch


def test_controls_of_a_method_have_its_recipe_and_name() -> None:
    controls = ("random_adapter", "same_width_teacher")
    given = study(methods={"soft": {"loss": ["hint"], "objective": {"gamma": 0.2}}}, controls=controls, seeds=(0,))
    found = [cell for cell in cells_of(replace(given, control_loss="soft")) if cell.control]
    assert [cell.name for cell in found] == ["tiny-soft-random_adapter-seed0", "tiny-soft-same_width_teacher-seed0"]
    assert {cell.method for cell in found} == {"soft"}
    assert {cell.recipe.objective.gamma for cell in found} == {0.2}
    assert [cell.recipe.control for cell in found] == ["random_adapter", "none"]
    (adapted, _) = (cell for cell in cells_of(replace(given, control_loss="hint")) if cell.control)
    assert (adapted.name, adapted.method) == ("tiny-hint-random_adapter-seed0", "hint+random-adapter")


def test_all_mistakes_of_the_methods_are_reported_in_one_line() -> None:
    methods = {
        "a/b": {},
        "one": {"objective": {"gama": 0.1}, "train": {"epochs": 0}},
        "two": {"seed": 1, "variant": "big", "loss": ["hnit"]},
    }
    with pytest.raises(UsageError) as caught:
        cells_of(study(methods=methods))
    told = str(caught.value)
    assert "\n" not in told
    assert "methods.a/b: use at most 64 letters, digits and _ + . - in the name" in told
    assert "methods.one: " in told and "unknown key objective.gama, did you mean objective.gamma?" in told
    assert "train.epochs: input should be greater than or equal to 1" in told
    assert "methods.two.variant: the study sets this key" in told and "methods.two.seed: the study" in told
    assert "methods.two: " in told and "did you mean hint" in told


def test_read_study_rejects_unknown_keys_and_values(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("variants: [tiny]\nlosses: [none, basic]\nseeds: [0]\nrecipe: {teacher: big}\n")
    assert read_study(path).seeds == (0,)
    assert build(Study, parse_yaml("{}", "x")) == Study()
    path.write_text("seed: [0]\ncontrols: [equal]\n")
    with pytest.raises(UsageError, match=r"controls\.0: input should be.*unknown key seed, did you mean seeds\?"):
        read_study(path)


def test_scenes_that_a_common_teacher_learns_from_are_held_out_of_no_training() -> None:
    def seeds(given: Study) -> dict[int, int | None]:
        return {cell.recipe.seed: cell.recipe.data.holdout_seed for cell in cells_of(given)}

    assert seeds(study(seeds=(3, 4))) == {3: None, 4: 3}
    assert seeds(study(seeds=(3, 4), teacher="t.safetensors")) == {3: None, 4: None}
    assert seeds(study(seeds=(3, 4), recipe={**SHORT, "data": {"holdout_seed": 9}})) == {3: 9, 4: 9}


def record_of(recipe: Recipe, cell: str | None = None) -> RunRecord:
    """What `run.json` says about a run that has just started."""
    data = {"source_kind": "synthetic", "train_scenes": 3, "fraction": None}
    known = {"role": "student", "variant": recipe.variant.name, "method": recipe.method(), "seed": recipe.seed}
    known |= {"points": 1024, "epochs": 1, "data": data, "cell": cell, "recipe": decisive_tree(recipe)}
    return RunRecord.model_validate_json(json.dumps({**known, "started": str(datetime.now(timezone.utc))}))


def test_cells_without_run_have_neither_a_run_of_the_study_nor_one_of_their_recipe() -> None:
    given = study(controls=("equal_time",), seeds=(0, 1))
    cells = {cell.name: cell for cell in cells_of(given)}
    left = list(cells)
    assert [cell.name for cell in cells_without_run(given, [])] == left
    hint, scratch = (cells[f"tiny-{method}-seed1"].recipe for method in ("hint", "scratch"))
    runs = [
        record_of(hint),
        record_of(replace(hint, seed=5)),
        record_of(scratch),  # leaves the control of equal time, which starts from the same recipe
        record_of(replace(scratch, seed=7), cell="tiny-equal_time-seed0"),
    ]
    for name in ("tiny-hint-seed1", "tiny-scratch-seed1", "tiny-equal_time-seed0"):
        left.remove(name)
    assert [cell.name for cell in cells_without_run(given, runs)] == left


def test_cells_with_other_initial_weights_are_not_those_of_the_same_recipe() -> None:
    given = study(losses=("none",), methods={"tuned": {"initial": "a.safetensors"}}, seeds=(0,))
    cells = {cell.name: cell for cell in cells_of(given)}
    runs = [record_of(cells["tiny-scratch-seed0"].recipe)]
    assert [cell.name for cell in cells_without_run(given, runs)] == ["tiny-tuned-seed0"]
