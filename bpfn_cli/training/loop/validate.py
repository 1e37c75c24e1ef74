# SPDX-License-Identifier: MIT
"""Validation: EPE3D on scenes that nothing is learned from, which chooses the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest

import torch

from bpfn_cli import distributed
from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.errors import BpfnError
from bpfn_cli.metrics.evaluation import MODEL, SceneResult, evaluate, network_flow
from bpfn_cli.metrics.scene_flow import MeanMetrics
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.recipes.schedule import is_validation_epoch
from bpfn_cli.training.job import Job


@dataclass(frozen=True)
class Validator:
    """Measures a network on the scenes `indices` of `dataset`."""

    dataset: SceneDataset
    indices: Sequence[int]
    recipe: Recipe
    device: torch.device

    @classmethod
    def create(cls, job: Job) -> Validator | None:
        """On the held-out training scenes, or on the test split if the recipe selects on it; None: there are none."""
        if job.recipe.train.select_on == "test":
            return cls(job.data.test, range(len(job.data.test)), job.recipe, job.device)
        return cls(job.data.train, job.split.held_out, job.recipe, job.device) if job.split.held_out else None

    def is_due(self, epoch: int) -> bool:
        """Whether the recipe validates after an epoch, counted from 0."""
        options = self.recipe.train
        return is_validation_epoch(epoch, options.epochs, options.validation_calendar, options.validate_every)

    def epe3d(self, network: BiPointFlowNet, check: Callable[[], None] = lambda: None) -> float:
        """EPE3D of a network in metres; several processes share the scenes. check: called after each; may raise."""
        scenes: list[SceneResult] = []
        error: BpfnError | None = None
        try:
            scenes = self._measure(network, list(self.indices)[distributed.rank() :: distributed.size()], check)
        except BpfnError as one:
            error = one
        distributed.raise_any(error)
        mean = MeanMetrics()
        # In the order of a single process, since the sum depends on it.
        for scene in filter(None, chain.from_iterable(zip_longest(*distributed.gather(scenes)))):
            mean.add(scene.metrics[MODEL])
        return mean.result().epe3d

    def _measure(self, network: BiPointFlowNet, indices: list[int], check: Callable[[], None]) -> list[SceneResult]:
        if not indices:
            return []
        predictors = {MODEL: network_flow(network, self.device)}
        measure = partial(evaluate, points=self.recipe.data.points, seed=self.recipe.seed, indices=indices)
        return list(measure(predictors, self.dataset, progress=lambda *_: check()).scenes)
