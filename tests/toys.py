# SPDX-License-Identifier: MIT
"""Small networks, outputs by hand, and what the tests of losses share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bpfn_cli.losses import Measured, Objective, build_losses
from bpfn_cli.losses.hand import G, S, T  # noqa: F401
from bpfn_cli.losses.objective import option_key
from bpfn_cli.models import BASELINE, BiPointFlowNet, Variant, build_model, slim
from bpfn_cli.structures import FlowBatch, FlowPyramid

TINY = replace(slim(BASELINE, "tiny", width=0.1, c_mid=2), embedding_neighbors=16)
SMALLER = replace(slim(BASELINE, "smaller", width=0.05, c_mid=1), embedding_neighbors=16)
POINTS = TINY.least_points  # 512: half of what 32 neighbors need


def batch_of(size: int = 1, seed: int = 0) -> FlowBatch:
    """Scenes of random points and flows."""
    generator = torch.Generator().manual_seed(seed)
    pc1 = torch.rand(size, POINTS, 3, generator=generator) * 8
    flow = 0.2 * torch.randn(size, POINTS, 3, generator=generator)
    return FlowBatch(pc1, (pc1 + flow).flip(1), flow, tuple(f"scene{i}" for i in range(size)), (None,) * size)


def network(sizes: Variant = TINY, seed: int = 0) -> BiPointFlowNet:
    """With random weights, in evaluation mode; returns the encoder's features too."""
    torch.manual_seed(seed)
    built = build_model(sizes, POINTS).eval()
    built.encoder_features = True
    return built


@cache
def outputs(student: Variant = SMALLER, size: int = 1, seed: int = 0) -> tuple[FlowPyramid, FlowPyramid, FlowBatch]:
    """Outputs of a student and a teacher of `TINY`, and their batch; without gradients, computed once."""
    batch = batch_of(size, seed)
    with torch.no_grad():
        return network(student, 1)(batch.pc1, batch.pc2), network()(batch.pc1, batch.pc2), batch


def toy(flows: list[Tensor], features: list[Tensor] | None = None) -> FlowPyramid:
    """An output by hand; levels below 0 take the first points of the level above."""
    points = {level: flow.shape[1] for level, flow in enumerate(flows)}
    indices = {level: torch.arange(points[level]).expand(len(flows[0]), -1) for level in points if level}
    features = features if features is not None else [flow.clone() for flow in flows]
    output = FlowPyramid(flows, indices, indices, features, features, features, features, pyramid=None)
    return replace(output, encoder_source=features, encoder_target=features)


def points(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor([rows])


TOY_BATCH = FlowBatch(S, S, G, ("a",))


def objective(name: str, student: Variant = SMALLER, teacher: Variant = TINY, **options: Any) -> Objective:
    """One loss with its options."""
    return build_losses([name], student, teacher, {option_key(name): options})


def measure(
    name: str, output: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch, student: Variant = SMALLER, **options: Any
) -> Measured:
    """The raw value of one loss with its options."""
    one = build_losses([name], student, TINY, {option_key(name): options}, has_truth=batch.flow is not None)
    return one.measure(output, teacher, batch)[name]


def value(
    name: str, output: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch, student: Variant = SMALLER, **options: Any
) -> float:
    return float(measure(name, output, teacher, batch, student, **options).value.detach())


def gradient_norm(value: Tensor, model: nn.Module) -> float:
    gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
    return float(torch.stack([g.double().square().sum() for g in gradients if g is not None]).sum().sqrt())
