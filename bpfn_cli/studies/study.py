# SPDX-License-Identifier: MIT
"""A study: variants x (losses x strategies, and named methods) x seeds, with controls that show whether the teacher
helped."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bpfn_cli.config import Tree, build, read_yaml, settings
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.files import expanded
from bpfn_cli.losses import NO_DISTILLATION
from bpfn_cli.models import VARIANTS, Variant, read_checkpoint
from bpfn_cli.models.sizes import AnyVariant, sizes_identity, variant_tree
from bpfn_cli.recipes.identity import decisive_tree
from bpfn_cli.recipes.reading import checked_recipe
from bpfn_cli.recipes.recipe import DataSettings, PathText, Recipe
from bpfn_cli.runs.record import RunRecord
from bpfn_cli.shipped import find_weights
from bpfn_cli.strategies import STRATEGIES

Control = Literal["equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher", "random_adapter"]
# Of the recipe, where a control only changes that key.
RECIPE_CONTROLS = {"random_teacher": "random", "shuffled_teacher": "shuffled", "random_adapter": "random_adapter"}
OTHER_SEED = 1_000_003  # added to the first seed for a teacher of the student's own size
METHOD_NAME = re.compile(r"\w[\w+.-]{0,63}", re.ASCII)
SET_BY_STUDY = ("variant", "seed", "control")
DATASET_KEYS = ("path", "test", "split", "kind", "frame", "remove_ground")  # opened once

Names = Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=1000)]
RecipeKeys = dict[str, Any]


def _count_checked(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    if not 1 <= len(variants) <= 100:
        raise ValueError("name 1 to 100 variants")
    return variants


@settings
class Study:
    """The contents of a study file.

    recipe: recipe keys that all trainings share. variants, losses, strategies, seeds: one training for each useful
    combination; variants are given as in recipes; `basic+hint` is the sum of two losses, `none` is the baseline, which
    is required.
    methods: more methods by name, each with the recipe keys in which it differs from `recipe` (loss, objective,
    early_stop, initial, ...); also trained with every variant and seed. The teacher's training is that of `recipe`.
    controls: equal_time: from scratch, for as long as the slowest method took; same_width_teacher: a teacher of the
    student's own variant; random_teacher, shuffled_teacher: a useless teacher; random_adapter: one whose features pass
    a random linear map. control_loss: what the controls train with, one of `losses` or `methods`; null: bihint if it is
    among them, otherwise the first.
    teacher: a checkpoint for all trainings; null: the recipe's teacher, trained once with the first seed.
    """

    recipe: RecipeKeys = field(default_factory=dict)
    variants: Annotated[tuple[AnyVariant, ...], AfterValidator(_count_checked)] = (VARIANTS["weightnet48"],)
    losses: Names = ("none", "basic", "hint", "bihint", "ail", "bounded")
    methods: Annotated[dict[str, RecipeKeys], Field(max_length=100)] = field(default_factory=dict)
    strategies: Names = ("plain",)
    seeds: Seeds = (0, 1, 2)
    controls: tuple[Control, ...] = ("equal_time", "random_teacher", "shuffled_teacher")
    control_loss: str | None = None
    teacher: PathText | None = None

    @property
    def test_path(self) -> Path | None:
        """The dataset that all trainings are tested on; None: the one they are trained on."""
        found = self.recipe.get("data", {}).get("test")
        return None if found is None else expanded(found)

    @property
    def data(self) -> DataSettings:
        """How the data of all trainings are read."""
        return cells_of(self)[0].recipe.data

    @property
    def split(self) -> str:
        """The split that all trainings learn from."""
        return str(self.recipe.get("data", {}).get("split", "train"))


@dataclass(frozen=True)
class Cell:
    """One training of a study: the name of its folder, its recipe, the name of its method in the tables, and the kind
    of control (None: a method)."""

    name: str
    recipe: Recipe
    method: str
    control: Control | None = None

    @property
    def planned_epochs(self) -> int | None:
        """None: decided when it starts."""
        return None if self.control == "equal_time" else self.recipe.train.epochs


def read_study(path: Path) -> Study:
    """Read a study file. Raises: UsageError: all mistakes in one line."""
    tree = read_yaml(path, "no such study file; docs/studies.md shows one")
    own, of_recipes = ({one.name for one in fields(kind)} for kind in (Study, Recipe))
    if not tree.values.keys() <= own and tree.values.keys() <= of_recipes:
        raise UsageError(f"{printable(path)}: this is a recipe, not a study; train it with `bpfn distill -c`")
    study = build(Study, tree)
    cells_of(study)
    return study


def cells_of(study: Study) -> list[Cell]:
    """All trainings, seed by seed, so that an unfinished study has complete seeds to compare.

    Raises: UsageError: all mistakes of the methods, or the first other one.
    """
    _check_keys(study)
    found: dict[str, Cell] = {}
    untrained = _given_teacher(study) if "random_teacher" in study.controls else None
    for seed, variant in product(study.seeds, study.variants):
        for cell in _cells_of_seed(study, variant, seed, untrained):
            if found.setdefault(cell.name, cell) != cell:
                raise UsageError(
                    f"{cell.name}: two different trainings would have this name; rename a method or a variant"
                )
    return list(found.values())


def cells_without_run(study: Study, records: Iterable[RunRecord]) -> list[Cell]:
    """The trainings of a study that have no run yet, finished or not: neither of the study, nor of the same recipe."""
    found = list(records)
    names, recipes = {one.cell for one in found}, [one.recipe for one in found if one.initial is None]

    def has_run(cell: Cell) -> bool:
        # A recipe does not say which initial weights. A control of equal time has that of scratch until it starts.
        is_told_by_recipe = cell.recipe.initial is None and cell.control != "equal_time"
        return cell.name in names or (is_told_by_recipe and decisive_tree(cell.recipe) in recipes)

    return [cell for cell in cells_of(study) if not has_run(cell)]


def _check_keys(study: Study) -> None:
    strategy = study.recipe.get("strategy", {})
    if not isinstance(strategy, dict):
        raise UsageError("recipe.strategy: give a mapping of strategy options, such as {online: {target: naive}}")
    reserved: list[str] = [key for key in (*SET_BY_STUDY, "loss") if key in study.recipe]
    reserved += ["strategy.kind"] if "kind" in strategy else []
    if reserved:
        raise UsageError(f"recipe.{reserved[0]}: the study sets this key; remove it from the recipe")
    if study.recipe.get("initial") is not None:
        raise UsageError("recipe.initial: scratch would not start from scratch; move it to one of the methods")
    if NO_DISTILLATION not in study.losses:
        raise UsageError("losses: add none, the baseline from scratch that the others are compared with")
    if len(set(study.seeds)) < len(study.seeds):
        raise UsageError("seeds: duplicate seed")
    for variant in study.variants:
        _recipe(study, variant, study.seeds[0])
    if mistakes := [mistake for name in study.methods for mistake in _mistakes_of_method(study, name)]:
        raise UsageError("; ".join(mistakes))
    taught = [name for name, recipe in _compared(study, study.variants[0], 0) if recipe.distillation_losses()]
    if study.control_loss is not None and study.control_loss not in taught:
        known = "not one of the study's losses or methods with a teacher"
        raise UsageError(f"control_loss {printable(study.control_loss)}: {known}")


def _mistakes_of_method(study: Study, name: str) -> Iterator[str]:
    place, keys = f"methods.{printable(name)}", study.methods[name]
    if not METHOD_NAME.fullmatch(name):
        yield f"{place}: use at most 64 letters, digits and _ + . - in the name of a method"
    if name in study.losses:
        yield f"{place}: also one of the losses; choose another name"
    yield from (f"{place}.{key}: the study sets this key; remove it" for key in SET_BY_STUDY if key in keys)
    data = keys.get("data")
    for key in DATASET_KEYS:
        if isinstance(data, dict) and key in data:
            yield f"{place}.data.{key}: all trainings of a study read the same data; move it to recipe.data"
    if "teacher" in keys and study.teacher is not None:
        yield f"{place}.teacher: the study names the weights of the teacher; remove one of the two"
    try:
        _recipe(study, study.variants[0], study.seeds[0], keys, place)
    except UsageError as error:
        yield str(error)


def _compared(study: Study, variant: Variant, seed: int) -> Iterator[tuple[str, Recipe]]:
    """The losses and methods by the names that `control_loss` knows, each with the plain strategy or its own."""
    for loss in study.losses:
        yield loss, _recipe_of_loss(study, variant, seed, loss)
    for name, keys in study.methods.items():
        yield name, _recipe(study, variant, seed, keys, f"methods.{name}")


def _given_teacher(study: Study) -> Variant | None:
    """The sizes of the teacher of all trainings; None: of the recipe's, or its file is not there yet.

    Raises: UsageError: it holds no weights.
    """
    try:
        path = None if study.teacher is None else find_weights(Path(study.teacher))
        return read_checkpoint(path).variant if path is not None and path.exists() else None
    except CheckpointError as error:
        raise UsageError(f"teacher: {error}") from None


def _cells_of_seed(study: Study, variant: Variant, seed: int, untrained: Variant | None) -> Iterator[Cell]:
    """The trainings of a variant and a seed. untrained: sizes of the random teacher; None: those of the recipe's."""
    scratch, compared = _recipe(study, variant, seed), dict(_compared(study, variant, seed))
    yield _cell(scratch)
    for strategy, loss in product(study.strategies, study.losses):
        recipe = _recipe_of_loss(study, variant, seed, loss, strategy)
        if recipe.distillation_losses() or not STRATEGIES[strategy].needs_teacher:
            yield _cell(recipe)
    for name in study.methods:
        yield _cell(compared[name], None, name)
    taught = [name for name, recipe in compared.items() if recipe.distillation_losses()]
    if not taught:
        return
    name = study.control_loss or ("bihint" if "bihint" in taught else taught[0])
    method = name if name in study.methods else None
    for control in study.controls:
        if control == "equal_time":
            yield _cell(scratch, control)
        elif control == "same_width_teacher":
            yield _cell(replace(compared[name], teacher=variant), control, method)
        else:
            changed = replace(compared[name], control=RECIPE_CONTROLS[control])  # type: ignore[arg-type]
            if control == "random_teacher" and untrained is not None:
                changed = replace(changed, teacher=untrained)
            yield _cell(changed, control, method)


def _recipe_of_loss(study: Study, variant: Variant, seed: int, loss: str, strategy: str = "plain") -> Recipe:
    keys = {"loss": loss.split("+"), "strategy": {"kind": strategy}}
    return _recipe(study, variant, seed, keys, f"study, loss {printable(loss)}")


def _recipe(
    study: Study, variant: Variant, seed: int, keys: Mapping[str, Any] | None = None, place: str = "recipe"
) -> Recipe:
    """The study's recipe with other keys; from scratch unless they say otherwise. place: for messages."""
    own = {"variant": variant_tree(variant), "seed": seed}
    tree = {**_merged({"loss": [NO_DISTILLATION], **study.recipe}, keys or {}), **own}
    try:
        return _on_scenes_of_teacher(study, checked_recipe(Tree(tree, {}, place)))
    except UsageError as error:
        message = str(error)
        raise UsageError(message if message.startswith(f"{place}: ") else f"{place}: {message}") from None


def _on_scenes_of_teacher(study: Study, recipe: Recipe) -> Recipe:
    """The recipe with held-out scenes that the teacher, which the study trains once, has not learned from either."""
    first = study.seeds[0]
    if study.teacher is not None or recipe.data.holdout_seed is not None or recipe.seed == first:
        return recipe
    return replace(recipe, data=replace(recipe.data, holdout_seed=first))


def _merged(tree: Mapping[str, Any], keys: Mapping[str, Any]) -> RecipeKeys:
    """`tree` with other keys, mapping by mapping."""
    both = {key for key in keys if isinstance(keys[key], dict) and isinstance(tree.get(key), dict)}
    return {**tree, **keys, **{key: _merged(tree[key], keys[key]) for key in both}}


def _cell(recipe: Recipe, control: Control | None = None, name: str | None = None) -> Cell:
    method = name or recipe.method()
    what: str = method if control is None else control
    if control not in (None, "equal_time"):
        what = f"{name or '+'.join(recipe.distillation_losses())}-{control}"
    return Cell(re.sub(r"[^\w+.-]", "_", f"{recipe.variant.name}-{what}-seed{recipe.seed}"), recipe, method, control)


def teacher_recipe(study: Study, cell: Cell) -> Recipe:
    """The recipe whose teacher serves all methods and seeds."""
    first, teacher, variant = study.seeds[0], cell.recipe.teacher, cell.recipe.variant
    # A teacher of the student's own size must not be trained exactly like the student.
    seed = (first + OTHER_SEED) % 2**31 if sizes_identity(teacher) == sizes_identity(variant) else first
    return replace(_recipe(study, variant, seed), teacher=teacher)
