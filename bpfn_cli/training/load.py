# SPDX-License-Identifier: MIT
"""A recipe from a file, `--set` assignments and flags, in this order of precedence, the last strongest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfn_cli.config import Tree, build, override, read_yaml
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.models.variants import variant_named
from bpfn_cli.training.recipe import Recipe


def load_recipe(
    path: Path | None, assignments: Sequence[str], flags: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe of a file (the embedded default without one), with assignments and flags applied.

    Args:
        base: keys that differ from the embedded default where nothing else sets them.
        assignments: `dotted.key=value`. flags: dotted key -> value.
    Raises: UsageError: all mistakes of keys and values in one line; an unknown variant or loss.
    """
    tree = read_yaml(path) if path is not None else Tree({}, {}, "recipe")
    unset = {key: value for key, value in (base or {}).items() if key not in tree.values}
    tree = override(tree, [f"{key}={json.dumps(value)}" for key, value in unset.items()])
    tree = override(tree, assignments)
    tree = override(tree, [f"{key}={json.dumps(value)}" for key, value in flags.items()])
    recipe = build(Recipe, tree)
    variant_named(recipe.variant)
    variant_named(recipe.teacher)
    _check_losses(recipe.loss)
    return recipe


def _check_losses(names: Sequence[str]) -> None:
    from bpfn_cli.losses import LOSSES

    known = ["none", *LOSSES]
    for name in names:
        if name not in known:
            raise UsageError(f"--loss {printable(name)}: choose from {', '.join(known)}")
    if "none" in names and len(names) > 1:
        raise UsageError("--loss none stands alone: it means no distillation")
