# SPDX-License-Identifier: MIT
"""An evaluation as a result file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.data.datasets import SceneDataset, split_identity
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.metrics.evaluation import (
    BASELINES,
    MODEL,
    REDUCED,
    TEACHER,
    evaluate,
    evaluation_rows,
    motion_rows,
    network_flow,
)
from bpfn_cli.models import BiPointFlowNet, build_from, read_checkpoint
from bpfn_cli.precision import Precision
from bpfn_cli.progress import Progress

FORMAT = 1
EVALUATION_SEED = 0  # of the points drawn: the same for every run, so that all rows of a table share them


def evaluate_checkpoint(
    checkpoint: Path,
    dataset: SceneDataset,
    *,
    points: int,
    seed: int,
    device: torch.device,
    progress: Progress,
    teacher: BiPointFlowNet | None = None,
    precision: Precision = Precision.float32,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure a checkpoint, the baselines and, where given, its teacher on a dataset: the result file's content.

    Args:
        precision: less than float32 adds a row of the same weights in it; that of float32 is always there.
        check: called after each scene; may raise to end the work.
    Raises: CheckpointError, DataError, NonFiniteError.
    """
    read = read_checkpoint(checkpoint)
    network = build_from(read).to(device)
    predictors = {MODEL: network_flow(network, device), **BASELINES}
    if precision in REDUCED:
        predictors[REDUCED[precision]] = network_flow(network, device, precision)
    if teacher is not None:
        predictors[TEACHER] = network_flow(teacher.to(device), device)
    if not len(dataset):
        raise DataError(f"{printable(dataset.root)}: its {dataset.split} split is empty; there is nothing to measure")
    with progress.bar(f"evaluating on {dataset.kind} {dataset.split}") as bar:

        def tell(done: int, total: int) -> None:
            bar(done, total)
            check()

        measured = evaluate(predictors, dataset, points=points, seed=seed, by_motion=True, progress=tell)
    return {
        "format": FORMAT,
        "dataset": {
            "kind": dataset.kind,
            "split": dataset.split,
            "path": str(dataset.root),
            "scenes": len(dataset),
            "sha256": split_identity(dataset),
        },
        "points": points,
        "seed": seed,
        "checkpoint": {
            "which": "best" if "validation_epe3d" in read.metadata else "last",
            "path": str(checkpoint),
            "variant": read.variant.name,
            "sha256": sha256_of(checkpoint),
        },
        "rows": evaluation_rows(measured.means),
        "by_motion": motion_rows(measured.by_motion),
        "scenes": [
            {"name": scene.name, **{name: metrics.epe3d for name, metrics in scene.metrics.items()}}
            for scene in measured.scenes
        ],
    }


def result_name(result: dict[str, Any]) -> str:
    """A file name that another result has only where it is of the same weights, points and scenes."""
    dataset = result["dataset"]
    parts = (dataset["kind"], dataset["split"], dataset["sha256"][:8], result["points"], result["seed"])
    return "-".join(map(str, (*parts, result["checkpoint"]["sha256"][:8]))) + ".json"
