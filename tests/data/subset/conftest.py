# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest
from scene_folders import write_flyingthings3d


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_flyingthings3d(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
