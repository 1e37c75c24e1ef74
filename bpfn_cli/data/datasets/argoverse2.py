# SPDX-License-Identifier: MIT
"""LiDAR logs with scene flow in HDF5, as OpenSceneFlow prepares Argoverse 2: for evaluation.

A file is a log. It has a group for each sweep, named by its time: `lidar` (N, 3 or more) in the frame of the vehicle
(x forward, y left, z up), `ground_mask` (N), and, but for the last sweep, `flow` (N, 3) to the next sweep, the motion
of the vehicle included, with `flow_is_valid` (N). A scene is a sweep and the next one, without ground, within 35 m.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.datasets.scenes import NamedScenes
from bpfn_cli.data.files.npy import check_points, open_regular
from bpfn_cli.errors import DataError, DiskError, UsageError, printable
from bpfn_cli.structures import MAX_DEPTH_M, Scene

LOG_KIND = "argoverse2"
ENDINGS = (".h5", ".hdf5")
_MOST_BYTES = 1 << 40
_MOST_POINTS = 1 << 22
_AXES = [1, 2, 0]  # to x left, y up, z forward


@dataclass(frozen=True)
class LogScenes(NamedScenes):
    """Pairs of sweeps of LiDAR logs, a `SceneDataset`.

    Attributes:
        names: "log/time", sorted. pairs: the file and the two sweeps of each.
    """

    pairs: tuple[tuple[Path, str, str], ...]

    def load(self, index: int) -> Scene:
        """See `SceneDataset`. Rows of pc1 and pc2 do not correspond."""
        path, first, second = self.pairs[index]
        with _opened(path) as file:
            pc1, keep1 = _sweep(path, file[first])
            pc2, keep2 = _sweep(path, file[second])
            flow = check_points(_array(path, file[first], "flow"), path, f"{first}/flow")
            valid = _mask(path, file[first], "flow_is_valid", len(pc1), missing=True)
        if len(flow) != len(pc1):
            raise DataError(f"{printable(path)}: {first}: {len(pc1)} points and {len(flow)} flows")
        if not (keep1 & valid).any() or not keep2.any():
            raise DataError(f"{printable(path)}: {first}: no point with a known flow within {MAX_DEPTH_M:g} m")
        pc1, pc2, flow = (np.ascontiguousarray(x[:, _AXES]) for x in (pc1[keep1], pc2[keep2], flow[keep1]))
        return Scene(self.names[index], pc1, pc2, flow, valid=valid[keep1])


def open_logs(root: Path, files: tuple[Path, ...], split: str) -> LogScenes:
    """The pairs of sweeps with a flow in these files. Raises: DataError: damaged. UsageError: h5py is missing."""
    names, pairs = [], []
    for path in files:
        with _opened(path) as file:
            times = sorted(file.keys(), key=lambda time: (len(time), time))
            for first, second in pairwise(times):
                if hasattr(file[first], "keys") and "flow" in file[first] and "lidar" in file[second]:
                    names.append(f"{path.stem}/{first}")
                    pairs.append((path, first, second))
    return LogScenes(LOG_KIND, root, split, tuple(names), tuple(pairs))


def _sweep(path: Path, group: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points, and which of them are no ground and near."""
    lidar = _array(path, group, "lidar")
    points = check_points((lidar[:, :3] if lidar.ndim == 2 else lidar).astype(np.float32), path, f"{group.name}/lidar")
    distance = np.hypot(points[:, 0], points[:, 1])
    ground = _mask(path, group, "ground_mask", len(points), missing=False)
    return points, ~ground & (distance < MAX_DEPTH_M)


def _mask(path: Path, group: Any, name: str, count: int, missing: bool) -> np.ndarray:
    if name not in group:
        return np.full(count, missing)
    mask = _array(path, group, name)
    if mask.shape != (count,):
        raise DataError(f"{printable(path)}: {group.name}/{name}: {mask.shape} found, ({count},) expected")
    return mask.astype(bool)


def _array(path: Path, group: Any, name: str) -> np.ndarray:
    where = f"{printable(path)}: {printable(group.name)}/{name}"
    if name not in group or not hasattr(group[name], "shape"):
        raise DataError(f"{where}: missing; fetch the log again")
    data = group[name]
    if len(data.shape) not in (1, 2) or not 0 < data.shape[0] <= _MOST_POINTS or data.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: {data.dtype} of shape {data.shape} found, numbers of up to {_MOST_POINTS} points expected"
        )
    return np.asarray(data[()])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise UsageError(f"{printable(path)}: reading HDF5 needs h5py: pip install h5py") from error
    with open_regular(path, _MOST_BYTES):
        pass  # refuses what is no regular file
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, PermissionError):
            raise DiskError(f"{printable(path)}: no permission; change its mode") from error
        raise DataError(f"{printable(path)}: not an HDF5 log, or a damaged one; fetch it again") from error
