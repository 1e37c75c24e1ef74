# SPDX-License-Identifier: MIT
"""What identifies a training: its recipe as plain values, without what changes no numbers."""

from __future__ import annotations

from typing import Any

import bpfn_cli
from bpfn_cli.config import json_hash, to_tree
from bpfn_cli.losses.objective import used_options
from bpfn_cli.models.sizes import sizes_identity
from bpfn_cli.recipes.recipe import Recipe

# Keys that do not change the numbers of a training: locations, speed, logging.
WITHOUT_EFFECT = {
    "data": ("path", "test", "kind", "workers", "timeout"),  # the data identity covers the scenes
    "train": ("gradient_every", "teacher_cache", "checkpoint_minutes", "keep_every", "wandb"),
}

# Part, key and usual value.
NEW_KEYS = (
    ("train", "optimizer", "adam"),
    ("train", "quantize", None),
    ("data", "split", "train"),
    ("data", "holdout_seed", None),
    ("data", "labels", True),
    ("data", "frame", None),
    ("data", "remove_ground", False),
)


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without the options of unused losses and strategies."""
    tree = to_tree(recipe)
    tree["objective"] = used_options(recipe.loss, recipe.objective)
    tree["strategy"] = {key: value for key, value in tree["strategy"].items() if key in ("kind", recipe.strategy.kind)}
    return tree


def decisive_tree(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide the weights, as plain values: equal trees, data and initial weights give equal weights."""
    tree = recipe_tree(recipe)
    del tree["initial"]  # a place; the weights are identified by their sha256
    tree |= {"variant": sizes_identity(recipe.variant), "teacher": sizes_identity(recipe.teacher)}
    for part, keys in WITHOUT_EFFECT.items():
        tree[part] = {key: value for key, value in tree[part].items() if key not in keys}
    for part, key, usual in NEW_KEYS:
        if tree[part][key] == usual:  # runs of earlier versions do not have these keys
            del tree[part][key]
    if tree["objective"].get("basic", {}).get("confidence_m", 0) is None:
        del tree["objective"]["basic"]["confidence_m"]
    return tree


def teacher_key(recipe: Recipe, dataset_sha256: str) -> str:
    """Identifies the teacher that `recipe` would train on a dataset: equal keys, equal teachers."""
    tree = decisive_tree(recipe.for_teacher())
    decisive = {key: part for key, part in tree.items() if key in ("teacher", "seed", "data", "train")}
    # Keys that do not affect a network that is trained alone.
    for part, key in (("train", "teacher_precision"), ("data", "meta_val"), ("data", "views")):
        decisive[part].pop(key)
    return json_hash({**decisive, "dataset": dataset_sha256, "bpfn": bpfn_cli.__version__})
