# SPDX-License-Identifier: MIT
"""The closed form of the cost, compared with counts on the network itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bpfn_cli.models import BASELINE, VARIANTS, Variant, slim
from bpfn_cli.models.cost import cost_of
from bpfn_cli.profiling import count_modules

# All widths differ, so that no two of them can be mistaken for each other.
SMALL = slim(
    BASELINE, "odd", width=0.1, c_mid=(1, 2, 3, 4, 5), neighbors={"encoder": 5, "embedding": 7, "estimator": 6}
)
LEVELS = [replace(level, estimator=9 + i, estimator_features=21 + i) for i, level in enumerate(SMALL.levels)]
ODD = replace(SMALL, levels=tuple(LEVELS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "variant", [*VARIANTS.values(), ODD, replace(ODD, bn=True)], ids=lambda one: f"{one.name}-{one.bn}"
)
def test_cost_is_what_the_network_counts(variant: Variant) -> None:
    counted = count_modules(variant, 1024)
    cost = cost_of(variant, 1024)
    assert (cost.parameters, cost.macs) == (counted.parameters.total(), counted.macs.total())


def test_baseline_costs_what_the_report_prints() -> None:
    assert cost_of(BASELINE).parameters == 7_958_604
    assert round(cost_of(BASELINE).macs / 1e9, 2) == 13.36
