# SPDX-License-Identifier: MIT
"""`bpfn` commands for benchmarks that train and evaluate networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bpfn_cli.files import write_json


def bpfn(*words: object) -> str:
    """Run a command and return what it prints on stdout; its progress goes to the terminal."""
    print("$ bpfn", *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "bpfn_cli.cli", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def accuracy(run: Path, name: str, *flags: object) -> dict[str, Any]:
    """What `bpfn eval` finds for the network of a run, kept in its folder as `NAME.json`."""
    path = run / f"{name}.json"
    if not path.is_file():
        report = json.loads(bpfn("eval", "--checkpoint", run, *flags, "--json", "--force"))
        write_json(path, next(row for row in report["rows"] if row["name"] == "model"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found
