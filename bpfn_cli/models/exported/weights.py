# SPDX-License-Identifier: MIT
"""Weights alone: our safetensors files, and state dicts with the names of the published network."""

from __future__ import annotations

from pathlib import Path

from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.checkpoint import (
    PUBLISHED_SUFFIX,
    SUFFIX,
    build_from,
    checkpoint_bytes,
    follows_from_shapes,
    parse_checkpoint,
    published_bytes,
)
from bpfn_cli.models.exported.base import Format, Request, Runner, stored_as


class _Weights(Format):
    def read(self, content: bytes, name: str) -> Runner:
        """The network in a file, as bpfn computes it."""
        model = build_from(parse_checkpoint(content, Path(name).with_suffix(self.suffix)))
        return lambda pc1, pc2: model(pc1, pc2).flows[0]


class Safetensors(_Weights):
    """The checkpoints of bpfn."""

    name = "safetensors"
    suffix = SUFFIX
    title = "weights of bpfn"
    stores = (*Format.stores, "int8")

    def write(self, model: BiPointFlowNet, request: Request) -> bytes:
        """As `save_checkpoint`."""
        if request.stored == "int8":
            return checkpoint_bytes(model, request.metadata, storage="int8")
        return checkpoint_bytes(stored_as(model, request.stored), request.metadata)


class Published(_Weights):
    """State dicts for the code of the published network."""

    name = "pth"
    suffix = PUBLISHED_SUFFIX
    title = "weights of the published code"

    def can_hold(self, model: BiPointFlowNet) -> bool:
        """Whether all sizes follow from the shapes of the tensors."""
        return follows_from_shapes(model)

    def write(self, model: BiPointFlowNet, request: Request) -> bytes:
        """As `save_published`."""
        return published_bytes(stored_as(model, request.stored), f"--format {self.name}")
