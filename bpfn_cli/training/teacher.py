# SPDX-License-Identifier: MIT
"""The teacher of an experiment as a file: which one, whose, and what is known of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.data.datasets import open_dataset, split_identity
from bpfn_cli.errors import CheckpointError
from bpfn_cli.files import sha256_of
from bpfn_cli.metrics.evaluation import EVALUATION_SEED
from bpfn_cli.metrics.result import MODEL
from bpfn_cli.models import BiPointFlowNet, build_from, build_model, read_checkpoint
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.training.job import Experiment

CONTROL_SEED = 987_654_321  # of the weights of a teacher that was never trained


@dataclass(frozen=True)
class Guide:
    """A teacher that was read: its network, its file, and the run it came from (None: from elsewhere)."""

    network: BiPointFlowNet
    sha256: str
    path: Path | None
    run: str | None

    @classmethod
    def read(cls, path: Path, runs: Path) -> Guide:
        """Read a checkpoint. Raises: CheckpointError."""
        checkpoint = read_checkpoint(path)
        run = checkpoint.metadata.get("run")
        is_known = isinstance(run, str) and (runs / Path(run).name / "run.json").is_file()
        return cls(build_from(checkpoint), sha256_of(path), path, run if is_known else None)

    def identity(self) -> dict[str, Any]:
        """For run.json."""
        path = "random weights" if self.path is None else str(self.path)
        return {"run": self.run, "variant": self.network.variant.name, "path": path, "sha256": self.sha256}


def random_guide(recipe: Recipe) -> Guide:
    """The recipe's teacher with weights that were never trained, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(CONTROL_SEED)
        network = build_model(recipe.teacher, recipe.data.points)
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return Guide(network, digest.hexdigest(), None, None)


def check_pyramids(guide: Guide, student: BiPointFlowNet) -> None:
    """Raises: CheckpointError: the two cannot share a point pyramid."""
    if guide.network.pyramid_shape != student.pyramid_shape:
        raise CheckpointError("teacher and student sample different points: they need equal reductions and neighbors")


def known_test_metrics(experiment: Experiment, guide: Guide) -> dict[str, Any] | None:
    """What the teacher's own run measured under the protocol of the student's evaluation; None: nothing."""
    if guide.run is None:
        return None
    wanted = {
        "sha256": split_identity(open_dataset(experiment.data, "test")),
        "points": experiment.recipe.data.points,
        "seed": EVALUATION_SEED,
        "weights": guide.sha256,
    }
    for path in sorted((experiment.runs / guide.run / "evaluations").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            result = json.loads(path.read_text(encoding="utf-8"))
            own = {
                "sha256": result["dataset"]["sha256"],
                "points": result["points"],
                "seed": result["seed"],
                "weights": result["checkpoint"]["sha256"],
            }
            if own == wanted:
                return next(row for row in result["rows"] if row["name"] == MODEL)
    return None
