# SPDX-License-Identifier: MIT
"""The network, its variants, its checkpoints."""

from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.build import build_model
from bpfn_cli.models.checkpoint import (
    Checkpoint,
    build_from,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    save_published,
)
from bpfn_cli.models.exported import export
from bpfn_cli.models.pruning.prune import prune
from bpfn_cli.models.sizes import find_variant
from bpfn_cli.models.slicing import initialize_from
from bpfn_cli.models.variants import BASELINE, VARIANTS, Level, Separable, Variant, slim, variant_named

__all__ = [
    "BASELINE",
    "VARIANTS",
    "BiPointFlowNet",
    "Checkpoint",
    "Level",
    "Separable",
    "Variant",
    "build_from",
    "build_model",
    "export",
    "find_variant",
    "initialize_from",
    "load_checkpoint",
    "prune",
    "read_checkpoint",
    "save_checkpoint",
    "save_published",
    "slim",
    "variant_named",
]
