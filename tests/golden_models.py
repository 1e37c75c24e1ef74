# SPDX-License-Identifier: MIT
"""Networks with the weights of the golden files, and random clouds to run them on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from bpfn_cli.models import BiPointFlowNet, build_model

GOLDEN = Path(__file__).parent / "golden"


def _golden_weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "golden_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_fill = _golden_weights().fill


def filled_model(
    variant: str,
    points: int = 1024,
    bn: bool | None = None,
    seed: int = 0,
    network: type[BiPointFlowNet] = BiPointFlowNet,
) -> BiPointFlowNet:
    """Build a float64 network in evaluation mode whose weights are a function of their names and shapes."""
    model = build_model(variant, points, bn, network).double()
    weights = _fill(model.state_dict(), seed)
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return model.eval()


def random_pair(points: int = 1024, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clouds (B, N, 3) in float64, the second moved a little; no two distances are equal."""
    generator = torch.Generator().manual_seed(seed)
    pc1 = torch.rand(batch, points, 3, generator=generator, dtype=torch.float64) * 10
    return pc1, pc1.flip(1) + 0.3 + 0.1 * torch.rand(pc1.shape, generator=generator, dtype=torch.float64)


def pair_of_kind(kind: str, points: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    """Clouds (1, N, 3) in float64 as users have them: `random`, `lidar`, `duplicates`, `far`."""
    pc1, pc2 = random_pair(points)
    if kind == "lidar":  # rings of a spinning sensor on rough ground and a wall, dense nearby
        generator = torch.Generator().manual_seed(3)
        ring = torch.arange(points) % 16
        azimuth = torch.arange(points, dtype=torch.float64) * (2 * torch.pi / points)
        depth = (2.0 + 0.4 * ring**1.6) * (1 + 0.02 * torch.rand(points, generator=generator, dtype=torch.float64))
        height = torch.where(ring > 12, 0.3 * ring, -1.7 + 0.0 * ring)
        pc1 = torch.stack([depth * azimuth.cos(), height, depth * azimuth.sin()], dim=-1)[None]
        pc2 = pc1.roll(7, dims=1) + torch.tensor([0.4, 0.01, -0.2])
        pc2 = pc2 + 0.01 * torch.rand(pc2.shape, generator=generator, dtype=torch.float64)
    elif kind == "duplicates":  # a quarter of the points twice
        quarter = points // 4
        pc1 = torch.cat([pc1[:, :-quarter], pc1[:, :quarter]], dim=1)
        pc2 = torch.cat([pc2[:, :-quarter], pc2[:, :quarter]], dim=1)
    elif kind == "far":  # a map frame
        shift = torch.tensor([1000.0, 20.0, -700.0], dtype=torch.float64)
        pc1, pc2 = pc1 + shift, pc2 + shift
    return pc1, pc2
