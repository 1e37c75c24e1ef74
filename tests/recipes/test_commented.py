# SPDX-License-Identifier: MIT
"""A written recipe explains each of its keys."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import yaml
from pydantic import Field

from bpfn_cli.config import Tree, build, parse_yaml, settings
from bpfn_cli.recipes.commented import commented_yaml, meanings
from bpfn_cli.recipes.identity import recipe_tree
from bpfn_cli.recipes.recipe import Recipe


@settings
class Inner:
    """Inside.

    low, high: the two `ends`. kind: `a`: as it is; b: as it was.

    Source: none.
    """

    low: int = 0
    high: int = 1
    kind: str = "a"
    described: Annotated[int, Field(description="by its field")] = 2


@settings
class Bare:
    inner: Inner = field(default_factory=Inner)


def test_meanings_are_those_of_docstring_and_description() -> None:
    ends = "the two `ends`."
    assert meanings(Inner) == {
        "low": ends,
        "high": ends,
        "kind": "`a`: as it is; b: as it was.",
        "described": "by its field",
    }
    assert meanings(Bare) == {}


def test_every_key_has_a_comment_and_the_text_reads_back() -> None:
    for recipe in (Recipe(), Recipe(loss=("hint", "adversarial"), train=build(Recipe, Tree({}, {}, "")).train)):
        text = commented_yaml(recipe)
        assert yaml.safe_load(text) == recipe_tree(recipe)
        assert build(Recipe, parse_yaml(text, "recipe.yaml")) == recipe
        lines = text.splitlines()
        bare = [
            line for before, line in zip(["", *lines], lines, strict=False) if is_key(line) and not is_comment(before)
        ]
        assert not bare
        assert max(map(len, lines)) <= 110


def is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def is_key(line: str) -> Any:
    return not is_comment(line) and ":" in line
