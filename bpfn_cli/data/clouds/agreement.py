# SPDX-License-Identifier: MIT
"""Whether two clouds can show one place: their extents, axes and distance."""

from __future__ import annotations

import numpy as np

from bpfn_cli.data.augment import even_rows

MOST_QUERIES = 4096  # rows that are looked at
FAR_M = 5.0  # median distance of two clouds of one scene; vehicles and frame rates as in the training data stay below
FLATTEST = 0.4  # of the other extents: that along the vertical of an outdoor scene
LARGEST_RATIO = 8.0  # of the extents of two clouds of one scene


def extents_m(cloud: np.ndarray) -> np.ndarray:
    """(3,) metres, without the outer tenth of the points."""
    low, high = np.quantile(cloud[even_rows(len(cloud), MOST_QUERIES)], (0.05, 0.95), axis=0)
    return high - low


def disagreement(first: np.ndarray, second: np.ndarray) -> str:
    """Why two clouds of (N, 3) float32 metres cannot be of one scene: units, axes or place; empty if they can."""
    from pykdtree.kdtree import KDTree

    extents = [extents_m(cloud) for cloud in (first, second)]
    longest = [max(float(extent.max()), 1e-9) for extent in extents]
    if max(longest) > LARGEST_RATIO * min(longest):
        across = " and ".join(f"{one:.3g}" for one in longest)
        return f"the clouds extend over {across} m; are they in different units? convert both to metres"
    flat = [_flat_axis(extent) for extent in extents]
    if None not in flat and flat[0] != flat[1]:
        along = " and along ".join("xyz"[axis] for axis in flat if axis is not None)
        return f"the clouds are flat along {along}; are they in different frames? transform both to one"
    distances, _ = KDTree(second).query(first[even_rows(len(first), MOST_QUERIES)])
    apart = float(np.median(distances))
    if apart > FAR_M:
        return f"the clouds are {apart:.3g} m apart; are they of one place, frame and unit?"
    return ""


def _flat_axis(extents: np.ndarray) -> int | None:
    """The axis along which a cloud is much flatter than along the others; None: there is none."""
    axis = int(np.argmin(extents))
    return axis if extents[axis] < FLATTEST * float(np.sort(extents)[1]) else None
