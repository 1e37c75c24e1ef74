# SPDX-License-Identifier: MIT
"""LAS and LAZ need laspy, an extra; without it, the line that installs it is printed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cloud_files import refusal, written

from bpfn_cli.data.clouds import read_cloud
from bpfn_cli.errors import UsageError

ROWS = np.array([[500000.25, 4812345.5, 12.125], [500001.0, 4812346.75, 13.5], [500002.5, 4812347.0, 14.0]])


def las(path: Path) -> Path:
    laspy = pytest.importorskip("laspy", reason="laspy, of the extra io, is not installed")
    pytest.importorskip("lazrs", reason="lazrs, of the extra io, is not installed")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.offsets, header.scales = ROWS.min(axis=0), np.full(3, 1 / 1024)
    made = laspy.LasData(header)
    made.x, made.y, made.z = ROWS.T
    made.write(path)
    return path


@pytest.mark.parametrize("ending", [".las", ".laz", ".LAZ"])
def test_las_is_read_in_double_precision(tmp_path: Path, ending: str) -> None:
    cloud = read_cloud(las(tmp_path / f"a{ending}"))
    assert cloud.points.dtype == np.float64
    assert np.array_equal(cloud.points, ROWS)


@pytest.mark.parametrize("ending", [".las", ".laz"])
def test_damaged_las_is_refused(tmp_path: Path, ending: str) -> None:
    whole = las(tmp_path / f"a{ending}").read_bytes()
    for keep in (0, 3, 100, len(whole) - 30):
        assert "a" + ending in refusal(written(tmp_path, f"a{ending}", whole[:keep]))
    assert "not a LAS or LAZ file" in refusal(written(tmp_path, f"a{ending}", b"nothing of the kind" * 50))


def test_missing_library_is_named_with_its_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "laspy", None)
    said = refusal(written(tmp_path, "a.laz", b"LASF"), kind=UsageError)
    assert said.endswith('a.laz: reading LAS and LAZ needs laspy: pip install -c constraints.txt -e ".[io]"')
