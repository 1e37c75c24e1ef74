# SPDX-License-Identifier: MIT
"""Search for good networks at many budgets: sizes cut from one teacher, measured without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from bpfn_cli.errors import UsageError
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning.budget import TOLERANCE, fit_budget, smallest
from bpfn_cli.models.pruning.sensitivity import Sensitivity, sliced
from bpfn_cli.models.pruning.sizes import Size
from bpfn_cli.models.variants import VARIANTS, Variant, has_sizes_of
from bpfn_cli.rng import keyed_generator

NAMED = ("weightnet8", "weightnet48", "weightnet4", "half")  # variants that a search is compared with
SPREAD = 0.7  # standard deviation of the logarithm of the factors on sensitivities
SMALLEST_SHARE, LARGEST_SHARE = 0.05, 0.85  # of the teacher's MACs; less than that keeps little accuracy


class Measured(Protocol):
    """A network with its MACs, and its EPE3D in metres."""

    @property
    def macs(self) -> int: ...

    @property
    def epe3d_m(self) -> float: ...


M = TypeVar("M", bound=Measured)


def budgets(teacher: Variant, count: int, points: int) -> list[float]:
    """MACs, evenly spaced on a logarithmic scale, from a twentieth to most of the teacher's; at least what the smallest
    network needs."""
    least, whole = cost_of(smallest(teacher), points).macs / (1 - TOLERANCE), cost_of(teacher, points).macs
    return [float(one) for one in np.geomspace(max(least, SMALLEST_SHARE * whole), LARGEST_SHARE * whole, count)]


def named_slices(teacher: BiPointFlowNet) -> list[Variant]:
    """The named variants whose weights are slices of the teacher's; new batch norms change nothing."""
    own, found = teacher.variant, []
    for variant in (VARIANTS[name] for name in NAMED):
        kinds = [(one.separable, one.residual, one.bottleneck, one.reductions) for one in (variant, own)]
        if kinds[0] != kinds[1] or has_sizes_of(variant, own):
            continue
        try:
            sliced(teacher, variant)
        except UsageError:  # wider than the teacher, or without its batch norms
            continue
        found.append(variant)
    return found


def proposal(
    teacher: Variant, sensitivities: Mapping[Size, Sensitivity], target: float, points: int, *key: int
) -> Variant:
    """Sizes for a budget of MACs: those that fit the measured sensitivities, or with a key, randomly changed ones.

    Sensitivities are measured one size at a time, so what they say of many cuts together is uncertain.
    Args: key: seeds of the factors on sensitivities.
    """
    changed = sensitivities
    if key:
        factors = np.exp(SPREAD * keyed_generator("search", *key).normal(size=len(sensitivities)))
        pairs = zip(sensitivities.items(), factors, strict=True)
        changed = {size: one.scaled(float(factor)) for (size, one), factor in pairs}
    return fit_budget(teacher, changed, lambda variant: cost_of(variant, points).macs, target)


def front(candidates: Iterable[M]) -> list[M]:
    """Those for which no other has at most as many MACs and at most the error; fewest MACs first."""
    found: list[M] = []
    for one in sorted(candidates, key=lambda candidate: (candidate.macs, candidate.epe3d_m)):
        if not found or one.epe3d_m < found[-1].epe3d_m:
            found.append(one)
    return found


def best_within(candidates: Sequence[M], macs: float) -> M | None:
    """The one with the smallest error among those with at most so many MACs."""
    return min((one for one in candidates if one.macs <= macs), key=lambda one: one.epe3d_m, default=None)


def chosen(candidates: Sequence[M], count: int, beside: Iterable[float]) -> list[M]:
    """The best for the MACs of each named variant, `beside`, and `count` that are spread over the front."""
    best = front(candidates)
    found = [*spread_out(best, count), *(one for macs in beside if (one := best_within(best, macs)) is not None)]
    return [one for one in best if any(one is other for other in found)]


def spread_out(candidates: Sequence[M], count: int) -> list[M]:
    """At most `count` of a front, with MACs as evenly spaced on a logarithmic scale as there are."""
    if len(candidates) <= count:
        return list(candidates)
    macs = np.log([candidate.macs for candidate in candidates])
    wanted = np.linspace(macs[0], macs[-1], count) if count > 1 else macs[len(macs) // 2 :][:1]
    return [candidates[index] for index in sorted({int(np.abs(macs - one).argmin()) for one in wanted})]
