# SPDX-License-Identifier: MIT
"""What pruning measures on this machine and on a dataset: scenes to prune with, and the time of a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bpfn_cli.data.datasets import SceneDataset, describe, open_dataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.errors import UsageError
from bpfn_cli.models import BiPointFlowNet, Variant
from bpfn_cli.models.pruning.prune import Scenes
from bpfn_cli.profiling.latency import Case, measure_latency
from bpfn_cli.progress import Progress

MOST_POINTS = 2048  # of each cloud
BATCH = 4
HELD_OUT = 32  # scenes that errors are measured on
PASSES = 9  # of the network whose latency is measured


def pruning_scenes(
    data: Path, teacher: BiPointFlowNet, count: int, seed: int, progress: Progress
) -> tuple[Scenes, SceneDataset]:
    """Training scenes: `count` of them to learn from, and others to measure on; and the dataset.

    Raises: UsageError: fewer than three scenes. DataError, DiskError: they cannot be read.
    """
    points, dataset = min(MOST_POINTS, teacher.num_points), open_dataset(data, "train")
    held_out = min(HELD_OUT, len(dataset) // 3)
    used = min(count, len(dataset) - held_out)
    if not held_out:
        raise UsageError(f"--data: {describe(dataset)} are too few to prune with; use a dataset of at least 3")
    parts = f"{used} scenes to learn from, {held_out} to measure on"
    progress.line(f"data: {describe(dataset)}; {parts}, {points:,} points each")
    how: dict[str, Any] = {"points": points, "batch_size": BATCH, "seed": seed}
    first, last = range(used), range(len(dataset) - held_out, len(dataset))
    return Scenes(*(list(evaluation_batches(dataset, part, **how)) for part in (first, last))), dataset


def latency_ms(variant: Variant, points: int) -> float:
    """Median time of a pass with one pair of clouds on the CPU, as `bpfn bench` measures it."""
    return measure_latency(Case(variant, points), rounds=PASSES, plain=False, memory=False).fast.median_ms
