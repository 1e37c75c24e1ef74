# SPDX-License-Identifier: MIT
"""Read a recipe from a file, `--set` assignments and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bpfn_cli.config import Tree, build, merge, override, read_yaml
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.losses import NO_DISTILLATION, check_loss_name
from bpfn_cli.losses.registry import needs_teacher
from bpfn_cli.models.sizes import AnyVariant, find_variant
from bpfn_cli.precision import Precision
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.shipped import find_weights

CONFIDENCE_M = 0.1  # the default of `basic.confidence_m` without labels
QUANTIZING = ("plain", "self")  # strategies that train one student, by gradients of rounded layers


def load_recipe(
    path: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    teacher: Path | None = None,
) -> Recipe:
    """Read a recipe file (without one: the defaults) and apply assignments (`dotted.key=value`) and flags.

    Args: base: top-level defaults that differ from those of `Recipe`. flags: dotted key -> value. teacher: weights of
        the teacher that will be used; None: that of the recipe.
    Raises: UsageError: all mistakes in one line; an unknown variant or loss.
    """
    tree = read_yaml(path) if path is not None else Tree({}, {}, "recipe")
    unset = {key: value for key, value in (base or {}).items() if key not in tree.values}
    return checked_recipe(_of_initial_weights(merge(override(merge(tree, unset), assignments), flags), teacher))


def _of_initial_weights(tree: Tree, teacher: Path | None) -> Tree:
    """Without a variant, initial weights decide what is trained; but those of the teacher are sliced."""
    initial, loss = tree.values.get("initial"), tree.values.get("loss", Recipe.loss)
    if "variant" in tree.values or not isinstance(initial, str):
        return tree
    try:
        weights = find_weights(Path(initial))
        variant = find_variant(str(weights)) if weights.is_file() else None
        given = tree.values.get("teacher", Recipe.teacher.name) if teacher is None else str(teacher)
        of_teacher = TypeAdapter(AnyVariant).validate_python(given)
    except (UsageError, CheckpointError, ValidationError):  # reported where they are read
        return tree
    names = loss if isinstance(loss, list | tuple) else ()
    distills = any(name != NO_DISTILLATION and needs_teacher(str(name)) for name in names)
    return tree if variant is None or (distills and variant == of_teacher) else merge(tree, {"variant": str(weights)})


def _for_unlabeled(tree: Tree) -> Tree:
    """Without labels, the student follows the teacher's flow (`basic`), weighted by the teacher's confidence."""
    data, objective = (tree.values.get(part, {}) for part in ("data", "objective"))
    if not isinstance(data, dict) or not isinstance(objective, dict):
        return tree
    if data.get("labels", True) and data.get("kind") != "pairs" and data.get("frame") is None:
        return tree
    tree = tree if "loss" in tree.values else merge(tree, {"loss": ["basic"]})
    loss, basic = tree.values["loss"], objective.get("basic", {})
    follows = isinstance(loss, list) and "basic" in loss
    if not follows or not isinstance(basic, dict) or "confidence_m" in basic:
        return tree
    return merge(tree, {"objective.basic.confidence_m": CONFIDENCE_M})


def checked_recipe(tree: Tree) -> Recipe:
    """Build the recipe of a parsed file. Raises: UsageError: as `load_recipe`."""
    recipe = build(Recipe, _for_unlabeled(tree))
    if NO_DISTILLATION in recipe.loss and len(recipe.loss) > 1:
        raise UsageError("--loss none means no distillation; it cannot be combined with other losses")
    for name in recipe.losses():
        check_loss_name(name)
    _check_quantize(recipe)
    unused = sorted(set(recipe.objective.own) - set(recipe.loss))
    if unused:
        raise UsageError(f"objective.own.{printable(unused[0])}: this recipe has no such --loss")
    return recipe


def _check_quantize(recipe: Recipe) -> None:
    """Raises: UsageError: the recipe combines int8 with what works only in float."""
    if recipe.train.quantize is None:
        return
    kind, prefix = recipe.strategy.kind, f"train.quantize {recipe.train.quantize}"
    if kind not in QUANTIZING:
        raise UsageError(f"{prefix}: does not work with strategy {kind}; use {' or '.join(QUANTIZING)}")
    if recipe.train.precision is not Precision.float32:
        raise UsageError(f"{prefix}: leave train.precision at 32, not {recipe.train.precision.value}")
