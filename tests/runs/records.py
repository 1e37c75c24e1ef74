# SPDX-License-Identifier: MIT
"""Records of runs, and run folders as past runs leave them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bpfn_cli.runs.record import RunRecord, TrainingData

START = datetime(2025, 3, 1, 10, tzinfo=timezone.utc)


def record_with(**changes: Any) -> RunRecord:
    """The record of a run that has just started."""
    given: dict[str, Any] = {
        "role": "student",
        "variant": "tiny",
        "method": "hint",
        "seed": 0,
        "points": 1024,
        "epochs": 10,
        "data": TrainingData(source_kind="synthetic", train_scenes=3, fraction=None),
        "started": START,
    }
    return RunRecord(**given | changes)


def past_run(runs: Path, name: str, *, weights: bool = True, day: int = 1, hour: int = 10, **changes: Any) -> Path:
    """A folder as a finished run leaves it; returns its deployed weights."""
    folder = runs / name
    folder.mkdir(parents=True)
    started = datetime(2025, 3, day, hour, tzinfo=timezone.utc)
    record_with(**{"state": "finished", "started": started, **changes}).write(folder)
    if weights:
        (folder / "student.safetensors").write_bytes(b"weights")
    return folder / "student.safetensors"
