# SPDX-License-Identifier: MIT
"""A study: variants x losses x strategies x seeds, with controls that show whether the teacher helped."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bpfn_cli.config import Tree, build, read_yaml, settings
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.losses import NO_DISTILLATION
from bpfn_cli.recipes.recipe import Recipe, checked_recipe
from bpfn_cli.strategies import STRATEGIES

Control = Literal["equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher"]
OTHER_SEED = 1_000_003  # added to the first seed for a teacher of the student's own size

Names = Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=1000)]


@settings
class Study:
    """The contents of a study file.

    recipe: recipe keys that all trainings share. variants, losses, strategies, seeds: one training for each useful
    combination; `basic+hint` is the sum of two losses, `none` is the baseline, which is required.
    controls: equal_time: from scratch, for as long as the slowest method took; same_width_teacher: a teacher of the
    student's own variant; random_teacher, shuffled_teacher: a useless teacher. control_loss: the loss of the controls,
    one of `losses`; null: bihint if it is among them, otherwise the first.
    teacher: a checkpoint for all trainings; null: the recipe's teacher, trained once with the first seed.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    variants: Names = ("weightnet48",)
    losses: Names = ("none", "basic", "hint", "bihint", "ail", "bounded")
    strategies: Names = ("plain",)
    seeds: Seeds = (0, 1, 2)
    controls: tuple[Control, ...] = ("equal_time", "random_teacher", "shuffled_teacher")
    control_loss: str | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Cell:
    """One training of a study: the name of its folder, its recipe, and the kind of control (None: a method)."""

    name: str
    recipe: Recipe
    control: Control | None = None


def read_study(path: Path) -> Study:
    """Read a study file. Raises: UsageError: all mistakes in one line."""
    study = build(Study, read_yaml(path, "no such study file; docs/losses.md shows one"))
    cells_of(study)
    return study


def cells_of(study: Study) -> list[Cell]:
    """All trainings, seed by seed, so that an unfinished study has complete seeds to compare. Raises: UsageError."""
    strategy = study.recipe.get("strategy", {})
    if not isinstance(strategy, dict):
        raise UsageError("recipe.strategy: give a mapping of strategy options, such as {online: {target: naive}}")
    reserved: list[str] = [key for key in ("variant", "loss", "seed", "control") if key in study.recipe]
    reserved += ["strategy.kind"] if "kind" in strategy else []
    if reserved:
        raise UsageError(f"recipe.{reserved[0]}: the study sets this key; remove it from the recipe")
    if NO_DISTILLATION not in study.losses:
        raise UsageError("losses: add none, the baseline from scratch that the others are compared with")
    taught = [loss for loss in study.losses if loss != NO_DISTILLATION]
    if study.control_loss is not None and study.control_loss not in taught:
        raise UsageError(f"control_loss {printable(study.control_loss)}: not one of the study's losses with a teacher")
    if len(set(study.seeds)) < len(study.seeds):
        raise UsageError("seeds: duplicate seed")
    found: dict[str, Cell] = {}
    for seed, variant in product(study.seeds, study.variants):
        for cell in _cells_of_seed(study, variant, seed, taught):
            found.setdefault(cell.name, cell)
    return list(found.values())


def _cells_of_seed(study: Study, variant: str, seed: int, taught: list[str]) -> Iterator[Cell]:
    yield _cell(_recipe(study, variant, NO_DISTILLATION, seed))
    for strategy, loss in product(study.strategies, study.losses):
        recipe = _recipe(study, variant, loss, seed, strategy)
        if recipe.distillation_losses() or not STRATEGIES[strategy].needs_teacher:
            yield _cell(recipe)
    if not taught:
        return
    loss = study.control_loss or ("bihint" if "bihint" in taught else taught[0])
    controlled = _recipe(study, variant, loss, seed)
    for control in study.controls:
        if control == "equal_time":
            yield _cell(_recipe(study, variant, NO_DISTILLATION, seed), control)
        elif control == "same_width_teacher":
            yield _cell(replace(controlled, teacher=variant), control)
        else:
            yield _cell(replace(controlled, control="random" if control == "random_teacher" else "shuffled"), control)


def _recipe(study: Study, variant: str, loss: str, seed: int, strategy: str = "plain") -> Recipe:
    tree = {**study.recipe, "variant": variant, "loss": loss.split("+"), "seed": seed}
    tree["strategy"] = {**tree.get("strategy", {}), "kind": strategy}
    return checked_recipe(Tree(tree, {}, f"study, loss {printable(loss)}"))


def _cell(recipe: Recipe, control: Control | None = None) -> Cell:
    what = recipe.method() if control is None else control
    if control in ("same_width_teacher", "random_teacher", "shuffled_teacher"):
        what = f"{'+'.join(recipe.distillation_losses())}-{control}"
    return Cell(re.sub(r"[^\w+.-]", "_", f"{recipe.variant}-{what}-seed{recipe.seed}"), recipe, control)


def teacher_recipe(study: Study, cell: Cell) -> Recipe:
    """The recipe whose teacher serves all seeds."""
    first = study.seeds[0]
    # A teacher of the student's own size must not be trained exactly like the student.
    seed = (first + OTHER_SEED) % 2**31 if cell.recipe.teacher == cell.recipe.variant else first
    return replace(cell.recipe, seed=seed, control="none")
