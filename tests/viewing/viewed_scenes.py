# SPDX-License-Identifier: MIT
"""Scenes to look at, also odd ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from bpfn_cli.viewing.scene import Scene

POINTS = 60


def viewed(points: int = POINTS, points2: int = POINTS + 5, name: str = "street", **changes: Any) -> Scene:
    """Two networks and the true flow: a world that comes nearer by 1 m; the second network is off by 0.5 m."""
    rng = np.random.default_rng(0)
    pc1, pc2 = (rng.uniform((-10, -1, 5), (10, 2, 30), (count, 3)).astype(np.float32) for count in (points, points2))
    truth = np.tile(np.float32([0, 0, -1]), (points, 1))
    given = {"pc1": pc1, "pc2": pc2, "flows": {"exact": truth, "off": truth + np.float32([0.5, 0, 0])}, "truth": truth}
    return Scene(name, **{**given, **changes})


def _with_nan() -> Scene:
    scene = viewed()
    flow = scene.flows["exact"].copy()
    flow[::2], pc1 = np.nan, scene.pc1.copy()
    pc1[5] = np.nan
    return viewed(pc1=pc1, flows={"half": flow, "nothing": np.full_like(flow, np.inf)})


ODD = {
    "with NaN": _with_nan(),
    "without truth": viewed(truth=None),
    "with an empty mask": viewed(mask=np.zeros(POINTS, bool)),
    "of one point": viewed(1, 1),
    "with one point in front of many": viewed(1, 500),
    "without flows": viewed(flows={}, truth=None),
    "with true flow alone": viewed(flows={}),
    "with no valid point": viewed(
        1, 1, pc1=np.full((1, 3), np.nan, np.float32), pc2=np.full((1, 3), np.nan, np.float32)
    ),
    "with hostile names": viewed(
        name="</script><script>alert(1)</script>", flows={"<img src=x onerror=alert(2)>$a_": viewed().truth}
    ),
    "with the name of the truth": viewed(flows={"true flow": viewed().truth}),
    "of map coordinates": viewed(pc1=viewed().pc1 + 4e6, pc2=viewed().pc2 + 4e6),
}
