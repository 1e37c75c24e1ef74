# SPDX-License-Identifier: MIT
"""Strict YAML to frozen dataclasses. This module knows none of their fields.

PyYAML surprises: `1e-3` is a string, `no` is a bool, `010` is 8, `1:30` is 90, of duplicate keys the last wins
silently, and aliases can hide 10^10 nodes. The loader here reads YAML 1.2 scalars and refuses the rest, and all
mistakes of a recipe are reported at once.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic
import yaml
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform
from yaml.constructor import ConstructorError

from bpfn_cli.errors import CheckpointError, UsageError, did_you_mean, printable

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_NODES = 5000

# Types of validation errors whose messages are complete.
ABOUT_SIZES: Final = "sizes"
ABOUT_WEIGHTS: Final = "weights"

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def settings(kind: type[T]) -> type[T]:
    """Make a frozen dataclass that checks its fields and refuses unknown keys."""
    strict = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic_dataclass(kind, frozen=True, kw_only=True, config=strict)
    return made


@dataclass(frozen=True)
class Tree:
    """A parsed recipe: its values, the line of each key (given as the keys that lead to it), and its name."""

    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]
    name: str


TAG = "tag:yaml.org,2002:"
SCALARS = {
    "bool": r"true|false",
    "null": r"null|~|",
    "int": r"[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))",
}


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases, tags or duplicate keys. Notes the line of each key."""

    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(TAG + kind for kind in (*SCALARS, "str", "seq", "map")))
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        None: [(TAG + kind, re.compile(f"^(?:{pattern})$")) for kind, pattern in SCALARS.items()]
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.lines: dict[tuple[str, ...], int] = {}
        self.path: list[str] = []
        self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the root or a key (index None), the value of a key (its node) or an item of a list (its number)."""
        event = self.peek_event()
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise _refusal("anchors and aliases are not allowed", event)
        if self.nodes > MAX_NODES:
            raise _refusal(f"more than {MAX_NODES} values, so not a recipe", event)
        if len(self.path) >= MAX_DEPTH and isinstance(event, yaml.CollectionStartEvent):
            raise _refusal(f"nested more than {MAX_DEPTH} deep", event)
        key = self._key(index) if isinstance(index, yaml.Node) else str(index)
        self.path.append(key)
        if index is not None:
            at = index if isinstance(index, yaml.Node) else event
            self.lines[tuple(self.path[1:])] = at.start_mark.line + 1
        node = super().compose_node(parent, index)
        self.path.pop()
        return node

    def _key(self, node: yaml.Node) -> str:
        """The text of a key, whatever it looks like."""
        if not isinstance(node, yaml.ScalarNode):
            raise _refusal("a key must be a word", node)
        first = self.lines.get((*self.path[1:], node.value))
        if first is not None:
            raise _refusal(f"duplicate key {printable(node.value)}, first on line {first}; remove one", node)
        if node.tag.removeprefix(TAG) in SCALARS:
            node.tag = f"{TAG}str"
        return node.value


def _refusal(problem: str, at: Any) -> ConstructorError:
    return ConstructorError(problem=problem, problem_mark=at.start_mark)


def read_yaml(path: Path, missing: str = "no such recipe file; `bpfn config init` writes one to start from") -> Tree:
    """Parse a recipe file. Raises: UsageError: missing, too large, not YAML, or not a mapping."""
    name = printable(path)
    try:
        if not path.is_file():
            raise UsageError(f"{name}: {missing}")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{name}: larger than {MAX_BYTES // 1024} KiB, so not a recipe")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{name}: not a UTF-8 text file, so not a recipe") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> Tree:
    """Parse recipe text; `name` stands for it in messages. Raises: UsageError."""
    values, lines = _load(text, name)
    if not isinstance(values, dict):
        found = {None: "empty", list: "a list"}.get(values if values is None else type(values), "a single value")
        raise UsageError(f"{name}: a recipe maps keys to values, but this is {found}")
    return Tree(values, lines, name)


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """Apply `dotted.key=value` assignments in order. Raises: UsageError: no `=`, or a key below a value."""
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not all(key.split(".")) or key.count(".") >= MAX_DEPTH:
            raise UsageError(f"--set {printable(assignment)}: write key=value, for example train.lr=1e-3")
        tree = merge(tree, {key: _load(text, f"--set {printable(key)}")[0]}, "--set ")
    return tree


def merge(tree: Tree, changes: Mapping[str, Any], source: str = "") -> Tree:
    """Set values by their dotted keys. source: where they come from, before a key in messages.

    Raises: UsageError: a key below a value.
    """
    values, lines = copy.deepcopy(tree.values), dict(tree.lines)
    for dotted, value in changes.items():
        keys = tuple(dotted.split("."))
        branch = values
        for parent in keys[:-1]:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise UsageError(f"{source}{printable(dotted)}: {printable(parent)} is a value and has no keys")
        branch[keys[-1]] = value
        lines = {known: line for known, line in lines.items() if known[: len(keys)] != keys}
    return Tree(values, lines, tree.name)


def build(kind: type[T], tree: Tree) -> T:
    """Make a `settings` dataclass from a parsed recipe.

    Raises: UsageError: all mistakes in one line: file, line, dotted key, what is wrong, nearest valid key.
        CheckpointError: the same, if all of them are about files of weights.
    """
    # JSON mode is strict about scalars, yet accepts a list for a tuple.
    text = json.dumps(tree.values)
    try:
        return pydantic.TypeAdapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        mistakes = dict.fromkeys(_explain(kind, tree, mistake) for mistake in found)
        are_weights = all(mistake["type"] == ABOUT_WEIGHTS for mistake in found)
        raise (CheckpointError if are_weights else UsageError)(f"{tree.name}: {'; '.join(mistakes)}") from None


def to_tree(value: Any) -> dict[str, Any]:
    """A `settings` dataclass as plain values, ready for YAML or JSON."""
    return json.loads(pydantic.TypeAdapter(type(value)).dump_json(value))


def to_yaml(value: Any) -> str:
    """A `settings` dataclass, or its plain values, as YAML text that reads back as itself."""
    tree = value if isinstance(value, dict) else to_tree(value)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def json_hash(value: Any) -> str:
    """Sixteen hex digits that identify plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _load(text: str, name: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The value that YAML text stands for, and the lines of its keys."""
    try:
        loader = _Loader(text)
        return loader.get_single_data(), loader.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        kind = "" if isinstance(error, ConstructorError) else "not YAML: "
        raise UsageError(f"{name}: {where}{kind}{printable(error.problem)}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: not YAML: {printable(str(error).splitlines()[0])}") from None
    except (ValueError, KeyError, IndexError) as error:  # of a number or a bool, or of one that is empty
        raise UsageError(f"{name}: not a valid value: {printable(error)[:80]}") from None


def _explain(kind: type, tree: Tree, mistake: Any) -> str:
    keys = tuple(map(str, mistake["loc"]))
    dotted = printable(".".join(keys))
    line = tree.lines.get(keys)
    where = f"line {line}: " if line else ""
    if mistake["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        prefix = "".join(f"{key}." for key in keys[:-1])
        known = _field_names(kind, keys[:-1])
        hint = did_you_mean(keys[-1], known, prefix) or _elsewhere(kind, keys[-1])
        hint = hint or (known and f"; known: {', '.join(known)}") or ""
        return f"{where}unknown key {dotted}{hint}"
    if mistake["type"] in (ABOUT_SIZES, ABOUT_WEIGHTS):
        return f"{where}{dotted}: {mistake['msg']}"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{where}{dotted}: {message}, got {printable(repr(mistake['input']))[:60]}"


def _elsewhere(kind: Any, name: str) -> str:
    """A hint where a key belongs that was written without the keys above it."""
    found = [dotted for dotted in _dotted_keys(kind) if dotted.rpartition(".")[2] == name]
    least = min((dotted.count(".") for dotted in found), default=0)
    nearest = [dotted for dotted in found if dotted.count(".") == least]
    return f", did you mean {' or '.join(nearest[:3])}?" if nearest else ""


def _dotted_keys(kind: Any, prefix: str = "") -> Iterator[str]:
    for name, field_ in getattr(kind, "__pydantic_fields__", {}).items():
        yield f"{prefix}{name}"
        yield from _dotted_keys(field_.annotation, f"{prefix}{name}.")


def _field_names(kind: Any, keys: Iterable[str]) -> list[str]:
    for key in keys:
        found = getattr(kind, "__pydantic_fields__", {}).get(key)
        kind = None if found is None else found.annotation
    return list(getattr(kind, "__dataclass_fields__", {}))
