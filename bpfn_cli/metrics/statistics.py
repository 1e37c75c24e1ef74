# SPDX-License-Identifier: MIT
"""Statistics of paired runs: is one training method better than another?

Pairs share seed, scenes and points. With k pairs, a two-sided sign-flip test gives no p below 2 / 2^k: 0.05 needs six.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np

TAIL = (1 - 0.95) / 2  # on each side of a 95 % interval
SIGNIFICANCE = 0.05
FEWEST = 3  # pairs for an interval
RESAMPLES = 10_000
MOST_EXACT = 12  # pairs for which all sign flips are tried
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Paired:
    """Statistics of the differences between a method and its reference, in the unit of the differences.

    Attributes: pairs: their number. deviation: sample standard deviation; None with one pair. low, high: 95 % BCa
        bootstrap interval of the mean; None with fewer than 3 pairs. p: two-sided sign-flip p; None: too few pairs.
    """

    mean: float
    pairs: int
    deviation: float | None
    low: float | None
    high: float | None
    p: float | None


def paired(differences: Sequence[float]) -> Paired:
    """Statistics of the differences of pairs. Raises: ValueError: there are none."""
    values = np.asarray(differences, float)
    if not len(values):
        raise ValueError("no pair to compare")
    low, high = bca_interval(values) if len(values) >= FEWEST else (None, None)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    p = sign_flip_p(values) if 2 / 2 ** len(values) <= SIGNIFICANCE else None
    return Paired(float(values.mean()), len(values), deviation, low, high, p)


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Share of random sign flips that give a mean at least as far from 0 (two-sided p); exact for up to 12 pairs.

    Source: Fisher, The Design of Experiments, 1935.
    """
    values = np.asarray(differences, float)
    if len(values) <= MOST_EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    else:
        drawn = np.random.default_rng(0).integers(0, 2, (RESAMPLES, len(values))) * 2.0 - 1
        signs = np.vstack([np.ones(len(values)), drawn])
    means = np.abs(signs @ values)
    return float((means >= means[0] * (1 - 1e-12)).mean())


def bca_interval(values: np.ndarray) -> tuple[float, float]:
    """Bias-corrected and accelerated (BCa) bootstrap interval of the mean.

    Uses all resamples if there are at most 50,000 (up to 6 values), else 10,000 random ones with a fixed seed.
    Source: Efron, Better Bootstrap Confidence Intervals, JASA 1987.
    """
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    count = len(values)
    if count**count <= 50_000:
        chosen = np.array(list(product(range(count), repeat=count)))
    else:
        chosen = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    means = np.sort(values[chosen].mean(axis=1))
    mean = values.mean()
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(below, 1e-6), 1 - 1e-6))
    without = (values.sum() - values) / (count - 1)
    apart = without.mean() - without
    acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)

    def at(share: float) -> float:
        z = bias + _NORMAL.inv_cdf(share)
        return float(np.quantile(means, _NORMAL.cdf(bias + z / (1 - acceleration * z))))

    return at(TAIL), at(1 - TAIL)


def hierarchical_interval(
    differences: np.ndarray, groups: Sequence[object], weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, resampling both seeds and scenes 2,000 times with a fixed seed.

    Args: differences: (seeds, scenes). groups: one per scene; frames of a sequence are resampled together.
        weights: if the differences are sums, the number of points of each scene, one positive at least; the mean is
        then over points. None: 1.
    """
    draws = np.random.default_rng(0)
    names = dict.fromkeys(groups)
    members = [np.flatnonzero([group == name for group in groups]) for name in names]
    sums = np.stack([differences[:, rows].sum(axis=1) for rows in members], axis=1)  # (seeds, groups)
    counts = np.ones(len(groups)) if weights is None else np.asarray(weights, float)
    sizes = np.array([counts[rows].sum() for rows in members])
    seeds = len(differences)
    means = []
    for _ in range(2000):
        chosen, rows = draws.integers(0, len(names), len(names)), draws.integers(0, seeds, seeds)
        if size := sizes[chosen].sum():  # a draw may have no point
            means.append(sums[np.ix_(rows, chosen)].sum() / (seeds * size))
    return float(np.quantile(means, TAIL)), float(np.quantile(means, 1 - TAIL))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for multiple tests. Source: Holm, Scandinavian Journal of Statistics 6, 1979."""
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return corrected.tolist()


def pairs_needed(deviation: float, difference: float) -> int:
    """Number of pairs for 80 % power at p 0.05: (2.8 sigma / delta)^2 + 2."""
    return round((2.8 * deviation / difference) ** 2) + 2


def learning_seconds(epoch_seconds: Sequence[Sequence[float]], prepare_seconds: Sequence[float]) -> float:
    """Training time of a method in seconds, without validation, from runs that differ only in their seed.

    The minimum over runs, of the preparation and of each epoch, is what other work on the machine disturbs least.
    """
    return min(prepare_seconds) + sum(map(min, zip(*epoch_seconds, strict=True)))
