# SPDX-License-Identifier: MIT
"""How representative a subset is of its source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bpfn_cli.data.augment import even_rows
from bpfn_cli.data.subset.manifest import Similarity
from bpfn_cli.data.subset.plan import SubsetPlan
from bpfn_cli.data.subset.select import by_hash

SAMPLED_SCENES = 100
SAMPLED_POINTS = 1000
_SAMPLE_KEY = "likeness"  # another key would measure other scenes, and so change `subset.json`


def measure_similarity(plan: SubsetPlan) -> Similarity:
    """Compare samples of source and subset, drawn by a hash that is unrelated to the choice."""
    samples = [by_hash(scenes["train"], _SAMPLE_KEY)[:SAMPLED_SCENES] for scenes in (plan.chosen, plan.available)]
    (lengths, depths), (all_lengths, all_depths) = (_measure(plan, names) for names in samples)
    return Similarity(
        round(ks_distance(lengths, all_lengths), 6),
        round(ks_distance(depths, all_depths), 6),
        source_scenes=len(samples[1]),
        subset_scenes=len(samples[0]),
        points_per_scene=SAMPLED_POINTS,
    )


def _measure(plan: SubsetPlan, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Flow lengths and depths, metres, of evenly spaced rows of each scene."""
    dataset = plan.dataset("train", names)
    lengths, depths = [], []
    for scene in map(dataset.load, range(len(names))):
        rows = even_rows(len(scene.pc1), SAMPLED_POINTS)
        lengths.append(np.sqrt((scene.flow[rows] ** 2).sum(axis=1)))
        depths.append(scene.pc1[rows, 2])
    return np.concatenate(lengths), np.concatenate(depths)


def ks_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest gap between their distribution functions, 0 to 1."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())
