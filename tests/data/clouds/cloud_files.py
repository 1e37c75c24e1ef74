# SPDX-License-Identifier: MIT
"""Files for the tests of clouds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfn_cli.data.clouds import read_cloud
from bpfn_cli.errors import BpfnError, DataError

POINTS = [[1.0, 2.0, 3.0], [-4.0, 5.5, 6.25]]


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def points_of(path: Path, **options: Any) -> list[list[float]]:
    """The rows of a cloud that are all points."""
    cloud = read_cloud(path, **options)
    assert cloud.valid.all()
    assert not cloud.left_out
    return cloud.points.tolist()


def refusal(path: Path, reader: Callable[[Path], Any] = read_cloud, kind: type[BpfnError] = DataError) -> str:
    """The line that refuses a file."""
    with pytest.raises(kind) as caught:
        reader(path)
    assert str(caught.value).isprintable()
    assert path.name in str(caught.value)
    return str(caught.value).replace(str(path.parent), "")  # which may hold the word looked for


def scan(points: int = 2000, seed: int = 0) -> np.ndarray:
    """(N, 3) float32 metres, as a LiDAR sees a street: x forward, y left, z up; flat."""
    generator = np.random.default_rng(seed)
    return (generator.normal(0, (20, 12, 1), (points, 3)) - (0, 0, 0.5)).astype(np.float32)
