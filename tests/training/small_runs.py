# SPDX-License-Identifier: MIT
"""Recipes, jobs and runs of the smallest networks in this process, and what their folders contain."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tiny_world import BIG, LEAST, TINY, Quiet

from bpfn_cli.config import Tree, build
from bpfn_cli.errors import Interrupted
from bpfn_cli.models import VARIANTS
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs.checkpoints import to_plain
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.runs.record import RECORD_FILE
from bpfn_cli.stop import Interruption
from bpfn_cli.training import Changes, Job, resume, run

CPU = torch.device("cpu")
NAME = "a"

SMALL_VARIANTS = {TINY.name: TINY, BIG.name: BIG}
SMALL: dict[str, Any] = {
    "variant": "tiny",
    "teacher": "big",
    "loss": ["none"],
    "data": {"points": LEAST, "holdout": 0.3, "augment": {"jitter_m": 0.01}},
    "train": {"epochs": 3, "batch_size": 1, "checkpoint_minutes": 0, "validate_every": 1, "warmup_steps": 0},
    "objective": {"calibration_step": 1},
}


def add_small_variants() -> None:
    """Let recipes name the smallest networks."""
    VARIANTS.update(SMALL_VARIANTS)


def small_recipe(**changes: Any) -> Recipe:
    """A recipe of a few steps; `changes` are merged into `SMALL`, two levels deep."""
    tree = {
        key: {**value, **changes.pop(key, {})} if isinstance(value, dict) else value for key, value in SMALL.items()
    }
    with patch.dict(VARIANTS, SMALL_VARIANTS):  # some recipes are made before the tests that name them
        return build(Recipe, Tree({**tree, **changes}, {}, "small"))


def job_for(data: Path, runs: Path, recipe: Recipe, **more: Any) -> Job:
    """The job of a run called `NAME`."""
    return Job.resolve(recipe, data, runs, CPU, **{"command": "bpfn distill", "name": NAME, **more})


def train_run(data: Path, runs: Path, recipe: Recipe, **more: Any) -> Quiet:
    """Start a run and train it to its end; returns what it printed."""
    progress = Quiet()
    run(job_for(data, runs, recipe, **more), progress)
    return progress


def resume_run(runs: Path, stop: Interruption | None = None, **changes: Any) -> Quiet:
    """Resume the run; returns what it printed."""
    progress = Quiet()
    resume(runs / NAME, progress, stop, Changes(**changes))
    return progress


def digest_of_uninterrupted(data: Path, runs: Path, recipe: Recipe, **more: Any) -> str:
    """The digest of a run that is never stopped."""
    train_run(data, runs, recipe, **more)
    return digest(runs)


class StopAfter(Interruption):
    """Asks to stop once `after` batches or scenes have been seen since the start."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def wanted(self) -> Interrupted | None:
        self.left -= 1
        return Interrupted("enough", 143) if self.left < 0 else None


# --- what a run folder contains --------------------------------------------------------------------


def record_of(runs: Path) -> dict[str, Any]:
    """run.json as written."""
    found: dict[str, Any] = json.loads((runs / NAME / RECORD_FILE).read_text())
    return found


def edit_record(runs: Path, **entries: Any) -> None:
    """Replace entries of run.json."""
    (runs / NAME / RECORD_FILE).write_text(json.dumps(record_of(runs) | entries))


def metrics_of(runs: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without durations."""
    lines = [json.loads(line) for line in (runs / NAME / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def checkpoints_of(runs: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted((runs / NAME / "checkpoints").glob("step-*.safetensors"), reverse=True)


def newest_number(runs: Path) -> int:
    """The number of the newest checkpoint; 0: none."""
    return max((int(path.stem[5:]) for path in checkpoints_of(runs)), default=0)


def digest(runs: Path) -> str:
    """Of the metrics and of everything in the newest checkpoint but durations: weights, optimizers, critics, ..."""
    found = RunFolder.open(runs / NAME).checkpoints.newest(lambda text: None)
    assert found is not None
    state = dict(found.state)
    seconds = state.pop("epoch_seconds"), state["log"].pop("seconds")
    assert all(np.isfinite(seconds[0]))
    state.pop("teacher_counts")
    result = hashlib.sha256(json.dumps(metrics_of(runs), sort_keys=True).encode())
    for name, tensor in [*sorted(to_plain(state)[1].items()), *sorted(found.weights.state.items())]:
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def mark_unfinished(runs: Path, **entries: Any) -> None:
    """Make a finished run look as if it had been killed before its evaluation."""
    folder = runs / NAME
    for path in (folder / "summary.json", folder / "student.safetensors", *folder.glob("evaluations/*")):
        path.unlink()
    edit_record(runs, state="running", **entries)


def edit_config(runs: Path, old: str, new: str) -> None:
    """Replace a line of config.yaml."""
    path = runs / NAME / "config.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
