# SPDX-License-Identifier: MIT
"""Scenes stored as a folder each: `NAME/pc1.npy` and `NAME/pc2.npy`, whose rows correspond."""

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bpfn_cli.data.datasets.base import in_one_line
from bpfn_cli.data.files.points import read_points
from bpfn_cli.data.names import CLOUDS, SPLITS, check_scene_name
from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.files import disk_errors, explain
from bpfn_cli.structures import MAX_DEPTH_M, Camera, Scene

_DANGLING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def has_splits(root: Path) -> bool:
    """Whether a folder contains `train/` or `val/`."""
    return any((root / split).is_dir() for split in SPLITS)


def visible_files(root: Path, endings: Sequence[str]) -> list[Path]:
    """Sorted files in a folder that have one of these endings and are not hidden."""
    files = [path for path in root.iterdir() if path.suffix in endings and not path.name.startswith(".")]
    return sorted(path for path in files if path.is_file())


def list_scenes(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sorted names of the scene folders in `folder`, and of its other entries.

    Hidden entries are ignored. A link that is dangling or leads to a folder above itself is not a scene.

    Raises: DataError: no such folder, or an unsafe name. DiskError: no permission.
    """
    scenes: list[str] = []
    others: list[str] = []
    with disk_errors(folder):
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: no such folder; check the path")
        here = os.path.realpath(folder)
        for entry in os.scandir(folder):
            if not entry.name.startswith("."):
                (scenes if _is_scene(entry, here) else others).append(entry.name)
    return tuple(sorted(check_scene_name(name, folder) for name in scenes)), tuple(sorted(others))


def _is_scene(entry: os.DirEntry[str], here: str) -> bool:
    try:
        if not entry.is_dir():
            return False
    except OSError as error:
        if error.errno in _DANGLING:
            return False
        raise
    target = os.path.realpath(entry.path)
    return not entry.is_symlink() or os.path.commonpath([here, target]) != target


def file_sizes(root: Path, scenes: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Bytes of every "split/scene/cloud" file; split "": the scenes are directly in `root`.

    Raises: DataError: files that are missing or not regular, up to ten by name. DiskError: no permission.
    """
    folders = [f"{split}/{name}".lstrip("/") for split, names in scenes.items() for name in names]
    keys = [f"{folder}/{cloud}" for folder in folders for cloud in CLOUDS]
    sizes = {key: _regular_size(root / key) for key in keys}
    faults = [f"{printable(key)} {size}" for key, size in sizes.items() if isinstance(size, str)]
    if faults:
        raise DataError(f"{printable(root)}: {in_one_line(faults)}; download or prepare them again")
    return {key: size for key, size in sizes.items() if isinstance(size, int)}


def _regular_size(path: Path) -> int | str:
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in _DANGLING:
            return "is missing"
        raise DiskError(f"{printable(path)}: {explain(error)}") from error
    return status.st_size if stat.S_ISREG(status.st_mode) else "is not a regular file"


def read_pair(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both clouds of a scene, (N, 3) float32, as stored. Raises: as `SceneDataset.load`."""
    pc1, pc2 = (read_points(folder / cloud) for cloud in CLOUDS)
    check_pair(folder, pc1, pc2)
    return pc1, pc2


def check_pair(scene: Path, pc1: np.ndarray, pc2: np.ndarray) -> None:
    """Raises: DataError: the clouds have different numbers of rows."""
    if len(pc1) != len(pc2):
        found = f"pc1 has {len(pc1)} points and pc2 {len(pc2)}"
        raise DataError(f"{printable(scene)}: {found}, but their rows must correspond; prepare it again")


def cut_scene(folder: Path, pc1: np.ndarray, pc2: np.ndarray, camera: Camera, keep: np.ndarray | None = None) -> Scene:
    """The points within 35 m in both clouds, and in `keep`. Raises: DataError: none is left."""
    near = (pc1[:, 2] < MAX_DEPTH_M) & (pc2[:, 2] < MAX_DEPTH_M)
    keep = near if keep is None else near & keep
    if not keep.any():
        cuts = f"{MAX_DEPTH_M:g} m, and the ground of KITTI"
        fault = f"none of {len(keep)} points is left after the cuts ({cuts})"
        raise DataError(f"{printable(folder)}: {fault}; are the axes those of the format?")
    if keep.all():  # most scenes were cut when they were prepared
        return Scene(folder.name, pc1, pc2, pc2 - pc1, camera)
    pc1, pc2 = pc1[keep], pc2[keep]
    return Scene(folder.name, pc1, pc2, pc2 - pc1, camera, kept=keep)
