# SPDX-License-Identifier: MIT
from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from golden_models import random_pair
from tiny_world import BIG, TINY, tiny_network

from bpfn_cli.models import BASELINE
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning import search
from bpfn_cli.models.pruning.budget import smallest
from bpfn_cli.models.pruning.search import best_within, budgets, chosen, front, named_slices, proposal, spread_out
from bpfn_cli.models.pruning.sensitivity import Sensitivity, sliced
from bpfn_cli.models.pruning.sizes import sizes_of


@dataclass(frozen=True)
class Made:
    macs: int
    epe3d_m: float


A, B, C, D = Made(10, 0.5), Made(20, 0.3), Made(40, 0.2), Made(80, 0.1)
WORSE = [Made(20, 0.4), Made(30, 0.3), Made(80, 0.2), Made(90, 0.1)]


def test_front_by_hand() -> None:
    assert front([D, *WORSE, B, A, C]) == [A, B, C, D]
    assert front([]) == []


def test_best_within_macs_by_hand() -> None:
    assert best_within([A, B, C, D], 79) is C
    assert best_within([A, *WORSE], 85) == Made(80, 0.2)
    assert best_within([A], 9) is None


def test_networks_to_train_are_spread_and_match_the_named_variants() -> None:
    assert spread_out([A, B, C, D], 2) == [A, D]
    assert spread_out([A, B, C, D], 9) == [A, B, C, D]
    assert chosen([D, *WORSE, B, A, C], 2, [45, 41, 5]) == [A, C, D]


def test_budgets_reach_from_a_twentieth_to_most_of_the_teacher() -> None:
    whole = cost_of(BASELINE, 8192).macs
    assert budgets(BASELINE, 2, 8192) == pytest.approx([0.05 * whole, 0.85 * whole])
    low, middle, high = budgets(BASELINE, 3, 8192)
    assert middle / low == pytest.approx(high / middle)
    least = cost_of(smallest(TINY), 1024).macs  # above a twentieth of this teacher
    assert budgets(TINY, 2, 1024)[0] == pytest.approx(least / 0.98)


def test_proposals_are_within_the_budget_and_follow_from_their_key() -> None:
    known = {size: Sensitivity(size, {size.least: 0.01 * n}) for n, size in enumerate(sizes_of(BIG), start=1)}
    target = 0.5 * cost_of(BIG, 1024).macs
    keys = [(), *((0, attempt) for attempt in range(1, 6))]
    found, again = ([proposal(BIG, known, target, 1024, *key) for key in keys] for _ in range(2))
    assert found == again
    assert len(set(found)) > 2
    assert all(0.98 * target <= cost_of(one, 1024).macs <= target for one in found)


def test_named_variants_that_are_slices(small_variants: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "NAMED", ("tiny", "big", "declinear", "baseline"))
    assert named_slices(tiny_network(0, BIG)) == [TINY]
    assert named_slices(tiny_network(0, replace(BIG, bn=True))) == []


def test_new_batch_norms_leave_a_slice_as_it_is() -> None:
    teacher = tiny_network(3, BIG)
    pc1, pc2 = (cloud.float() for cloud in random_pair(seed=1))
    with torch.no_grad():
        plain, normed = (sliced(teacher, replace(TINY, bn=bn))(pc1, pc2).flows[0] for bn in (False, True))
    torch.testing.assert_close(normed, plain, rtol=1e-3, atol=1e-3)
