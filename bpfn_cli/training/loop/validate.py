# SPDX-License-Identifier: MIT
"""Validation on scenes that nothing is learned from, which chooses the best checkpoint: EPE3D, or a stand-in for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest

import torch

from bpfn_cli import distributed
from bpfn_cli.choices import Selector
from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.errors import BpfnError, NonFiniteError, printable
from bpfn_cli.metrics.evaluation import MODEL, evaluate, network_flow
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.ops import nearest_squares
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.recipes.schedule import is_validation_epoch
from bpfn_cli.training.job import Job


@dataclass(frozen=True)
class Validator:
    """Measures a network on the scenes `indices` of `dataset`.

    Without labels it measures the distance of its flow to the teacher's or, without a teacher, from the moved cloud to
    the second one and back.
    """

    dataset: SceneDataset
    indices: Sequence[int]
    recipe: Recipe
    device: torch.device
    teacher: BiPointFlowNet | None = None

    @classmethod
    def create(cls, job: Job, teacher: BiPointFlowNet | None = None) -> Validator | None:
        """On the held-out training scenes, or on the test split if the recipe selects on it; None: there are none."""
        if job.recipe.train.select_on == "test":
            assert job.data.test is not None, "`check_job` refuses it"
            return cls(job.data.test, range(len(job.data.test)), job.recipe, job.device)
        return cls(job.data.train, job.split.held_out, job.recipe, job.device, teacher) if job.split.held_out else None

    @property
    def by(self) -> Selector:
        """What is measured."""
        if self.dataset.has_flow:
            return "epe3d"
        return "nearest" if self.teacher is None else "teacher_distance"

    def is_due(self, epoch: int) -> bool:
        """Whether the recipe validates after an epoch, counted from 0."""
        options = self.recipe.train
        return is_validation_epoch(epoch, options.epochs, options.validation_calendar, options.validate_every)

    def measure(self, network: BiPointFlowNet, check: Callable[[], None] = lambda: None) -> float:
        """The mean over scenes in metres; several processes share them. check: called after each; may raise."""
        scenes: list[float] = []
        error: BpfnError | None = None
        try:
            own = list(self.indices)[distributed.rank() :: distributed.size()]
            scenes = list((self._errors if self.dataset.has_flow else self._stand_ins)(network, own, check))
        except BpfnError as one:
            error = one
        distributed.raise_any(error)
        # In the order of a single process, since the sum depends on it.
        every = chain.from_iterable(zip_longest(*distributed.gather(scenes)))
        found = [scene for scene in every if scene is not None]
        return sum(found) / len(found)

    def _errors(self, network: BiPointFlowNet, indices: list[int], check: Callable[[], None]) -> Iterator[float]:
        """EPE3D of each scene."""
        if not indices:
            return
        predictors = {MODEL: network_flow(network, self.device)}
        measure = partial(evaluate, points=self.recipe.data.points, seed=self.recipe.seed, indices=indices)
        for scene in measure(predictors, self.dataset, progress=lambda *_: check()).scenes:
            yield scene.metrics[MODEL].epe3d

    def _stand_ins(self, network: BiPointFlowNet, indices: list[int], check: Callable[[], None]) -> Iterator[float]:
        """For each scene, the mean distance to the teacher's flow, or between the moved cloud and the second one."""
        predict = network_flow(network, self.device)
        follow = None if self.teacher is None else network_flow(self.teacher, self.device)
        sampled = {"points": self.recipe.data.points, "batch_size": 1, "seed": self.recipe.seed}
        for batch in evaluation_batches(self.dataset, indices, **sampled):
            flow = predict(batch)
            if follow is not None:
                value = float(torch.linalg.vector_norm(flow - follow(batch), dim=-1).mean())
            else:
                moved = batch.pc1 + flow
                pairs = ((moved, batch.pc2), (batch.pc2, moved))
                value = sum(float(nearest_squares(*pair).sqrt().mean()) for pair in pairs) / 2
            if not math.isfinite(value):
                raise NonFiniteError(f"scene {printable(batch.names[0])}: the flow is NaN or infinite")
            yield value
            check()
