# SPDX-License-Identifier: MIT
"""LiDAR logs with scene flow in HDF5, as prepared by OpenSceneFlow from Argoverse 2, nuScenes or Waymo; for evaluation.

A file is a log. It has one group per sweep, named by its time: `lidar` (N, 3 or more) in the vehicle frame (x forward,
y left, z up), `ground_mask` (N,) and, except in the last sweep, `flow` (N, 3) to the next sweep, including the motion
of the vehicle, with `flow_is_valid` (N,). There may also be `flow_category_indices` (N,), in all logs as indices of
Argoverse 2, `ego_motion` (4, 4) to the next sweep or `pose` (4, 4) of each sweep, and `eval_mask` (N,).
A scene is a sweep and the next one, without ground. Nothing in a log tells which dataset it comes from. Needs h5py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.choices import Region
from bpfn_cli.data.datasets.base import Format, SceneDataset, SceneNames
from bpfn_cli.data.datasets.folders import visible_files
from bpfn_cli.data.files.points import check_points
from bpfn_cli.errors import DataError, DiskError, UsageError, printable
from bpfn_cli.files import open_regular
from bpfn_cli.structures import MAX_DEPTH_M, Scene

_ENDINGS = (".h5", ".hdf5")
_AXES = [1, 2, 0]  # to x left, y up, z forward
_MASK = "eval_mask"
_TOLERANCE = 1e-3  # of rotations in float32
_MAX_FILE_BYTES = 1 << 40
_MAX_ROWS, _MAX_COLUMNS = 1 << 22, 64


@dataclass(frozen=True)
class LidarLogs(Format):
    """`LOG.h5` files; needs h5py.

    region: radius: within 35 m. square: the 70 x 70 m around the vehicle and, of logs with evaluation masks, only the
    sweeps and points of these, as in the evaluation of Argoverse 2. All horizontal.
    """

    region: Region | None = "radius"

    name = "lidar_logs"
    frame = "lidar"
    title = "LiDAR logs"
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
                sweeps = [first for first, _ in _pairs(file)]
                masked = [first for first in sweeps if _MASK in file[first]] if self.region == "square" else []
                scenes += [f"{Path(name).stem}/{first}" for first in masked or sweeps]
        return super().open(root, split, tuple(scenes))

    def sequence(self, name: str) -> int | str:
        """The log."""
        return name.partition("/")[0]

    def load(self, root: Path, split: str, name: str) -> Scene:
        log, first = name.split("/")
        path = _log_file(root, log)
        with _open_log(path) as file:
            sweep, following = file[first], file[dict(_pairs(file))[first]]
            pc1, keep1 = self._read_sweep(path, sweep)
            pc2, keep2 = self._read_sweep(path, following)
            flow = check_points(_read_array(path, sweep, "flow"), path, f"{first}/flow")
            valid = _read_mask(path, sweep, "flow_is_valid", len(pc1), missing=True)
            if self.region == "square":
                valid &= _read_mask(path, sweep, _MASK, len(pc1), missing=True)
            categories = _read_categories(path, sweep, len(pc1))
            ego_motion = _read_ego_motion(path, sweep, following)
        if len(flow) != len(pc1):
            raise DataError(f"{printable(path)}: {first}: {len(pc1)} points and {len(flow)} flows")
        if not (keep1 & valid).any() or not keep2.any():
            raise DataError(
                f"{printable(path)}: {first}: no point with known flow within {MAX_DEPTH_M:g} m ({self.region})"
            )
        pc1, pc2, flow = (np.ascontiguousarray(x[:, _AXES]) for x in (pc1[keep1], pc2[keep2], flow[keep1]))
        categories = None if categories is None else categories[keep1]
        known = {"valid": valid[keep1], "kept": keep1, "categories": categories, "ego_motion": ego_motion}
        return Scene(name, pc1, pc2, flow, **known)

    def _read_sweep(self, path: Path, group: Any) -> tuple[np.ndarray, np.ndarray]:
        """Points, and which of them are near and not ground."""
        lidar = _read_array(path, group, "lidar")
        points = (lidar[:, :3] if lidar.ndim == 2 else lidar).astype(np.float32)
        points = check_points(points, path, f"{group.name}/lidar")
        ground = _read_mask(path, group, "ground_mask", len(points), missing=False)
        x, y = points[:, 0], points[:, 1]
        near = np.hypot(x, y) < MAX_DEPTH_M
        if self.region == "square":
            near = np.maximum(np.abs(x), np.abs(y)) <= MAX_DEPTH_M
        return points, ~ground & near

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


def _read_mask(path: Path, group: Any, name: str, count: int, missing: bool) -> np.ndarray:
    return _read_column(path, group, name, count).astype(bool) if name in group else np.full(count, missing)


def _read_categories(path: Path, group: Any, count: int) -> np.ndarray | None:
    """(count,) uint8; None: the log has none."""
    name = "flow_category_indices"
    if name not in group:
        return None
    indices = _read_column(path, group, name, count)
    if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() > 255:
        fault = f"{indices.dtype} from {indices.min()} to {indices.max()} found, indices from 0 to 255 expected"
        raise DataError(f"{printable(path)}: {printable(group.name)}/{name}: {fault}")
    return indices.astype(np.uint8)


def _read_column(path: Path, group: Any, name: str, count: int) -> np.ndarray:
    """(count,), of an array of this shape or of one column."""
    values = _read_array(path, group, name)
    if values.shape not in ((count,), (count, 1)):
        where = f"{printable(path)}: {printable(group.name)}/{name}"
        raise DataError(f"{where}: {values.shape} found, ({count},) expected")
    return values.reshape(count)


def _read_ego_motion(path: Path, group: Any, following: Any) -> np.ndarray | None:
    """As `Scene.ego_motion`, which needs the poses of both sweeps if it is not given."""
    if "ego_motion" in group:
        motion = _read_transform(path, group, "ego_motion")
    elif "pose" in group and "pose" in following:
        motion = np.linalg.inv(_read_transform(path, following, "pose")) @ _read_transform(path, group, "pose")
    else:
        return None
    return motion[np.ix_([*_AXES, 3], [*_AXES, 3])]


def _read_transform(path: Path, group: Any, name: str) -> np.ndarray:
    """(4, 4) float64."""
    values = _read_array(path, group, name).astype(np.float64)
    ok = values.shape == (4, 4) and np.isfinite(values).all() and np.array_equal(values[3], (0, 0, 0, 1))
    rotation = values[:3, :3] if ok else np.zeros((3, 3))
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=_TOLERANCE) or np.linalg.det(rotation) < 0:
        fault = "a rotation and a translation (4, 4) expected, with 0 0 0 1 as last row"
        raise DataError(f"{printable(path)}: {printable(group.name)}/{name}: {fault}")
    return values


def _read_array(path: Path, group: Any, name: str) -> np.ndarray:
    """An array of one or two dimensions of numbers. Raises: DataError: missing, another type, or too large."""
    where = f"{printable(path)}: {printable(group.name)}/{name}"
    if name not in group or not hasattr(group[name], "shape"):
        raise DataError(f"{where}: missing; download the log again")
    data, limit = group[name], f"numbers of up to {_MAX_ROWS} points"
    rows, *columns = data.shape or (0,)
    fits = 0 < rows <= _MAX_ROWS and len(columns) <= 1 and max(columns, default=1) <= _MAX_COLUMNS
    if not fits or data.dtype.kind not in "fiub":
        raise DataError(f"{where}: {data.dtype} of shape {data.shape} found, {limit} expected")
    return np.asarray(data[()])
