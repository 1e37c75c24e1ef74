# SPDX-License-Identifier: MIT
"""Steps of a history from networks."""

from __future__ import annotations

from bpfn_cli.choices import PUBLISHED_POINTS, Storage
from bpfn_cli.history import Step
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.checkpoint import checkpoint_bytes
from bpfn_cli.models.cost import cost_of


def step_of(
    step: str,
    model: BiPointFlowNet,
    points: int | None = None,
    storage: Storage = "float32",
    *,
    epe3d_m: float | None = None,
    on: str | None = None,
    moved_m: float | None = None,
    sha256: str | None = None,
) -> Step:
    """A step that ends with this network, stored with these bits. points: for the MACs; None: 8192."""
    points = points or PUBLISHED_POINTS
    cost, size = cost_of(model.variant, points), len(checkpoint_bytes(model, {}, storage=storage))
    sizes = {"parameters": cost.parameters, "macs": cost.macs, "points": points, "bytes": size}
    found = {"epe3d_m": epe3d_m, "on": on, "moved_m": moved_m, "sha256": sha256}
    return Step.model_validate({"step": step, "network": model.variant.name, **sizes, **found})
