# SPDX-License-Identifier: MIT
"""The teacher of a job: read from a checkpoint, found among the runs, or untrained as a control."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from bpfn_cli.distributed import from_main
from bpfn_cli.errors import CheckpointError, DataError
from bpfn_cli.files import sha256_of
from bpfn_cli.metrics.evaluation import EVALUATION_SEED
from bpfn_cli.metrics.result import EvaluationResult, MetricRow
from bpfn_cli.models import BiPointFlowNet, build_from, build_model, read_checkpoint
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs import record
from bpfn_cli.runs.listing import find_teacher
from bpfn_cli.training.job import Job

UNTRAINED_SEED = 987_654_321  # of the weights of a teacher that was never trained


@dataclass(frozen=True)
class TeacherNetwork:
    """A teacher's network, its file (None: untrained), and the name of the run that trained it (None: unknown)."""

    network: BiPointFlowNet
    sha256: str
    path: Path | None = None
    run: str | None = None

    @classmethod
    def read(cls, path: Path, runs: Path) -> TeacherNetwork:
        """Read a checkpoint. Raises: CheckpointError."""
        checkpoint = read_checkpoint(path)
        run = checkpoint.metadata.get("run")
        is_known = isinstance(run, str) and (runs / Path(run).name / record.RECORD_FILE).is_file()
        return cls(build_from(checkpoint), sha256_of(path), path, run if is_known else None)

    @classmethod
    def untrained(cls, recipe: Recipe) -> TeacherNetwork:
        """The recipe's teacher with random weights, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(UNTRAINED_SEED)
            network = build_model(recipe.teacher, recipe.data.cloud_points)
        digest = hashlib.sha256()
        for tensor in network.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return cls(network, digest.hexdigest())

    def entry(self, known: record.Teacher | None) -> record.Teacher:
        """Its entry in the record of a student; metrics that are `known` for the same weights are kept."""
        path = "random weights" if self.path is None else str(self.path)
        entry = record.Teacher(run=self.run, variant=self.network.variant.name, path=path, sha256=self.sha256)
        if known is None or known.sha256 != self.sha256:
            return entry
        return entry.model_copy(update={"held_out_epe3d": known.held_out_epe3d, "test": known.test})

    def check_fits(self, student: BiPointFlowNet) -> None:
        """Raises: CheckpointError: the two networks cannot share a point pyramid."""
        if self.network.pyramid_shape != student.pyramid_shape:
            names = f"teacher {self.network.variant.name} and student {student.variant.name}"
            sizes = "reductions, and numbers of neighbors of encoder and estimator"
            raise CheckpointError(f"{names} sample different points: they need equal {sizes}")


def teacher_checkpoint(job: Job) -> Path | None:
    """The given teacher, or one that was trained with this recipe on this data; None: it has to be trained."""
    return job.teacher or from_main(lambda: find_teacher(job.runs, job.teacher_key))


def known_test_metrics(job: Job, teacher: TeacherNetwork) -> MetricRow | None:
    """The teacher's metrics from its own run, if measured as the student will be; None: unknown."""
    if teacher.run is None or job.data.test is None:
        return None
    wanted = (job.data.test_sha256, job.recipe.data.points, EVALUATION_SEED, teacher.sha256)
    for path in sorted((job.runs / teacher.run / record.EVALUATIONS).glob("*.json")):
        with contextlib.suppress(DataError):
            result = record.read_schema(path, EvaluationResult, "")
            usual = result.parts is None and result.dataset.region != "square"
            if usual and (result.dataset.sha256, result.points, result.seed, result.checkpoint.sha256) == wanted:
                return result.model
    return None
