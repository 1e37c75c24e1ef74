# SPDX-License-Identifier: MIT
"""The smallest network, and scenes in memory, for tests of what predicts, measures and trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scene_folders import write_scene

from bpfn_cli.data.datasets import FORMATS, Format, SceneDataset
from bpfn_cli.models import BASELINE, BiPointFlowNet, Variant, build_model, slim
from bpfn_cli.models.pruning.prune import Pruner
from bpfn_cli.models.pruning.sensitivity import Sensitivity
from bpfn_cli.models.pruning.sizes import sizes_of
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA, Scene

TINY = slim(BASELINE, "tiny", width=0.05, c_mid=1)
LEAST = TINY.least_points
BIG = slim(BASELINE, "big", width=0.1, c_mid=2)  # a teacher


def tiny_network(seed: int = 0, variant: Variant = TINY) -> BiPointFlowNet:
    torch.manual_seed(seed)
    return build_model(variant, LEAST).eval()


@dataclass(frozen=True)
class Scenes:
    """A dataset in memory; each scene is a function of its name."""

    names: tuple[str, ...] = ("0000000", "0000001")
    kind: str = "synthetic"
    split: str = "train"
    points: int = LEAST + 100
    root: Path = Path()
    has_flow: bool = True

    sample = SceneDataset.sample

    @property
    def format(self) -> Format:
        return FORMATS[self.kind]

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Scene:
        generator = np.random.default_rng(list(self.names[index].encode()))
        pc1 = generator.uniform((-5, -2, 2), (5, 3, 30), (self.points, 3)).astype(np.float32)
        flow = generator.normal(0, 0.5, (self.points, 3)).astype(np.float32)
        return Scene(self.names[index], pc1, pc1 + flow, flow, FLYINGTHINGS3D_CAMERA)


def guess_sensitivities(pruner: Pruner, *_: object) -> None:
    """In place of `Pruner.measure`, which slices and runs the network for each size."""
    pruner.sensitivities = {size: Sensitivity(size, {size.least: 0.1}) for size in sizes_of(pruner.teacher.variant)}


class Quiet:
    """Progress that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    @contextlib.contextmanager
    def bar(self, what: str, samples: int | None = None) -> Iterator[Callable[..., None]]:
        self.stages.append(what)
        yield lambda done, total, figures="": None


def write_things(root: Path, train: int = 3, val: int = 1, points: int = LEAST + 30) -> Path:
    """FlyingThings3D: points 20 to 2 m before the camera, on-disk axes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            pc1 = generator.uniform((-5, -2, -20), (5, 3, -2), (points, 3))
            write_scene(root / split / f"{10 * index:07d}", pc1, pc1 + generator.normal(0, 0.5, pc1.shape))
    return root
