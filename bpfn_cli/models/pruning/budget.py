# SPDX-License-Identifier: MIT
"""Sizes that meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from bpfn_cli.errors import UsageError
from bpfn_cli.models import cost
from bpfn_cli.models.pruning.sensitivity import Sensitivity
from bpfn_cli.models.pruning.sizes import Size, sizes_of
from bpfn_cli.models.variants import Variant

TOLERANCE = 0.02  # of the budget; a network is never above it

FIRST_PARTS = 8  # a first step cuts one of so many parts of a size
LEAST_ADDED_M = 1e-6  # smaller additions are noise

CostOf = Callable[[Variant], float]
CostKind = Literal["macs", "parameters"]


def smallest(teacher: Variant) -> Variant:
    """The network with all sizes at their least."""
    for size in sizes_of(teacher):
        teacher = size.change(teacher, size.least)
    return teacher


def cost_function(kind: CostKind, points: int) -> CostOf:
    """What a budget counts: MACs of one pair of `points` points, or parameters."""

    def counted(variant: Variant) -> float:
        found: int = getattr(cost.cost_of(variant, points), kind)
        return found

    return counted


def check_budget(teacher: Variant, cost_of: CostOf, budget: float, name: str = "budget") -> None:
    """Args: name: of the budget, for errors. Raises: UsageError: no network meets the budget, or the teacher does."""
    whole, least = cost_of(teacher), cost_of(smallest(teacher))
    if whole <= budget:
        raise UsageError(f"{name}: the network costs {whole:,.0f}, within {budget:,.0f}: nothing to cut")
    if least > budget:
        problem = f"the smallest network that can be cut from it costs {least:,.0f}, above {budget:,.0f}"
        raise UsageError(f"{name}: {problem}; raise the budget to at least that")


def fit_budget(teacher: Variant, sensitivities: Mapping[Size, Sensitivity], cost_of: CostOf, budget: float) -> Variant:
    """Cut, step by step, what saves most for the error it adds, until the network costs no more than the budget.

    Steps are eighths of the teacher's size, and smaller ones near the end. Errors are taken to add up.
    Raises: UsageError: the smallest network costs more, or the teacher no more.
    """
    check_budget(teacher, cost_of, budget)
    variant, parts = teacher, FIRST_PARTS
    most = max(size.most for size in sensitivities)
    while (now := cost_of(variant)) > budget:
        cuts = [_Cut.of(variant, now, size, parts, cost_of, known) for size, known in sensitivities.items()]
        cuts = [cut for cut in cuts if cut.saved > 0]
        if close := [cut for cut in cuts if cut.left >= budget * (1 - TOLERANCE)]:
            variant = max(close, key=lambda cut: cut.saved / max(cut.added_m, LEAST_ADDED_M)).variant
        elif parts < most:
            parts *= 4
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
    def of(
        cls, variant: Variant, cost: float, size: Size, parts: int, cost_of: CostOf, sensitivity: Sensitivity
    ) -> _Cut:
        """cost: of `variant`."""
        now = size.of(variant)
        step = max(size.step, size.most // parts // size.step * size.step)
        value = max(size.least, now - step)
        smaller = size.change(variant, value)
        left = cost_of(smaller)
        return cls(smaller, left, cost - left, sensitivity.at(value) - sensitivity.at(now))
