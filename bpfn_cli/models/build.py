# SPDX-License-Identifier: MIT
"""From a name or sizes to a network."""

import os
from dataclasses import replace

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.errors import UsageError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.reference import ReferenceNetwork
from bpfn_cli.models.variants import Variant, variant_named


def default_network() -> type[BiPointFlowNet]:
    """`BiPointFlowNet`, or `ReferenceNetwork` with `BPFN_PLAIN=1`."""
    return ReferenceNetwork if os.environ.get("BPFN_PLAIN", "") == "1" else BiPointFlowNet


def build_model(
    variant: str | Variant,
    num_points: int = PUBLISHED_POINTS,
    bn: bool | None = None,
    network: type[BiPointFlowNet] | None = None,
) -> BiPointFlowNet:
    """Build a freshly initialized network, in training mode.

    Args:
        variant: a name in `VARIANTS`, or custom sizes. num_points: points per cloud it is meant for.
        bn: batch norm; None: the variant's own (`half`: on, the others off).
        network: the class; None: `default_network()`.
    Raises: UsageError: unknown name, or fewer points than the coarsest level needs.
    """
    sizes = variant_named(variant) if isinstance(variant, str) else variant
    if bn is not None:
        sizes = replace(sizes, bn=bn)
    if num_points < sizes.least_points:
        raise UsageError(f"{num_points} points per cloud: {sizes.name} needs at least {sizes.least_points}")
    return (network or default_network())(sizes, num_points)
