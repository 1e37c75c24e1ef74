# SPDX-License-Identifier: MIT
"""Scenes to look at, from pairs of clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bpfn_cli.data.clouds.cloud import Cloud
from bpfn_cli.data.clouds.pairs import Clouds
from bpfn_cli.prediction.scenes import scene_of, unique_names


def test_rows_without_a_point_keep_their_place() -> None:
    first = Cloud.of_points(np.float32([[1, 2, 3], [0, 0, 0], [4, 5, 6]]), "a")
    second = Cloud.of_points(np.float32([[0, 0, 0], [1, 2, 4]]), "b")
    truth, known = np.ones((3, 3), np.float32), np.array([True, False, True])
    scene = scene_of(Clouds(first, second, truth, known), "ab", {"net": np.zeros((3, 3))}, "lidar")
    assert np.array_equal(scene.pc1[[0, 2]], first.points[[0, 2]]) and np.isnan(scene.pc1[1]).all()
    assert np.array_equal(scene.pc2, [[1, 2, 4]])
    assert np.array_equal(np.isfinite(scene.errors_m("net")), known)
    assert (scene.name, scene.frame) == ("ab", "lidar")


def test_names_of_networks_are_short_and_distinct(tmp_path: Path) -> None:
    paths = [
        tmp_path / "runs/one/student.safetensors",
        tmp_path / "a/net.safetensors",
        tmp_path / "b/net.safetensors",
        tmp_path / "b/net.safetensors",
    ]
    names = unique_names(paths)
    assert [*names] == ["one", "net", str(paths[3]), f"{paths[3]} (2)"]
    assert [*names.values()] == paths
