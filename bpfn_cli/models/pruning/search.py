# SPDX-License-Identifier: MIT
"""Search for good networks at many budgets: sizes cut from one teacher, measured without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning.budget import TOLERANCE, fit_budget, smallest
from bpfn_cli.models.pruning.sensitivity import Sensitivity
from bpfn_cli.models.pruning.sizes import Size
from bpfn_cli.models.variants import Variant
from bpfn_cli.rng import keyed_generator

SPREAD = 0.7  # standard deviation of the logarithm of the factors on sensitivities
LARGEST_SHARE = 0.85  # of the teacher's MACs


@dataclass(frozen=True)
class Candidate:
    """A network with its MACs and its EPE3D in metres, cut from the teacher and not trained."""

    variant: Variant
    macs: int
    epe3d_m: float


def budgets(teacher: Variant, count: int, points: int) -> list[float]:
    """MACs, evenly spaced on a logarithmic scale, from what the smallest network needs to most of the teacher's."""
    least, most = cost_of(smallest(teacher), points).macs, LARGEST_SHARE * cost_of(teacher, points).macs
    return [float(budget) for budget in np.geomspace(least / (1 - TOLERANCE), most, count)]


def proposals(
    teacher: Variant,
    sensitivities: dict[Size, Sensitivity],
    targets: Sequence[float],
    tries: int,
    points: int,
    seed: int,
) -> Iterator[Variant]:
    """For each budget, the sizes that fit the measured sensitivities, and some that fit randomly changed ones.

    Sensitivities are measured one size at a time, so what they say of many cuts together is uncertain.
    """
    for number, target in enumerate(targets):
        for attempt in range(tries):
            changed = dict(sensitivities)
            if attempt:
                factors = np.exp(SPREAD * keyed_generator("search", seed, number, attempt).normal(size=len(changed)))
                changed = {size: one.scaled(f) for (size, one), f in zip(sensitivities.items(), factors, strict=True)}
            yield fit_budget(teacher, changed, lambda variant: cost_of(variant, points).macs, target)


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those for which no other has at most as many MACs and a smaller error; fewest MACs first."""
    found: list[Candidate] = []
    for one in sorted(candidates, key=lambda candidate: (candidate.macs, candidate.epe3d_m)):
        if not found or one.epe3d_m < found[-1].epe3d_m:
            found.append(one)
    return found


def spread_out(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most `count` of a front, with MACs as evenly spaced on a logarithmic scale as there are."""
    if len(candidates) <= count:
        return list(candidates)
    macs = np.log([candidate.macs for candidate in candidates])
    wanted = np.linspace(macs[0], macs[-1], count)
    return [candidates[index] for index in sorted({int(np.abs(macs - one).argmin()) for one in wanted})]
