# SPDX-License-Identifier: MIT
"""The ground: found where there is one, level or slightly tilted, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bpfn_cli.data.ground import ground_rows
from bpfn_cli.frames import axes_of

CHANCE = np.random.default_rng(0)


def road(points: int, slope: float = 0.0) -> np.ndarray:
    x, z = CHANCE.uniform((-20, 2), (20, 40), (points, 2)).T
    return np.stack([x, -1.7 + slope * z + CHANCE.normal(0, 0.03, points), z], axis=1).astype(np.float32)


def cars(points: int) -> np.ndarray:
    return CHANCE.uniform((-20, -1.0, 2), (20, 3, 40), (points, 3)).astype(np.float32)


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.1])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_ground_is_found(slope: float, share: float) -> None:
    count = 5000
    ground = road(round(count * share), slope)
    above = cars(count - len(ground))
    above[:, 1] += slope * above[:, 2] - 0.2  # at least half a metre above the road
    found = ground_rows(np.concatenate([ground, above]))
    assert found is not None
    assert found[: len(ground)].mean() > 0.99
    assert found[len(ground) :].mean() < 0.02


@pytest.mark.parametrize(
    "cloud",
    [
        cars(3000),
        np.concatenate([road(2000) + np.float32([0, 5, 0]), cars(3000)]),  # a roof
        road(3000)[:, [1, 0, 2]],  # a wall
        np.zeros((100, 3), np.float32),
        cars(2),
    ],
    ids=["no plane", "roof", "wall", "one point", "two points"],
)
def test_no_ground_is_found_where_there_is_none(cloud: np.ndarray) -> None:
    assert ground_rows(cloud) is None


def test_cloud_whose_ground_was_cut_off_keeps_its_low_points() -> None:
    hillside = road(6000, slope=0.03) + CHANCE.uniform(0, 2, (6000, 1)).astype(np.float32) * np.float32([0, 1, 0])
    assert ground_rows(hillside[hillside[:, 1] > -1.4]) is None


@pytest.mark.realdata
@pytest.mark.skipif("BPFN_REAL_DATA" not in os.environ, reason="BPFN_REAL_DATA is not set")
def test_ground_of_real_scenes() -> None:
    """Argoverse: only the second cloud has its ground. KITTI: it was cut off."""
    root, axes = Path(os.environ["BPFN_REAL_DATA"]), axes_of("lidar")
    pair = np.load(root / "argoverse2" / "pair.npz")
    found = ground_rows(pair["pc2"] @ axes.T)
    assert found is not None
    assert 0.1 < found.mean() < 0.25
    assert ground_rows(pair["pc1"] @ axes.T) is None
    for scene in sorted((root / "kitti_s").iterdir())[:30]:
        assert ground_rows(np.load(scene / "pc1.npy")) is None, scene.name


def test_ground_is_a_function_of_the_cloud() -> None:
    cloud = np.concatenate([road(2000), cars(2000)])
    first, second = ground_rows(cloud), ground_rows(cloud.copy())
    assert first is not None and second is not None
    assert np.array_equal(first, second)
