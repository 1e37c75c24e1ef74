# SPDX-License-Identifier: MIT
"""LiDAR logs with scene flow in HDF5, as prepared by OpenSceneFlow from Argoverse 2; for evaluation. Needs h5py.

A file is a log. It has one group per sweep, named by its time: `lidar` (N, 3 or more) in the vehicle frame (x forward,
y left, z up), `ground_mask` (N,) and, except in the last sweep, `flow` (N, 3) to the next sweep, including the motion
of the vehicle, with `flow_is_valid` (N,). A scene is a sweep and the next one, without ground, within 35 m.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.datasets.base import Format, SceneDataset, SceneNames
from bpfn_cli.data.datasets.folders import visible_files
from bpfn_cli.data.files.points import check_points
from bpfn_cli.errors import DataError, DiskError, UsageError, printable
from bpfn_cli.files import open_regular
from bpfn_cli.structures import MAX_DEPTH_M, Scene

_ENDINGS = (".h5", ".hdf5")
_AXES = [1, 2, 0]  # to x left, y up, z forward
_MAX_FILE_BYTES = 1 << 40
_MAX_ROWS = 1 << 22


class Argoverse2(Format):
    """`LOG.h5` files; needs h5py."""

    name = "argoverse2"
    frame = "lidar"
    title = "Argoverse 2"
    layout = ".h5 logs"
    splits = ("test", "all")

    def recognizes(self, root: Path) -> bool:
        return any(path.suffix in _ENDINGS and path.is_file() for path in root.iterdir())

    def list_scenes(self, root: Path) -> SceneNames:
        """The logs: their scenes are listed by `open`, which reads them."""
        return {"test": tuple(path.name for path in visible_files(root, _ENDINGS))}

    def file_sizes(self, root: Path, scenes: SceneNames) -> dict[str, int]:
        return {name: (root / name).stat().st_size for name in scenes["test"]}

    def open(self, root: Path, split: str, names: tuple[str, ...]) -> SceneDataset:
        """The sweeps with flow, named "LOG/TIME". Raises: DataError: damaged. UsageError: h5py is missing."""
        scenes = []
        for name in names:
            with _open_log(root / name) as file:
                scenes += [f"{Path(name).stem}/{first}" for first, _ in _pairs(file)]
        return super().open(root, split, tuple(scenes))

    def load(self, root: Path, split: str, name: str) -> Scene:
        log, first = name.split("/")
        path = _log_file(root, log)
        with _open_log(path) as file:
            second = dict(_pairs(file))[first]
            pc1, keep1 = _read_sweep(path, file[first])
            pc2, keep2 = _read_sweep(path, file[second])
            flow = check_points(_read_array(path, file[first], "flow"), path, f"{first}/flow")
            valid = _read_mask(path, file[first], "flow_is_valid", len(pc1), missing=True)
        if len(flow) != len(pc1):
            raise DataError(f"{printable(path)}: {first}: {len(pc1)} points and {len(flow)} flows")
        if not (keep1 & valid).any() or not keep2.any():
            raise DataError(f"{printable(path)}: {first}: no point with known flow within {MAX_DEPTH_M:g} m")
        pc1, pc2, flow = (np.ascontiguousarray(x[:, _AXES]) for x in (pc1[keep1], pc2[keep2], flow[keep1]))
        return Scene(name, pc1, pc2, flow, valid=valid[keep1], kept=keep1)

    def split_sizes(self, root: Path, split: str, names: tuple[str, ...]) -> dict[str, int]:
        logs = {_log_file(root, log) for log in {name.split("/")[0] for name in names}}
        return {log.name: log.stat().st_size for log in logs}


def _log_file(root: Path, log: str) -> Path:
    return next((root / f"{log}{ending}" for ending in _ENDINGS if (root / f"{log}{ending}").exists()), root / log)


@contextmanager
def _open_log(path: Path) -> Iterator[Any]:
    """An open `h5py.File`. Errors of h5py inside the block become a DataError."""
    try:
        import h5py
    except ImportError as error:
        raise UsageError(f"{printable(path)}: reading HDF5 needs h5py: pip install h5py") from error
    with open_regular(path, _MAX_FILE_BYTES):
        pass  # refuses anything but a regular file
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, PermissionError):
            raise DiskError(f"{printable(path)}: no permission; change its mode") from error
        raise DataError(f"{printable(path)}: not an HDF5 log, or damaged; download it again") from error


def _pairs(file: Any) -> Iterator[tuple[str, str]]:
    """Times of the sweeps with flow, and of the sweeps after them."""
    for first, second in pairwise(sorted(file.keys(), key=lambda time: (len(time), time))):
        if hasattr(file[first], "keys") and "flow" in file[first] and "lidar" in file[second]:
            yield first, second


def _read_sweep(path: Path, group: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points, and which of them are near and not ground."""
    lidar = _read_array(path, group, "lidar")
    points = check_points((lidar[:, :3] if lidar.ndim == 2 else lidar).astype(np.float32), path, f"{group.name}/lidar")
    distance = np.hypot(points[:, 0], points[:, 1])
    ground = _read_mask(path, group, "ground_mask", len(points), missing=False)
    return points, ~ground & (distance < MAX_DEPTH_M)


def _read_mask(path: Path, group: Any, name: str, count: int, missing: bool) -> np.ndarray:
    mask = _read_array(path, group, name) if name in group else np.full(count, missing)
    if mask.shape != (count,):
        raise DataError(f"{printable(path)}: {group.name}/{name}: {mask.shape} found, ({count},) expected")
    return mask.astype(bool)


def _read_array(path: Path, group: Any, name: str) -> np.ndarray:
    """An array of one or two dimensions of numbers. Raises: DataError: missing, another type, or too large."""
    where = f"{printable(path)}: {printable(group.name)}/{name}"
    if name not in group or not hasattr(group[name], "shape"):
        raise DataError(f"{where}: missing; download the log again")
    data, limit = group[name], f"numbers of up to {_MAX_ROWS} points"
    if len(data.shape) not in (1, 2) or not 0 < data.shape[0] <= _MAX_ROWS or data.dtype.kind not in "fiub":
        raise DataError(f"{where}: {data.dtype} of shape {data.shape} found, {limit} expected")
    return np.asarray(data[()])
