# SPDX-License-Identifier: MIT
"""Arrays of points: checked, read and written."""

import io
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import read_npy
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import write_atomic

MAX_COORDINATE_M = 1e4  # beyond it float32 is coarser than a millimetre


def read_points(path: Path) -> np.ndarray:
    """(N, 3) float32 metres from a `.npy` file. Raises: as `read_npy` and `check_points`."""
    return check_points(read_npy(path), path)


def check_points(points: np.ndarray, path: Path, what: str = "points") -> np.ndarray:
    """`points` as (N, 3) float32 in C order; errors name `path` and `what`.

    Raises: DataError: not (N, 3) of float, empty, not finite, or a coordinate beyond `MAX_COORDINATE_M`.
    """
    name = f"{printable(path)}: {what}"
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind != "f":
        raise DataError(f"{name}: {points.dtype} of shape {points.shape} found, float32 of shape (N, 3) expected")
    if len(points) == 0:
        raise DataError(f"{name}: empty, at least one row expected")
    if not np.abs(points).max() <= MAX_COORDINATE_M:  # also for NaN; what follows is slower
        _refuse_rows(np.isfinite(points).all(axis=1), name, "hold NaN or infinity", "drop them")
        near = (np.abs(points) <= MAX_COORDINATE_M).all(axis=1)
        _refuse_rows(near, name, f"are beyond {MAX_COORDINATE_M:.0f} m", "subtract an origin near the sensor")
    return np.ascontiguousarray(points, dtype=np.float32)


def _refuse_rows(good: np.ndarray, name: str, fault: str, advice: str) -> None:
    if not good.all():
        bad, first = int((~good).sum()), int(np.argmin(good))
        raise DataError(f"{name}: {bad} of {len(good)} rows {fault}, the first is row {first}; {advice}")


def write_points(path: Path, points: np.ndarray) -> None:
    """Write (N, 3) metres as a float32 `.npy` file, atomically. Raises: as `check_points` and `files.write_atomic`."""
    buffer = io.BytesIO()
    np.save(buffer, check_points(points, path), allow_pickle=False)
    write_atomic(path, buffer.getvalue())
