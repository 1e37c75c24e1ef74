# SPDX-License-Identifier: MIT
"""Stills: pictures with colors where they belong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from viewed_scenes import ODD, viewed

from bpfn_cli.viewing.scene import Scene
from bpfn_cli.viewing.still import write_still


def drawn(scene: Scene, path: Path) -> np.ndarray:
    write_still(scene, path, dots_per_inch=60)
    return np.rint(255 * imread(path)[..., :3]).astype(int)


def pixels_of(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((np.abs(picture - color).max(axis=-1) < 12).sum())


def test_still_shows_clouds_and_errors(tmp_path: Path) -> None:
    scene = viewed(2000, 2000)
    exact, off = (drawn(replace(scene, flows={name: scene.flows[name]}), tmp_path / "a.png") for name in scene.flows)
    for color in (0x1F, 0x6F, 0xD6), (0xF0, 0x7D, 0x14):
        assert pixels_of(exact, color) > 20
    none, largest = (0x6A, 0x00, 0xA8), (0xFC, 0xCE, 0x25)
    assert pixels_of(exact, none) > 3 * pixels_of(off, none)
    assert pixels_of(off, largest) > 3 * pixels_of(exact, largest)


@pytest.mark.parametrize("case", ODD)
def test_odd_scene_is_drawn(case: str, tmp_path: Path) -> None:
    write_still(ODD[case], tmp_path / "a.png", dots_per_inch=40)
    assert len(np.unique(imread(tmp_path / "a.png"))) > 5


def test_pages_import_no_matplotlib() -> None:
    script = "import sys, bpfn_cli.viewing.page; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
