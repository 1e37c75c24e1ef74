# SPDX-License-Identifier: MIT
"""Statistics by hand, and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from bpfn_cli.metrics.statistics import (
    bca_interval,
    hierarchical_interval,
    holm,
    learning_seconds,
    paired,
    pairs_needed,
    sign_flip_p,
)

SIX = np.array([-0.004, -0.002, -0.007, 0.001, -0.003, -0.005])


@pytest.mark.parametrize(("pairs", "least"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_smallest_p_of_k_pairs_is_two_over_two_to_the_k(pairs: int, least: float) -> None:
    assert sign_flip_p(np.linspace(1, 2, pairs)) == least


def test_sign_flip_by_hand() -> None:
    # Sums of (3, 1) over signs: 4, 2, -2, -4: |.| >= 4 in 2 of 4; of (3, -1): 2 or more in all 4.
    assert sign_flip_p([3.0, 1.0]) == 0.5
    assert sign_flip_p([3.0, -1.0]) == 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_sign_flip_equals_scipy() -> None:
    found = scipy.stats.permutation_test(
        (SIX,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(SIX) == pytest.approx(found.pvalue)


def test_sampled_sign_flips_are_close_to_the_exact_p() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 13)
    exact = np.abs(np.array(np.meshgrid(*[[1, -1]] * 13)).reshape(13, -1).T @ values) >= abs(values.sum()) - 1e-12
    assert sign_flip_p(values) == pytest.approx(exact.mean(), abs=0.015)


def test_interval_equals_scipy() -> None:
    found = scipy.stats.bootstrap((SIX,), np.mean, method="BCa", n_resamples=100_000, rng=0).confidence_interval
    low, high = bca_interval(SIX)
    assert low == pytest.approx(found.low, abs=2e-4)
    assert high == pytest.approx(found.high, abs=2e-4)


def test_interval_of_equal_or_few_values() -> None:
    assert bca_interval(np.array([0.3, 0.3, 0.3])) == (0.3, 0.3)
    low, high = bca_interval(np.array([-0.01, 0.0, 0.03]))
    assert -0.01 <= low < 0.02 / 3 < high <= 0.03


def test_paired_leaves_out_what_few_pairs_cannot_give() -> None:
    three = paired([0.1, 0.2, 0.3])
    assert (three.mean, three.pairs, three.p) == (pytest.approx(0.2), 3, None)
    assert three.deviation == pytest.approx(0.1)
    assert three.low is not None
    one = paired([0.1])
    assert (one.deviation, one.low, one.high, one.p) == (None, None, None, None)
    assert paired(SIX).p == 0.0625
    with pytest.raises(ValueError, match="no pair"):
        paired([])


def test_holm_by_hand() -> None:
    # Ranked 0.01, 0.02, 0.03, 0.9 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.9.
    assert holm([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_and_scenes_widen_the_interval() -> None:
    draws = np.random.default_rng(0)
    differences = draws.normal(0, 0.01, (4, 1)) + draws.normal(0, 0.05, (1, 40)) - 0.02
    low, high = hierarchical_interval(differences, list(range(40)))
    assert low < differences.mean() < high
    alone = bca_interval(differences.mean(axis=1))
    assert high - low > alone[1] - alone[0]
    # Resampling whole sequences gives fewer independent draws, and a wider interval.
    alike = np.repeat(differences[:, :10], 4, axis=1)
    one_by_one = hierarchical_interval(alike, list(range(40)))
    together = hierarchical_interval(alike, [index // 4 for index in range(40)])
    assert together[1] - together[0] > 1.3 * (one_by_one[1] - one_by_one[0])
    assert hierarchical_interval(differences, list(range(40))) == (low, high)


def test_interval_of_sums_is_of_the_mean_over_points() -> None:
    """Two scenes: 1 m in all over one point, and 0 over three; a third has no point."""
    sums, points = np.array([[1.0, 0, 0]]), [1, 3, 0]
    assert hierarchical_interval(sums, ["a", "b", "c"], points) == (0, 1)
    assert hierarchical_interval(sums, ["a", "a", "a"], points) == (0.25, 0.25)


def test_pairs_needed_by_hand() -> None:
    assert pairs_needed(0.0008, 0.001) == 7  # (2.8 * 0.8)^2 = 5.02, and two more


def test_learning_seconds_takes_the_shortest_time_of_each_epoch() -> None:
    assert learning_seconds([[1.0, 9.0, 2.0]], [3.0]) == 15
    assert learning_seconds([[1.0, 9.0, 2.0], [7.0, 1.0, 2.5]], [3.0, 0.0]) == 0 + 1 + 1 + 2
