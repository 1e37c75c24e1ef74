# SPDX-License-Identifier: MIT
"""Sampling of points from a scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bpfn_cli.structures import Scene


def sample_points(scene: Scene, points: int, generator: np.random.Generator) -> Scene:
    """Draw `points` points from each cloud, independently; without replacement unless the cloud has fewer.

    Flow and validity stay with the points of pc1.
    """
    chosen1 = _draw(len(scene.pc1), points, generator)
    chosen2 = _draw(len(scene.pc2), points, generator)
    valid = None if scene.valid is None else scene.valid[chosen1]
    return replace(scene, pc1=scene.pc1[chosen1], pc2=scene.pc2[chosen2], flow=scene.flow[chosen1], valid=valid)


def even_rows(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, evenly spaced; for statistics that do not need every point."""
    taken = min(count, most)
    return np.arange(taken) * count // max(taken, 1)


def _draw(count: int, points: int, generator: np.random.Generator) -> np.ndarray:
    if points <= count:
        return generator.choice(count, points, replace=False, shuffle=False)
    return generator.choice(count, points, replace=True)
