# SPDX-License-Identifier: MIT
"""Where the runs of a folder stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bpfn_cli.recipes.calendar import is_validation_epoch
from bpfn_cli.runs.folder import RunFolder, find_runs, is_busy, run_folders

DAMAGED = {"state": "damaged", "reason": "run.json is damaged, or of another bpfn"}
RECENT = 5  # epochs that tell how long the next ones will take


@dataclass(frozen=True)
class RunState:
    """One run.

    Attributes:
        state: running, finished, interrupted, failed; killed: it says that it runs, but no process does; damaged: its
            run.json is, and nothing else is known.
        seconds_left: estimate; None: nothing is known. epe3d: on the test split, validation_epe3d: the best; metres.
    """

    name: str
    folder: str
    state: str
    reason: str | None
    method: str
    variant: str
    role: str
    epochs_done: int
    epochs: int
    seconds_left: float | None
    epe3d: float | None
    validation_epe3d: float | None
    started: str


def overview(runs: Path) -> list[RunState]:
    """All runs of a folder, oldest first; then those that are damaged."""
    found = find_runs(runs)
    readable = {folder for folder, _ in found}
    damaged = [(folder, DAMAGED) for folder in run_folders(runs) if folder not in readable]
    return [_state(folder, about) for folder, about in found + damaged]


def _state(folder: Path, about: Mapping[str, Any]) -> RunState:
    if about.get("state") == "running" and not is_busy(folder):
        about = RunFolder.open(folder).about  # it may have ended just now
        about = about | {"state": "killed"} if about["state"] == "running" else about
    state = str(about.get("state"))
    done, epochs = _number(about.get("epochs_done")), _number(about.get("epochs"))
    return RunState(
        name=folder.name,
        folder=str(folder),
        state=state,
        reason=about.get("reason"),
        method=str(about.get("method", "")),
        variant=str(about.get("variant", "")),
        role=str(about.get("role", "")),
        epochs_done=done,
        epochs=epochs,
        seconds_left=None if state in ("finished", "damaged") else _seconds_left(about, done, epochs),
        epe3d=about.get("epe3d"),
        validation_epe3d=about.get("best_validation_epe3d"),
        started=str(about.get("started", "")),
    )


def _seconds_left(about: Mapping[str, Any], done: int, epochs: int) -> float | None:
    recent = list(about.get("epoch_seconds") or [])[-RECENT:]
    plan = about.get("plan") or {}
    an_epoch = median(recent) if recent else plan.get("seconds_per_epoch")
    if an_epoch is None:
        return None
    train = (about.get("recipe") or {}).get("train", {})
    calendar, every = train.get("validation_calendar", "every"), train.get("validate_every", 1)
    validations = sum(is_validation_epoch(epoch, epochs, calendar, every) for epoch in range(done, epochs))
    return float(an_epoch * (epochs - done) + validations * (about.get("validation_seconds") or 0))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
