# SPDX-License-Identifier: MIT
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_world import TINY, tiny_network

from bpfn_cli.config import build, parse_yaml, to_yaml
from bpfn_cli.errors import CheckpointError, UsageError
from bpfn_cli.models import VARIANTS, save_checkpoint
from bpfn_cli.recipes.identity import decisive_tree, recipe_tree, teacher_key
from bpfn_cli.recipes.reading import load_recipe
from bpfn_cli.recipes.recipe import Recipe, TrainSettings
from bpfn_cli.studies.study import Study


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 1e-3), (79, 1e-3), (80, 5e-4), (159, 5e-4), (160, 2.5e-4), (480, 1.5625e-5), (560, 1e-5), (5000, 1e-5)],
)
def test_step_schedule_by_hand_with_its_floor(epoch: int, expected: float) -> None:
    options = TrainSettings(schedule="step", lr=1e-3, lr_floor=1e-5, step_epochs=80, decay=0.5)
    assert options.learning_rate(epoch * 7, 7) == pytest.approx(expected)
    assert options.learning_rate(epoch * 7 + 6, 7) == pytest.approx(expected)


@pytest.mark.parametrize(
    # 4 warm-up steps to 1e-3, then 16 steps down to 1e-5: cos is 1, 1/sqrt 2, 0, -1.
    ("step", "expected"),
    [(0, 2.5e-4), (3, 1e-3), (4, 1e-3), (8, 8.55017856687e-4), (12, 5.05e-4), (20, 1e-5), (99, 1e-5)],
)
def test_cosine_schedule_by_hand_with_its_floor(step: int, expected: float) -> None:
    options = TrainSettings(schedule="cosine", lr=1e-3, lr_floor=1e-5, warmup_steps=4, epochs=4)
    assert options.learning_rate(step, 5) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_rate_below_the_floor_stays(schedule: str) -> None:
    options = TrainSettings(schedule=schedule, lr=1e-6, lr_floor=1e-5, warmup_steps=0, epochs=4)  # type: ignore[arg-type]
    assert [options.learning_rate(step, 5) for step in (0, 10, 19)] == pytest.approx([1e-6] * 3)


def test_cosine_with_more_warm_up_than_steps_is_finite() -> None:
    options = TrainSettings(schedule="cosine", lr=1e-3, warmup_steps=100, epochs=1)
    assert options.learning_rate(4, 5) == pytest.approx(5e-5)
    assert replace(options, warmup_steps=0).learning_rate(0, 5) == pytest.approx(1e-3)


def test_default_recipe_reads_back() -> None:
    assert build(Recipe, parse_yaml(to_yaml(Recipe()), "x")) == Recipe()


def test_initial_weights_are_a_key_that_names_the_method_and_no_part_of_the_identity() -> None:
    plain, tuned = Recipe(), Recipe(initial="a.safetensors")
    assert recipe_tree(tuned)["initial"] == "a.safetensors"
    assert decisive_tree(tuned) == decisive_tree(plain)  # their sha256 is
    assert (tuned.method(), Recipe(initial="a", loss=("none",)).method()) == ("fine-tuned+bihint", "fine-tuned")
    assert tuned.for_teacher().initial is None


def test_teacher_key_depends_only_on_what_decides_the_teacher() -> None:
    recipe, data = Recipe(), "0"
    key = teacher_key(recipe, data)
    same = [replace(recipe, variant="half"), replace(recipe, loss=("basic",))]
    same += [replace(recipe, data=replace(recipe.data, workers=2)), recipe.for_teacher()]
    same += [replace(recipe, train=replace(recipe.train, quantize="int8", teacher_cache="cache"))]
    same += [replace(recipe, data=replace(recipe.data, views=2))]
    assert all(teacher_key(other, data) == key for other in same)
    others = [replace(recipe, seed=1), replace(recipe, teacher="half"), replace(recipe, train=TrainSettings(epochs=1))]
    others += [replace(recipe, data=replace(recipe.data, points=2048))]
    assert key not in [teacher_key(other, data) for other in others]
    assert teacher_key(recipe, "1") != key


def test_equal_sizes_are_the_same_training_whatever_their_name_and_file() -> None:
    inline = {"base": "baseline", "name": "mine", "c_mid": [4, 4, 4, 8, 8]}
    own, known = Recipe(variant=inline, teacher=inline), Recipe(variant="weightnet48", teacher="weightnet48")  # type: ignore[arg-type]
    assert recipe_tree(own)["variant"]["name"] == "mine"
    assert decisive_tree(own) == decisive_tree(known)
    assert decisive_tree(known)["variant"] == "weightnet48"  # as in earlier runs
    assert teacher_key(own, "0") == teacher_key(known, "0") != teacher_key(Recipe(), "0")


def test_changed_file_of_sizes_is_another_training(tmp_path: Path) -> None:
    path, trees = tmp_path / "mine.yaml", []
    for neighbors in (5, 6):
        path.write_text(f"neighbors: {{estimator: {neighbors}}}")
        trees.append(decisive_tree(load_recipe(None, [], {"variant": str(path)})))
    assert [tree["variant"]["neighbors"]["estimator"] for tree in trees] == [5, 6]
    assert "mine" not in str(trees)


def test_initial_weights_decide_the_variant_that_nothing_else_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    own = replace(TINY, name="own")
    save_checkpoint(path, tiny_network(variant=own))
    assert load_recipe(None, [], {"initial": str(path)}).variant == own
    assert load_recipe(None, [], {"initial": str(path), "variant": "half"}).variant.name == "half"
    assert load_recipe(None, ["variant=half"], {"initial": str(path)}).variant.name == "half"
    assert load_recipe(None, [], {"initial": "weightnet4"}).variant == VARIANTS["weightnet4"]
    assert load_recipe(None, [], {"initial": "baseline"}, base={"loss": ["none"]}).variant == VARIANTS["baseline"]


def test_the_weights_of_the_teacher_are_sliced_into_the_default_student(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, tiny_network(variant=replace(TINY, name="own")))
    assert load_recipe(None, [], {"initial": "baseline"}).variant == Recipe().variant
    assert load_recipe(None, [], {"initial": str(path), "teacher": str(path)}).variant == Recipe().variant
    assert load_recipe(None, [], {"initial": "baseline", "teacher": str(path)}).variant == VARIANTS["baseline"]


def test_weights_of_a_teacher_that_is_given_or_described_are_sliced(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, tiny_network(variant=replace(TINY, name="own")))
    assert load_recipe(None, [], {"initial": str(path)}, teacher=path).variant == Recipe().variant
    assert load_recipe(None, [], {"initial": "baseline"}, teacher=path).variant == VARIANTS["baseline"]
    described = {"initial": "weightnet4", "teacher": {"c_mid": 4}}
    assert load_recipe(None, [], described).variant == Recipe().variant
    without_teacher = {"initial": "baseline", "loss": ["chamfer"]}
    assert load_recipe(None, [], without_teacher).variant == VARIANTS["baseline"]


def test_loss_that_is_no_list_is_reported_also_without_labels() -> None:
    with pytest.raises(UsageError, match="loss"):
        load_recipe(None, ["data.labels=false", "loss=3"], {})


def test_missing_weights_are_reported_with_line_and_key_and_all_other_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, missing = Path("r.yaml"), "no such checkpoint file; `bpfn train` or `bpfn slim` writes one"
    Path("Mine.yaml").write_text("base: None.pth")
    weights = "variant: {base: None.safetensors, c_mid: 4}\nteacher: Mine.yaml\n"
    told = f"r.yaml: line 1: variant: None.safetensors: {missing}; line 2: teacher: Mine.yaml: None.pth: {missing}"
    recipe.write_text(weights)
    with pytest.raises(CheckpointError) as alone:
        load_recipe(recipe, [], {})
    assert str(alone.value) == told
    recipe.write_text(f"{weights}train: {{epochs: many}}\n")
    with pytest.raises(UsageError) as both:
        load_recipe(recipe, [], {})
    assert str(both.value).startswith(f"{told}; line 3: train.epochs: ")
    Path("damaged.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"^study\.yaml: line 3: variants\.1: damaged\.safetensors: damaged, or"):
        build(Study, parse_yaml("variants:\n- half\n- damaged.safetensors", "study.yaml"))


def test_values_that_a_key_does_not_take_are_told_without_words_of_the_library() -> None:
    with pytest.raises(UsageError, match=r"^recipe: data\.frame: axes foo: foo is not a direction; use three of"):
        load_recipe(None, ["data.frame=foo"], {})
    with pytest.raises(UsageError, match=r"^recipe: data\.kind: unknown dataset format; use one of auto"):
        load_recipe(None, ["data.kind=foo"], {})
