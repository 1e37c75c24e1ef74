# SPDX-License-Identifier: MIT
"""Help of every command: quick, with examples that can be copied."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command import bpfn, succeeded

from bpfn_cli.cli.main import app


def every_command(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = list(every_command(typer.main.get_command(app)))


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom bpfn_cli.cli.main import run\nrun(['--help'])\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'pydantic', 'fvcore', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_examples(command: tuple[str, ...], tmp_path: Path) -> None:
    shown = succeeded(bpfn(*command, "--help", cwd=tmp_path, COLUMNS="80")).stdout.splitlines()
    assert not any("<bool>" in line for line in shown)
    examples = [line.strip() for line in itertools.takewhile(str.strip, shown[shown.index("  Examples:") + 1 :])]
    assert len(examples) >= 2
    for line in examples:
        assert line.startswith(f"$ bpfn {' '.join(command)}")
        assert " # " in line


def test_help_lists_commands_by_panel(tmp_path: Path) -> None:
    shown = succeeded(bpfn("--help", cwd=tmp_path)).stdout.splitlines()
    assert [line for line in shown if line in ("Data:", "Network:", "Training:", "Results:", "Help:")] == [
        "Data:", "Network:", "Training:", "Results:", "Help:"
    ]  # fmt: skip
    listed = {line.split()[0] for line in shown[shown.index("Data:") :] if line.startswith("  ")}
    assert {command[0] for command in COMMANDS} <= listed


@pytest.mark.parametrize("group", ["prepare", "data", "config"])
def test_group_without_a_command_prints_its_help(group: str, tmp_path: Path) -> None:
    assert f"Usage: bpfn {group}" in succeeded(bpfn(group, cwd=tmp_path)).stdout
