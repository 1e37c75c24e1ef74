# SPDX-License-Identifier: MIT
"""Strict YAML to frozen dataclasses. Knows no field of ours.

YAML is read by our own rules because PyYAML's surprise: `1e-3` is a string, `no` a bool, `010` is 8, `1:30` is 90,
duplicate keys win silently, and aliases can hide 10^10 nodes. All mistakes of a recipe are reported at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform

from bpfn_cli.errors import UsageError, printable

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_NODES = 5000

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def settings(kind: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are checked and whose unknown keys are refused."""
    strict = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic_dataclass(kind, frozen=True, kw_only=True, config=strict)
    return made


@dataclass(frozen=True)
class Tree:
    """A parsed recipe: plain values, and the line each dotted key stands on."""

    values: dict[str, Any]
    lines: dict[str, int]
    name: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: true/false, decimal integers, floats with or without a dot, null."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


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
        raise UsageError(f"{name}: not a text file in UTF-8, so not a recipe") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> Tree:
    """Parse recipe text; `name` stands for it in messages. Raises: UsageError."""
    node = _compose(text, name)
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{name}: a recipe is a mapping of keys to values, this is {_kind(node)}")
    lines: dict[str, int] = {}
    return Tree(_construct(node, "", name, lines), lines, name)


def parse_value(text: str, name: str) -> Any:
    """Parse the right side of `--set key=value`. Raises: UsageError."""
    node = _compose(text, name)
    return None if node is None else _construct(node, "", name, {})


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """Apply `dotted.key=value` assignments in order. Raises: UsageError: no `=`, or a key below a value."""
    values = json.loads(json.dumps(tree.values))
    lines = dict(tree.lines)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not all(key.split(".")) or key.count(".") >= MAX_DEPTH:
            raise UsageError(f"--set {printable(assignment)}: write key=value, for example train.lr=1e-3")
        *parents, leaf = key.split(".")
        branch = values
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise UsageError(f"--set {printable(key)}: {parent} is a value, it has no keys below it")
        branch[leaf] = parse_value(text, f"--set {printable(key)}")
        for known in [line for line in lines if line == key or line.startswith(f"{key}.")]:
            del lines[known]
    return Tree(values, lines, tree.name)


def build(kind: type[T], tree: Tree) -> T:
    """Make a `settings` dataclass from a parsed recipe.

    Raises: UsageError: all mistakes in one line: file, line, dotted key, what is wrong, nearest valid key.
    """
    # JSON mode is strict about scalars yet takes a list for a tuple.
    text = json.dumps(tree.values)
    try:
        return pydantic.TypeAdapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        mistakes = [_explain(kind, tree, mistake) for mistake in error.errors(include_url=False)]
        raise UsageError(f"{tree.name}: " + "; ".join(dict.fromkeys(mistakes))) from None


def to_tree(value: Any) -> dict[str, Any]:
    """A `settings` dataclass as plain values, ready for YAML or JSON."""
    return json.loads(pydantic.TypeAdapter(type(value)).dump_json(value))


def to_yaml(value: Any) -> str:
    """A `settings` dataclass, or its plain values, as YAML text that reads back as itself."""
    tree = value if isinstance(value, dict) else to_tree(value)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UsageError(f"{name}: line {line}: anchors and aliases are not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UsageError(f"{name}: line {line}: nested more than {MAX_DEPTH} deep")
            if number > MAX_NODES:
                raise UsageError(f"{name}: more than {MAX_NODES} values, so not a recipe")
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise UsageError(f"{name}: {where}not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: not YAML: {printable(str(error).splitlines()[0])}") from None


def _construct(node: yaml.Node, path: str, name: str, lines: dict[str, int]) -> Any:
    lines[path] = node.start_mark.line + 1
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
        raise UsageError(f"{name}: line {lines[path]}: the tag {printable(node.tag)} is not allowed")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, f"{path}.{i}", name, lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(node, path, name, lines)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, name)
    raise UsageError(f"{name}: line {lines[path]}: neither a value, a list nor a mapping")


def _construct_mapping(node: yaml.MappingNode, path: str, name: str, lines: dict[str, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{name}: line {line}: a key must be a word")
        key = str(key_node.value)
        if key in first:
            raise UsageError(f"{name}: {printable(key)} stands twice, on lines {first[key]} and {line}; remove one")
        first[key] = line
        below = f"{path}.{key}" if path else key
        values[key] = _construct(value_node, below, name, lines)
        lines[below] = line
    return values


def _scalar(node: yaml.ScalarNode, name: str) -> Any:
    text, kind = node.value, node.tag.rsplit(":", 1)[-1]
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return {"true": True, "false": False}[text]
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except (ValueError, KeyError):
        line = node.start_mark.line + 1
        raise UsageError(f"{name}: line {line}: {printable(text)[:40]} is not a {kind}") from None
    if kind != "str":
        raise UsageError(f"{name}: line {node.start_mark.line + 1}: a value of kind {kind} is not allowed")
    return text


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "empty"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _explain(kind: type, tree: Tree, mistake: Any) -> str:
    keys = [str(part) for part in mistake["loc"]]
    dotted = ".".join(keys)
    line = tree.lines.get(dotted)
    where = f"line {line}: " if line else ""
    if mistake["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(keys[-1], _field_names(kind, keys[:-1]), n=1)
        hint = f", did you mean {'.'.join([*keys[:-1], near[0]])}?" if near else ""
        return f"{where}unknown key {printable(dotted)}{hint}"
    message = mistake["msg"][:1].lower() + mistake["msg"][1:]
    return f"{where}{printable(dotted)}: {message}, got {printable(repr(mistake['input']))[:60]}"


def _field_names(kind: Any, keys: list[str]) -> list[str]:
    for key in keys:
        field = getattr(kind, "__dataclass_fields__", {}).get(key)
        if field is None:
            return []
        kind = getattr(kind, "__pydantic_fields__")[key].annotation  # noqa: B009
    return list(getattr(kind, "__dataclass_fields__", {}))
