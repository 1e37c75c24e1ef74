# SPDX-License-Identifier: MIT
"""Point clouds supplied by the user: `.npy`, `.npz`, `.ply`, `.pcd`, `.bin`. Axes and units are those of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import read_npy
from bpfn_cli.data.files.npz import npz_names, read_npz
from bpfn_cli.data.files.pcd import read_pcd
from bpfn_cli.data.files.ply import read_ply
from bpfn_cli.data.files.points import check_points
from bpfn_cli.data.files.regular import read_file
from bpfn_cli.errors import DataError, printable

_CLOUD_NAMES = ("points", "pc", "xyz")


def read_cloud(path: Path) -> np.ndarray:
    """(N, 3) float32 metres, from a file whose ending names its format.

    `.npy`: (N, 3) or more columns, of which the first three are used.
    `.npz`: the same; the only array, or the one named points, pc or xyz.
    `.ply`: vertex properties x, y, z; ascii or binary.
    `.pcd`: fields x, y, z; ascii or binary, not compressed. Points without a measurement (NaN) are dropped.
    `.bin`: KITTI velodyne: float32 x, y, z, intensity.

    Raises: DataError: missing, damaged, unknown ending, or as `check_points`. DiskError: no permission.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{printable(path)}: unknown ending; use one of {', '.join(sorted(_READERS))}")
    return check_points(reader(path), path)


def read_cloud_pair(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """pc1 (N, 3), pc2 (M, 3) and, if the file has it, flow (N, 3): float32 metres, from one `.npz`.

    Raises: DataError: not an `.npz`, pc1 or pc2 missing, flow of another length, or as `check_points`.
    """
    if path.suffix.lower() != ".npz":
        raise DataError(f"{printable(path)}: one file with both clouds must be an .npz with pc1 and pc2")
    names = [name for name in ("pc1", "pc2", "flow") if name in {"pc1", "pc2", *npz_names(path)}]
    arrays = read_npz(path, names)
    pc1 = check_points(_first_three_columns(arrays["pc1"]), path, "pc1")
    pc2 = check_points(_first_three_columns(arrays["pc2"]), path, "pc2")
    if "flow" not in arrays:
        return pc1, pc2, None
    flow = check_points(arrays["flow"], path, "flow")
    if len(flow) != len(pc1):
        raise DataError(f"{printable(path)}: flow has {len(flow)} rows, pc1 {len(pc1)}; one row per point expected")
    return pc1, pc2, flow


def _first_three_columns(array: np.ndarray) -> np.ndarray:
    return array[:, :3] if array.ndim == 2 else array


def _read_npz_cloud(path: Path) -> np.ndarray:
    names = npz_names(path)
    candidates = [name for name in _CLOUD_NAMES if name in names] or (list(names) if len(names) == 1 else [])
    if not candidates:
        found = printable(", ".join(names))[:200] or "nothing"
        raise DataError(
            f"{printable(path)}: holds {found}; one array, or one named {', '.join(_CLOUD_NAMES)}, expected"
        )
    return _first_three_columns(read_npz(path, candidates[:1])[candidates[0]])


def _read_velodyne(path: Path) -> np.ndarray:
    content = read_file(path)
    if len(content) % 16:
        raise DataError(
            f"{printable(path)}: {len(content)} bytes found, a multiple of 16 expected (float32 x, y, z, intensity)"
        )
    return np.frombuffer(content, "<f4").reshape(-1, 4)[:, :3]


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": lambda path: _first_three_columns(read_npy(path)),
    ".npz": _read_npz_cloud,
    ".ply": read_ply,
    ".pcd": read_pcd,
    ".bin": _read_velodyne,
}
