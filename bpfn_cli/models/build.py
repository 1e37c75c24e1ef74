# SPDX-License-Identifier: MIT
"""From a name to a network."""

from __future__ import annotations

from dataclasses import replace

from bpfn_cli.errors import UsageError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.variants import Variant, variant_named


def build_model(variant: str | Variant, num_points: int = 8192, bn: bool | None = None) -> BiPointFlowNet:
    """Build a freshly initialized network, in training mode.

    Args:
        variant: a name of `VARIANTS`, or sizes of one's own.
        num_points: points per cloud it is meant for.
        bn: batch norm; None: the variant's own (`half`: on, the others off).
    Raises: UsageError: unknown name, or fewer points than the coarsest level needs.
    """
    sizes = variant_named(variant) if isinstance(variant, str) else variant
    if bn is not None:
        sizes = replace(sizes, bn=bn)
    if num_points < sizes.least_points:
        raise UsageError(f"{num_points} points per cloud: {sizes.name} needs at least {sizes.least_points}")
    return BiPointFlowNet(sizes, num_points)
