# SPDX-License-Identifier: MIT
"""Drawing points from a scene, each draw a function of its key alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from bpfn_cli.structures import Scene


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A random generator that is a function of `key` on every machine and in every process."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def sample_points(scene: Scene, points: int, generator: np.random.Generator) -> Scene:
    """The scene with `points` of each cloud, drawn independently and without replacement (with, where there are fewer).

    What is known of a point of pc1 (flow, valid) stays with it.
    """
    chosen1 = _draw(len(scene.pc1), points, generator)
    chosen2 = _draw(len(scene.pc2), points, generator)
    valid = None if scene.valid is None else scene.valid[chosen1]
    return replace(scene, pc1=scene.pc1[chosen1], pc2=scene.pc2[chosen2], flow=scene.flow[chosen1], valid=valid)


def even_rows(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, evenly spaced: for figures of a scene that need not look at all of it."""
    taken = min(count, most)
    return np.arange(taken) * count // max(taken, 1)


def _draw(count: int, points: int, generator: np.random.Generator) -> np.ndarray:
    if points <= count:
        return generator.choice(count, points, replace=False, shuffle=False)
    return generator.choice(count, points, replace=True)
