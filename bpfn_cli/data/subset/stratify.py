# SPDX-License-Identifier: MIT
"""A choice of scenes whose flow lengths and depths are distributed as those of all scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bpfn_cli.data.sampling import even_rows
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import MAX_DEPTH_M, Scene

DISTANCE = 0.005  # largest gap between the distribution functions at which a choice is good enough
_PROPOSALS_PER_SCENE = 100
_LEAST_PROPOSALS = 20_000
_POINTS = 1000  # of a scene, evenly spaced rows
_FLOW_EDGES_M = np.concatenate([[0], np.geomspace(0.01, 20, 39), [np.inf]])
_DEPTH_EDGES_M = np.concatenate([np.linspace(0, MAX_DEPTH_M, 40), [np.inf]])


def distributions(scene: Scene) -> np.ndarray:
    """(2, 40): the share of a scene's points below each edge of flow length and of depth."""
    rows = even_rows(len(scene.pc1), _POINTS)
    values = np.linalg.norm(scene.flow[rows], axis=1), scene.pc1[rows, 2]
    edges = _FLOW_EDGES_M, _DEPTH_EDGES_M
    counts = [np.histogram(value, edge)[0] for value, edge in zip(values, edges, strict=True)]
    return np.cumsum(counts, axis=1) / len(rows)


def gaps(chosen: np.ndarray, everything: np.ndarray) -> tuple[float, float]:
    """Largest gaps between the mean `distributions` of two sets of scenes (N, 2, 40): of flow lengths, of depths."""
    flow, depth = np.abs(chosen.mean(axis=0) - everything.mean(axis=0)).max(axis=1)
    return float(flow), float(depth)


def choose_alike(scenes: np.ndarray, first: Sequence[int], seed: int) -> list[int]:
    """Sorted indices of as many scenes as `first` has, their distributions within DISTANCE of those of all if possible.

    From `first` on, scenes drawn at random are exchanged for others wherever that brings the distributions nearer;
    a function of its arguments alone.

    Args:
        scenes: (N, 2, 40), `distributions` of each. first: indices of the choice to begin with.
    """
    chosen = np.array(sorted(first))
    others = np.setdiff1d(np.arange(len(scenes)), chosen)
    target, total = scenes.mean(axis=0), scenes[chosen].sum(axis=0)
    distance = float(np.abs(total / len(chosen) - target).max())
    generator = keyed_generator("stratified", seed, len(scenes), len(chosen))
    for _ in range(max(_LEAST_PROPOSALS, _PROPOSALS_PER_SCENE * len(chosen)) if len(others) else 0):
        if distance <= DISTANCE:
            break
        out, into = int(generator.integers(len(chosen))), int(generator.integers(len(others)))
        proposed = total - scenes[chosen[out]] + scenes[others[into]]
        gap = float(np.abs(proposed / len(chosen) - target).max())
        if gap < distance:
            distance, total = gap, proposed
            chosen[out], others[into] = others[into], chosen[out]
    return sorted(chosen.tolist())
