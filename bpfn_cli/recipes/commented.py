# SPDX-License-Identifier: MIT
"""A recipe as YAML with a comment above each key: what the docstrings and options of the settings say about it."""

import inspect
import re
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import yaml

from bpfn_cli.recipes.identity import recipe_tree
from bpfn_cli.recipes.recipe import Recipe

WIDTH = 100
DOCUMENT_END = "...\n"  # after a value that is no mapping or list


def commented_yaml(recipe: Recipe) -> str:
    """The recipe as `recipe_tree` gives it."""
    return "\n".join(_lines(Recipe, recipe_tree(recipe), "")) + "\n"


def meanings(kind: type) -> dict[str, str]:
    """What each field of a `settings` dataclass means: its description, or what its docstring says after `name: `."""
    fields: dict[str, Any] = getattr(kind, "__pydantic_fields__", {})
    text = " ".join(" ".join(_doc(one).partition("\n\nSource:")[0].split()) for one in reversed(kind.__mro__))
    one_of = "|".join(map(re.escape, fields))
    starts = list(re.finditer(rf"(?<![\w.`])({one_of})((?:, (?:{one_of}))*): ", text)) if fields else []
    ends = [*(start.start() for start in starts), len(text)][1:]
    found = {}
    for start, end in zip(starts, ends, strict=True):
        for name in (start[1] + start[2]).split(", "):
            found[name] = text[start.end() : end].strip()
    return found | {name: field.description for name, field in fields.items() if field.description}


def _doc(kind: Any) -> str:
    """The docstring of a class; empty if it has none but the signature that dataclasses write."""
    text = inspect.cleandoc(getattr(kind, "__doc__", None) or "")
    return "" if kind is object or text.startswith(f"{getattr(kind, '__name__', '')}(") else text


def _lines(kind: type, tree: dict[str, Any], indent: str) -> Iterator[str]:
    known = meanings(kind)
    fields: dict[str, Any] = getattr(kind, "__pydantic_fields__", {})
    for key, value in tree.items():
        below: Any = fields[key].annotation if key in fields else None
        is_section = isinstance(value, dict) and hasattr(below, "__pydantic_fields__")
        summary = _doc(below).partition("\n")[0] or f"Options of {key}; `bpfn losses {key}` explains them."
        for line in wrap(known.get(key, summary if is_section else ""), WIDTH - len(indent)):
            yield f"{indent}# {line}"
        if is_section and value:
            yield f"{indent}{key}:"
            yield from _lines(below, value, f"{indent}  ")
        else:
            dumped = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
            yield f"{indent}{key}: {dumped.removesuffix(DOCUMENT_END).strip()}"
