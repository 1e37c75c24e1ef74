# SPDX-License-Identifier: MIT
"""The checkpoint that a command works with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bpfn_cli.cli.console import say


def read_weights(checkpoint: Path | None, runs: Path) -> tuple[Path, Any]:
    """Path and content of `checkpoint`, or of the newest student in `runs`; notes about it are printed.

    Raises: CheckpointError: there is none, or it cannot be read.
    """
    from bpfn_cli.errors import CheckpointError
    from bpfn_cli.models import read_checkpoint
    from bpfn_cli.runs.listing import latest_checkpoint

    path = checkpoint or latest_checkpoint(runs)
    if path is None:
        raise CheckpointError(f"{runs}: no finished run; give --checkpoint FILE, or `bpfn distill --loss bihint` first")
    read = read_checkpoint(path)
    for note in read.notes:
        say(f"{path}: {note}")
    return path, read
