# SPDX-License-Identifier: MIT
"""Imports go one way, and the light layers stay light."""

from __future__ import annotations

import ast
from pathlib import Path

import bpfn_cli

ROOT = Path(bpfn_cli.__file__).parent
RANKS = (
    {"errors", "precision", "resources"},
    {"files", "config", "launch", "parallel", "progress", "rng"},
    {"locks", "structures", "device", "distributed"},
    {"ops"},
    {"models", "data"},
    {"losses"},
    {"metrics", "strategies"},
    {"profiling"},
    {"recipes"},
    {"runs"},
    {"training"},
    {"studies", "reporting"},
    {"cli", "__main__"},
)
RANK = {layer: rank for rank, layers in enumerate(RANKS) for layer in layers}
HEAVY = {"torch", "matplotlib", "typer", "rich"}


def imports(path: Path, only_at_import: bool = False) -> set[str]:
    """Dotted names a file imports, those under TYPE_CHECKING left out; only those of the module body, or all."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if only_at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def layer_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_every_layer_has_its_place() -> None:
    assert {layer_of(path) for path in FILES} <= RANK.keys()
    assert len(FILES) > 30


def test_imports_go_one_way() -> None:
    wrong = []
    for path in FILES:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "bpfn_cli" or len(parts) < 2 or parts[1] not in RANK:
                continue
            own, other = layer_of(path), parts[1]
            if own != other and RANK[other] > RANK[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_data_needs_no_heavy_package_except_its_loader() -> None:
    for path in (ROOT / "data").rglob("*.py"):
        if path.name != "loader.py":
            assert not {name.split(".")[0] for name in imports(path)} & HEAVY, path


def test_sizes_and_structures_import_no_torch() -> None:
    for name in ("errors.py", "config.py", "files.py", "structures.py", "models/variants.py"):
        assert not {found.split(".")[0] for found in imports(ROOT / name, only_at_import=True)} & HEAVY, name
