# SPDX-License-Identifier: MIT
"""Load a recipe from a file, `--set` assignments and flags; later ones take precedence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfn_cli.config import Tree, build, merge, override, read_yaml
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.losses import NO_DISTILLATION, loss_named
from bpfn_cli.models.variants import variant_named
from bpfn_cli.recipes.recipe import Recipe


def load_recipe(
    path: Path | None, assignments: Sequence[str], flags: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe file (without one: the defaults) and apply assignments (`dotted.key=value`) and flags.

    Args: base: top-level defaults that differ from those of `Recipe`. flags: dotted key -> value.
    Raises: UsageError: all mistakes in one line; an unknown variant or loss.
    """
    tree = read_yaml(path) if path is not None else Tree({}, {}, "recipe")
    unset = {key: value for key, value in (base or {}).items() if key not in tree.values}
    return checked_recipe(merge(override(merge(tree, unset), assignments), flags))


def checked_recipe(tree: Tree) -> Recipe:
    """Build the recipe of a parsed file. Raises: UsageError: as `load_recipe`."""
    recipe = build(Recipe, tree)
    variant_named(recipe.variant)
    variant_named(recipe.teacher)
    if NO_DISTILLATION in recipe.loss and len(recipe.loss) > 1:
        raise UsageError("--loss none means no distillation; it cannot be combined with other losses")
    for name in recipe.distillation_losses():
        loss_named(name)
    unused = sorted(set(recipe.objective.own) - set(recipe.loss))
    if unused:
        raise UsageError(f"objective.own.{printable(unused[0])}: this recipe has no such --loss")
    return recipe
