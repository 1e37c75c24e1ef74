# SPDX-License-Identifier: MIT
"""Inspection of datasets: number of scenes, damage, and the distributions of points, depth and flow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bpfn_cli.data.augment import even_rows
from bpfn_cli.data.datasets import DamagedDatasetError, SceneDataset, find_dataset
from bpfn_cli.data.datasets.base import Dataset
from bpfn_cli.errors import BpfnError, DataError, UsageError, printable
from bpfn_cli.files import disk_errors, write_atomic
from bpfn_cli.parallel import map_in_processes
from bpfn_cli.progress import ProgressCallback

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_POINTS_PER_SCENE = 1000  # evenly spaced rows, for the quantiles of a dataset
_SCENES_PER_TASK = 16


@dataclass(frozen=True)
class Damage:
    """A scene that cannot be read, and why."""

    split: str
    scene: str
    fault: str


@dataclass(frozen=True)
class SplitCheck:
    """Check of one split; every tuple is at QUANTILES."""

    split: str
    scenes: int
    damaged: int
    points1: tuple[float, ...]  # in the first cloud of each scene, after the cuts
    points2: tuple[float, ...]
    depth_m: tuple[float, ...]  # of the points with known flow, equally many from each scene
    flow_length_m: tuple[float, ...]
    valid_share: float  # of the points, with known flow
    has_flow: bool  # whether the scenes have labels


@dataclass(frozen=True)
class DatasetCheck:
    """Check of a dataset. disk_bytes: size of all files in its folder."""

    kind: str
    root: str
    quantiles: tuple[float, ...]
    splits: tuple[SplitCheck, ...]
    disk_bytes: int
    damage: tuple[Damage, ...]


class _SceneCheck(NamedTuple):
    points1: int
    points2: int
    valid_share: float
    depths: np.ndarray
    lengths: np.ndarray


def check_dataset(
    path: Path | Dataset, *, processes: int = 1, progress: ProgressCallback | None = None
) -> DatasetCheck:
    """Read every scene of every split. Args: path: or a dataset that was found.

    Raises: DataError: no dataset, or no scenes; damaged scenes are part of the result. DiskError.
    """
    dataset = path if isinstance(path, Dataset) else find_dataset(path)
    splits = [dataset.open(split) for split in dataset.splits()]
    if not splits:
        raise DataError(f"{printable(dataset.root)}: no scenes; check the path")
    total, done = sum(map(len, splits)), 0
    checks, damage = [], []
    for split in splits:
        found: list[_SceneCheck | str] = []
        starts = range(0, len(split), _SCENES_PER_TASK)
        parts = [range(len(split))[start : start + _SCENES_PER_TASK] for start in starts]
        for scenes in map_in_processes(partial(_check_scenes, split), parts, processes):
            found += scenes
            done += len(scenes)
            if progress:
                progress(done, total)
        faults = [(name, fault) for name, fault in zip(split.names, found, strict=True) if isinstance(fault, str)]
        damage += [Damage(split.split, name, fault) for name, fault in faults]
        checks.append(_summary(split, [scene for scene in found if isinstance(scene, _SceneCheck)]))
    of_files = not dataset.path.is_dir()  # a list, or one file
    size = (
        sum(dataset.format.file_sizes(dataset.root, dataset.scenes).values()) if of_files else disk_bytes(dataset.root)
    )
    return DatasetCheck(dataset.format.name, str(dataset.root), QUANTILES, tuple(checks), size, tuple(damage))


def write_fix_list(path: Path, damage: Sequence[Damage]) -> None:
    """Write one "split/scene" per line, for `bpfn subset --leave-out`. Raises: DiskError."""
    write_atomic(path, "".join(f"{one.split}/{one.scene}\n" for one in damage).encode())


def describe_scene(path: Path) -> dict[str, Any]:
    """Figures of one scene, given as dataset path, split (if there are splits) and scene name.

    Raises: UsageError: no such scene. As `SceneDataset.load`.
    """
    dataset, index = _find_scene(path)
    scene = dataset.load(index)
    flow = np.empty((0, 3)) if scene.flow is None else scene.flow if scene.valid is None else scene.flow[scene.valid]
    return {
        "scene": scene.name,
        "kind": dataset.kind,
        "split": dataset.split,
        "dataset": str(dataset.root),
        "points1": len(scene.pc1),
        "points2": len(scene.pc2),
        "known_flow": len(flow),
        "pc1_min_m": _rounded(scene.pc1.min(axis=0)),
        "pc1_max_m": _rounded(scene.pc1.max(axis=0)),
        "pc2_min_m": _rounded(scene.pc2.min(axis=0)),
        "pc2_max_m": _rounded(scene.pc2.max(axis=0)),
        "quantiles": list(QUANTILES),
        "depth_m": _rounded(np.quantile(scene.pc1[:, 2], QUANTILES)),
        "flow_length_m": list(_quantiles(np.linalg.norm(flow, axis=1))),
        "mean_flow_m": _rounded(flow.mean(axis=0)) if len(flow) else [],
    }


def disk_bytes(root: Path) -> int:
    """Size of all regular files in a folder and its subfolders; links are not followed."""
    with disk_errors(root):
        return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _check_scenes(dataset: SceneDataset, indices: range) -> list[_SceneCheck | str]:
    return [_check_scene(dataset, index) for index in indices]


def _check_scene(dataset: SceneDataset, index: int) -> _SceneCheck | str:
    """The figures of a scene, or why it cannot be read."""
    try:
        scene = dataset.load(index)
    except DataError as error:
        return str(error)
    known = np.arange(len(scene.pc1)) if scene.valid is None else np.flatnonzero(scene.valid)
    rows, counts = known[even_rows(len(known), _POINTS_PER_SCENE)], (len(scene.pc1), len(scene.pc2))
    if scene.flow is None:
        return _SceneCheck(*counts, 0.0, scene.pc1[rows, 2], np.empty(0))
    lengths = np.linalg.norm(scene.flow[rows], axis=1)
    return _SceneCheck(*counts, len(known) / len(scene.pc1), scene.pc1[rows, 2], lengths)


def _summary(dataset: SceneDataset, scenes: list[_SceneCheck]) -> SplitCheck:
    points1, points2, shares, depths, lengths = zip(*scenes, strict=True) if scenes else [()] * 5
    counts = _quantiles(np.array(points1)), _quantiles(np.array(points2))
    share = round(float(np.mean(shares)), 4) if scenes else 0.0
    damaged = len(dataset) - len(scenes)
    figures = _quantiles(*depths), _quantiles(*lengths)
    return SplitCheck(dataset.split, len(dataset), damaged, *counts, *figures, share, dataset.has_flow)


def _quantiles(*values: np.ndarray) -> tuple[float, ...]:
    joined = np.concatenate(values) if values else np.empty(0)
    return tuple(_rounded(np.quantile(joined, QUANTILES))) if len(joined) else ()


def _find_scene(path: Path) -> tuple[SceneDataset, int]:
    for parent in path.parents:
        try:
            dataset = find_dataset(parent)
            splits = [dataset.open(split) for split in dataset.splits()]
        except BpfnError as error:  # the folder of a split may look like another dataset
            if isinstance(error, DamagedDatasetError) and path.is_relative_to(error.root):
                raise
            continue
        for split in splits:
            for start in (dataset.root, dataset.root / split.split):
                wanted = path.relative_to(start) if path.is_relative_to(start) else Path()
                for name in (str(wanted), str(wanted.with_suffix("")) if wanted.suffix else ""):
                    if name in split.names:
                        return split, split.names.index(name)
    raise UsageError(f"{printable(path)}: no such scene; give DATASET/train/NAME, or DATASET/NAME if it has no splits")


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
