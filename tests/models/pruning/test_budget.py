# SPDX-License-Identifier: MIT
from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfn_cli.errors import UsageError
from bpfn_cli.models import BASELINE, VARIANTS, Variant
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning.budget import TOLERANCE, fit_budget, smallest
from bpfn_cli.models.pruning.sensitivity import Sensitivity
from bpfn_cli.models.pruning.sizes import Size, sizes_of


def macs(variant: Variant) -> float:
    return cost_of(variant, 2048).macs


@settings(max_examples=5, deadline=None)
@given(share=st.floats(0.15, 0.95), worth=st.lists(st.floats(0, 2), min_size=40, max_size=40))
def test_budget_is_met_within_its_tolerance(share: float, worth: list[float]) -> None:
    sizes = sizes_of(BASELINE)
    known = {size: Sensitivity(size, {size.at(0.5): metres}) for size, metres in zip(sizes, worth, strict=False)}
    for cost in (macs, lambda variant: cost_of(variant).parameters):
        budget = share * cost(BASELINE)
        found = cost(fit_budget(BASELINE, known, cost, budget))
        assert budget * (1 - TOLERANCE) <= found <= budget


def test_cheapest_error_is_cut_first_by_hand() -> None:
    """One size costs 1 m at half, the others nearly nothing there: it stays whole."""
    sizes = sizes_of(BASELINE)
    dear = next(size for size in sizes if (size.field, size.level) == ("embedding", 0))
    known = {size: Sensitivity(size, {size.at(0.5): 1.0 if size is dear else 1e-3}) for size in sizes}
    found = fit_budget(BASELINE, known, macs, 0.4 * macs(BASELINE))
    assert dear.of(found) == dear.most
    assert macs(found) <= 0.4 * macs(BASELINE)


@pytest.mark.parametrize("name", ["declinear", "declinear34", "half", "half_bottleneck"])
def test_sizes_of_every_variant_can_be_built(name: str) -> None:
    variant = VARIANTS[name]
    sizes = sizes_of(variant)
    known = {size: Sensitivity(size, {size.at(0.5): 0.1}) for size in sizes}
    found = fit_budget(variant, known, macs, 0.5 * macs(variant))
    assert macs(found) <= 0.5 * macs(variant)
    assert all(size.of(found) % size.step == 0 for size in sizes)


def test_impossible_budgets_name_the_nearest() -> None:
    sizes = sizes_of(BASELINE)
    known = {size: Sensitivity(size, {size.at(0.5): 0.1}) for size in sizes}
    least = macs(smallest(BASELINE))
    with pytest.raises(
        UsageError,
        match=re.escape(f"budget: the smallest network that can be cut from it costs {least:,.0f}, above 1,000,000"),
    ):
        fit_budget(BASELINE, known, macs, 1e6)
    with pytest.raises(UsageError, match="nothing to cut"):
        fit_budget(BASELINE, known, macs, 1e12)


def test_sensitivity_between_and_below_measured_values_by_hand() -> None:
    size = Size("width", 0, most=32, least=4)
    known = Sensitivity(size, {24: 0.1, 16: 0.05, 8: 0.5})  # smaller is never better: 0.1 at 16 too
    assert [known.at(value) for value in (32, 28, 24, 20, 16, 12, 8)] == pytest.approx(
        [0, 0.05, 0.1, 0.1, 0.1, 0.3, 0.5]
    )
    assert known.at(4) == pytest.approx(0.7)


def test_size_at_a_share_by_hand() -> None:
    size = Size("width", 0, most=96, least=8, step=8)
    assert [size.at(share) for share in (1, 0.5, 0.01)] == [96, 48, 8]
