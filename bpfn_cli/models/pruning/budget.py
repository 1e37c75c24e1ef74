# SPDX-License-Identifier: MIT
"""Sizes that meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bpfn_cli.errors import UsageError
from bpfn_cli.models.pruning.sensitivity import Sensitivity
from bpfn_cli.models.pruning.sizes import EIGHTHS, Size
from bpfn_cli.models.variants import Variant

TOLERANCE = 0.02  # of the budget; a network is never above it

LEAST_ADDED_M = 1e-6  # smaller additions are noise

CostOf = Callable[[Variant], float]


def smallest(teacher: Variant, sizes: Sequence[Size]) -> Variant:
    """The network with all sizes at their least."""
    for size in sizes:
        teacher = size.change(teacher, size.least)
    return teacher


def fit_budget(
    teacher: Variant, sizes: Sequence[Size], sensitivities: Mapping[Size, Sensitivity], cost_of: CostOf, budget: float
) -> Variant:
    """Cut, step by step, what saves most for the error it adds, until the network costs no more than the budget.

    Steps are eighths of the teacher's size, and single channels near the end. Errors are taken to add up.
    Raises: UsageError: the smallest network costs more, or the teacher no more.
    """
    variant = teacher
    if cost_of(teacher) <= budget:
        raise UsageError(f"the network costs {cost_of(teacher):.4g}, within the budget of {budget:.4g}: nothing to cut")
    if (least := cost_of(smallest(teacher, sizes))) > budget:
        raise UsageError(f"the smallest network that can be cut from it costs {least:.4g}, above {budget:.4g}")
    in_eighths = True
    while cost_of(variant) > budget:
        cuts = [_Cut.of(variant, size, in_eighths, cost_of, sensitivities[size]) for size in sizes]
        cuts = [cut for cut in cuts if cut.saved > 0]
        if close := [cut for cut in cuts if cut.left >= budget * (1 - TOLERANCE)]:
            variant = max(close, key=lambda cut: cut.saved / max(cut.added_m, LEAST_ADDED_M)).variant
        elif in_eighths:
            in_eighths = False
        else:
            variant = max(cuts, key=lambda cut: cut.left).variant
    return variant


@dataclass(frozen=True)
class _Cut:
    """A next step. left, saved: cost after it, and what it saves. added_m: error that it adds."""

    variant: Variant
    left: float
    saved: float
    added_m: float

    @classmethod
    def of(cls, variant: Variant, size: Size, in_eighths: bool, cost_of: CostOf, sensitivity: Sensitivity) -> _Cut:
        now = size.of(variant)
        step = max(size.step, size.most // EIGHTHS // size.step * size.step) if in_eighths else size.step
        value = max(size.least, now - step)
        smaller = size.change(variant, value)
        left = cost_of(smaller)
        return cls(smaller, left, cost_of(variant) - left, sensitivity.at(value) - sensitivity.at(now))
