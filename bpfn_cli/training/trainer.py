# SPDX-License-Identifier: MIT
"""Train several recipes on the same data, which is opened once: the trainer of a study."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.progress import NoProgress, Progress
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.stop import Interruption
from bpfn_cli.training.build import build, check_job
from bpfn_cli.training.job import Job, OpenedDataset
from bpfn_cli.training.pipeline import run, train_teacher
from bpfn_cli.training.resuming import Changes, resume
from bpfn_cli.training.teacher import teacher_checkpoint


@dataclass(frozen=True)
class Trainer:
    """Trains recipes into one folder of runs; see `bpfn_cli.studies.runner.Trainer`."""

    data: OpenedDataset
    runs: Path
    device: torch.device
    command: str
    stop: Interruption
    progress: Progress
    allow_code: bool = False

    @property
    def data_sha256(self) -> str:
        return self.data.identity.sha256

    def check(self, recipe: Recipe, teacher: Path | None) -> None:
        """Refuse, quickly and in silence, what cannot be trained. Raises: as `build`."""
        job = self._job(recipe, teacher=teacher)
        check_job(job)
        build(job, NoProgress(), reads_scenes=False)

    def train(self, recipe: Recipe, name: str, teacher: Path | None, labels: Mapping[str, Any]) -> None:
        run(self._job(recipe, name=name, teacher=teacher, labels=labels), self.progress)

    def resume(self, run: Path, teacher: Path | None) -> None:
        resume(run, self.progress, self.stop, Changes(self.data, teacher, str(self.device), allow_code=self.allow_code))

    def find_teacher(self, recipe: Recipe) -> Path | None:
        return teacher_checkpoint(self._job(recipe))

    def train_teacher(self, recipe: Recipe) -> Path:
        return train_teacher(self._job(recipe), self.progress)

    def check_stop(self) -> None:
        self.stop.check()

    def _job(self, recipe: Recipe, **more: Any) -> Job:
        how = {"command": self.command, "stop": self.stop, "allow_code": self.allow_code}
        return Job.resolve(recipe, self.data, self.runs, self.device, **how, **more)
