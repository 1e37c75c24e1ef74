# SPDX-License-Identifier: MIT
"""Stills: pictures with colors where they belong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from viewed_scenes import ODD, viewed

from bpfn_cli.viewing.still import write_still


def test_still_shows_clouds_flow_and_error(tmp_path: Path) -> None:
    write_still(viewed(2000, 2000), tmp_path / "a.png", dots_per_inch=60)
    picture = np.rint(255 * imread(tmp_path / "a.png")[..., :3]).astype(int)
    for color in ((0x1F, 0x6F, 0xD6), (0xF0, 0x7D, 0x14), (0x6A, 0, 0xA8)):  # both clouds; no error
        assert (np.abs(picture - color).max(axis=-1) < 12).sum() > 20, color
    write_still(viewed(2000, 2000, flows={}, truth=None), tmp_path / "b.png", dots_per_inch=60)
    assert imread(tmp_path / "b.png").shape[1] < picture.shape[1]


@pytest.mark.parametrize("case", ODD)
def test_odd_scene_is_drawn(case: str, tmp_path: Path) -> None:
    write_still(ODD[case], tmp_path / "a.png", dots_per_inch=40)
    assert len(np.unique(imread(tmp_path / "a.png"))) > 5


def test_pages_import_no_matplotlib() -> None:
    script = "import sys, bpfn_cli.viewing.page; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
