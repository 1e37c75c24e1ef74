# SPDX-License-Identifier: MIT
"""What is measured: a network, a batch of rendered scenes, and one pass over it."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.data.synthetic.render import ENOUGH, render_scene
from bpfn_cli.errors import UsageError
from bpfn_cli.losses.supervised import supervised_loss
from bpfn_cli.models import BiPointFlowNet, Variant, build_model
from bpfn_cli.models.reference import ReferenceNetwork
from bpfn_cli.models.stages import stage
from bpfn_cli.ops import matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.structures import MAX_DEPTH_M, FlowBatch

MOST_POINTS = 2**19  # the largest image that is rendered has at least as many


@dataclass(frozen=True)
class Case:
    """One configuration to measure.

    Attributes:
        points: per cloud. batch: pairs of clouds. device: a torch device name.
        training: forward, supervised loss and backward in training mode; else forward only, without gradients.
        precision: of the fast path; the plain one is always float32.
    Raises: UsageError: points or batch out of range.
    """

    variant: Variant
    points: int = PUBLISHED_POINTS
    batch: int = 1
    device: str = "cpu"
    training: bool = False
    precision: Precision = Precision.float32

    def __post_init__(self) -> None:
        """Check the numbers."""
        least = self.variant.least_points
        if not least <= self.points <= MOST_POINTS:
            raise UsageError(f"--points {self.points}: for {self.variant.name}, use {least} to {MOST_POINTS}")
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: use 1 or more")

    def __str__(self) -> str:
        suffix = "" if self.precision is Precision.float32 else f", {self.precision.value}"
        return f"{self.variant.name}, {self.points} points, batch {self.batch}, {self.device}{suffix}"


class Workload:
    """The network of a case, with random weights (the time does not depend on them), and its clouds.

    Args: plain: the network is `ReferenceNetwork`.
    """

    def __init__(self, case: Case, *, plain: bool = False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = ReferenceNetwork if plain else BiPointFlowNet
            self.model = build_model(case.variant, case.points, network=network)
        self.model.to(case.device).train(case.training)
        self.batch = synthetic_batch(case.points, case.batch).to(case.device)
        self._precision = Precision.float32 if plain else case.precision

    def run(self) -> None:
        """Run one pass over the batch."""
        with matrix_precision(self._precision), torch.set_grad_enabled(self.model.training):
            if not self.model.training:
                self.model(self.batch.pc1, self.batch.pc2)
                return
            self.model.zero_grad(set_to_none=True)
            loss = supervised_loss(self.model(self.batch.pc1, self.batch.pc2), self.batch)
            with stage("backward"):
                loss.backward()


def synthetic_batch(points: int, batch: int) -> FlowBatch:
    """Scenes as `bpfn synth --style rooms` renders them, with enough pixels for `points`; the same in every call."""
    height = math.ceil(math.sqrt(points / ENOUGH * 9 / 16)) + 1
    scenes = [_sampled(*render_scene(0, index, "val", max(height, 27)), points, seed=index) for index in range(batch)]
    pc1, pc2, flow = (torch.from_numpy(np.stack(parts)) for parts in zip(*scenes, strict=True))
    return FlowBatch(pc1, pc2, flow, names=tuple(map(str, range(batch))))


def _sampled(pc1: np.ndarray, pc2: np.ndarray, points: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inside = np.maximum(pc1[:, 2], pc2[:, 2]) < MAX_DEPTH_M
    pc1, flow, pc2 = pc1[inside], (pc2 - pc1)[inside], pc2[inside]
    generator = np.random.default_rng(seed)
    rows1, rows2 = (generator.choice(len(pc1), points, replace=False) for _ in range(2))
    return pc1[rows1], pc2[rows2], flow[rows1]
