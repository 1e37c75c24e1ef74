# SPDX-License-Identifier: MIT
"""Imports go one way and in no circle, light modules stay light, and files stay short."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import bpfn_cli

ROOT = Path(bpfn_cli.__file__).parent
RANKS = (
    {"errors", "precision", "resources", "choices", "cores"},
    {"structures"},
    {
        *(
            "files",
            "locks",
            "rng",
            "parallel",
            "cores",
            "progress",
            "config",
            "device",
            "distributed",
            "launch",
            "shipped",
            "disk_names",
            "frames",
            "history",
            "without_torch",
        ),
        "stop",
    },
    {"ops"},
    {"models"},
    {"data"},
    {"losses"},
    {"strategies", "metrics"},
    {"viewing", "figures"},
    {"prediction"},
    {"profiling"},
    {"recipes"},
    {"runs"},
    {"training", "studies", "reporting"},
    {"cli", "__main__"},
)
RANK = {layer: rank for rank, layers in enumerate(RANKS) for layer in layers}
SEPARATE = {"training", "reporting"}, {"training", "studies"}, {"studies", "reporting"}, {"strategies", "metrics"}
HEAVY = {"torch", "matplotlib", "typer", "rich"}
LONGEST_FILE = 400
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@cache
def imports(path: Path, only_at_import: bool = False) -> frozenset[str]:
    """Dotted names a file imports, those under TYPE_CHECKING included.

    only_at_import: those of the module body that run, without functions and TYPE_CHECKING.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if only_at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if only_at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def edges() -> dict[str, set[str]]:
    """Each module with the modules it imports; a name imported from a package counts for the module it is."""
    modules = {module_of(path): path for path in FILES}
    found = {}
    for module, path in modules.items():
        names = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        found[module] = (names & modules.keys()) - {module}
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """One description for each edge that closes a circle."""
    state: dict[str, int] = {}
    found = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        state[module] = 1
        for other in sorted(graph[module]):
            if state.get(other) == 1:
                found.append(" -> ".join((*path[path.index(other) :], other)))
            elif other not in state:
                visit(other, (*path, other))
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module, (module,))
    return found


def test_every_layer_has_its_rank() -> None:
    assert {layer_of(path) for path in FILES} <= RANK.keys()
    assert len(FILES) > 30


def test_imports_go_only_downwards() -> None:
    wrong = []
    for path in FILES:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "bpfn_cli" or len(parts) < 2 or parts[1] not in RANK:
                continue
            own, other = layer_of(path), parts[1]
            if own != other and (RANK[other] > RANK[own] or {own, other} in SEPARATE):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_imports_form_no_circle() -> None:
    assert not circles(edges())


def test_circles_finds_one() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b"]


def test_data_needs_no_heavy_package_except_its_loader() -> None:
    for path in (ROOT / "data").rglob("*.py"):
        if path.name != "loader.py":
            assert not {name.split(".")[0] for name in imports(path)} & HEAVY, path


def test_light_modules_import_no_heavy_package() -> None:
    for name in ("errors.py", "choices.py", "config.py", "files.py", "structures.py", "models/variants.py"):
        assert not {found.split(".")[0] for found in imports(ROOT / name, only_at_import=True)} & HEAVY, name


def test_only_the_console_prints() -> None:
    """It escapes control characters, so that the name of a file cannot drive a terminal."""
    printing = [path for path in (ROOT / "cli").rglob("*.py") if path.name != "console.py" and calls_print(path)]
    assert not printing and calls_print(ROOT / "cli" / "console.py")


def calls_print(path: Path) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    return any(isinstance(function, ast.Name) and function.id == "print" for function in calls)


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {str(path) for path, length in lengths.items() if length > LONGEST_FILE}
    assert sorted(lengths.values())[len(lengths) // 2] <= 120


def test_functions_are_short() -> None:
    """At least 95 % have at most 25 lines, signature and docstring included."""
    functions = [
        node
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > 25]
    assert len(long) <= 0.05 * len(functions), long
