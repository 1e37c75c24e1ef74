# SPDX-License-Identifier: MIT
"""The smallest network, and scenes in memory, for tests of what predicts, measures and trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bpfn_cli.models import BASELINE, BiPointFlowNet, Variant, build_model, slim
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA, Scene

TINY = slim(BASELINE, "tiny", width=0.05, c_mid=1)
LEAST = TINY.least_points


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

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Scene:
        generator = np.random.default_rng(list(self.names[index].encode()))
        pc1 = generator.uniform((-5, -2, 2), (5, 3, 30), (self.points, 3)).astype(np.float32)
        flow = generator.normal(0, 0.5, (self.points, 3)).astype(np.float32)
        return Scene(self.names[index], pc1, pc1 + flow, flow, FLYINGTHINGS3D_CAMERA)
