# SPDX-License-Identifier: MIT
"""Look at every scene of a dataset: what is there, what is damaged, how far and how fast things are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.datasets import SceneDataset, open_dataset, splits_of
from bpfn_cli.data.datasets.layout import find_layout
from bpfn_cli.data.sampling import even_rows
from bpfn_cli.errors import BpfnError, DataError, UsageError, printable
from bpfn_cli.files import disk_errors, write_atomic
from bpfn_cli.parallel import map_in_processes
from bpfn_cli.structures import Scene

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_POINTS_OF_A_SCENE = 1000  # evenly spaced rows, for the quantiles of a dataset
_SCENES_OF_A_TASK = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """A scene that cannot be read, and why."""

    split: str
    scene: str
    fault: str


@dataclass(frozen=True)
class SplitCheck:
    """One split.

    Attributes:
        scenes: in all. damaged: those of them that cannot be read.
        points1, points2: points of a cloud after the cuts, at QUANTILES of the scenes.
        depth_m, flow_length_m: at QUANTILES of points whose flow is known, the same number from each scene.
        valid_share: of points whose flow is known.
    """

    split: str
    scenes: int
    damaged: int
    points1: tuple[float, ...]
    points2: tuple[float, ...]
    depth_m: tuple[float, ...]
    flow_length_m: tuple[float, ...]
    valid_share: float


@dataclass(frozen=True)
class DatasetCheck:
    """A dataset. disk_bytes: of all files in its folder."""

    kind: str
    root: str
    quantiles: tuple[float, ...]
    splits: tuple[SplitCheck, ...]
    disk_bytes: int
    damage: tuple[Damage, ...]


@dataclass(frozen=True)
class _Look:
    points1: int
    points2: int
    valid: float
    depths: np.ndarray
    lengths: np.ndarray


def check_dataset(path: Path, *, processes: int = 1, progress: Progress | None = None) -> DatasetCheck:
    """Read every scene of every split.

    Raises: DataError: no dataset, or not one scene in it; damaged scenes are in the result. DiskError.
    """
    layout = find_layout(path)
    datasets = [open_dataset(layout.root, split) for split in splits_of(layout)]
    if not datasets:
        raise DataError(f"{printable(layout.root)}: no scenes; check the path")
    total, done = sum(map(len, datasets)), 0
    splits, damage = [], []
    for dataset in datasets:
        found: list[_Look | str] = []
        parts = [range(start, min(start + _SCENES_OF_A_TASK, len(dataset))) for start in _starts(len(dataset))]
        for looks in map_in_processes(partial(_look_at, dataset), parts, processes):
            found += looks
            done += len(looks)
            if progress:
                progress(done, total)
        faults = [(name, look) for name, look in zip(dataset.names, found, strict=True) if isinstance(look, str)]
        damage += [Damage(dataset.split, name, fault) for name, fault in faults]
        splits.append(_summary(dataset, [look for look in found if isinstance(look, _Look)]))
    return DatasetCheck(layout.kind, str(layout.root), QUANTILES, tuple(splits), disk_bytes(layout.root), tuple(damage))


def write_fix_list(path: Path, damage: Sequence[Damage]) -> None:
    """One "split/scene" a line, for `bpfn subset --leave-out`. Raises: DiskError."""
    write_atomic(path, "".join(f"{one.split}/{one.scene}\n" for one in damage).encode())


def describe_scene(path: Path) -> dict[str, Any]:
    """One scene, named as the path of its dataset, its split (where there are splits) and its name.

    Raises: UsageError: no such scene. As `SceneDataset.load`.
    """
    dataset, index = _find_scene(path)
    scene = dataset.load(index)
    lengths = np.linalg.norm(scene.flow, axis=1)
    known = lengths if scene.valid is None else lengths[scene.valid]
    return {
        "scene": scene.name,
        "kind": dataset.kind,
        "split": dataset.split,
        "dataset": str(dataset.root),
        "points1": len(scene.pc1),
        "points2": len(scene.pc2),
        "known_flow": len(known),
        "pc1_low_m": _rounded(scene.pc1.min(axis=0)),
        "pc1_high_m": _rounded(scene.pc1.max(axis=0)),
        "pc2_low_m": _rounded(scene.pc2.min(axis=0)),
        "pc2_high_m": _rounded(scene.pc2.max(axis=0)),
        "quantiles": list(QUANTILES),
        "depth_m": _rounded(np.quantile(scene.pc1[:, 2], QUANTILES)),
        "flow_length_m": _rounded(np.quantile(known, QUANTILES)),
        "mean_flow_m": _rounded(scene.flow.mean(axis=0)),
    }


def disk_bytes(root: Path) -> int:
    """Of all regular files below a folder; links are not followed."""
    with disk_errors(root):
        return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _starts(count: int) -> range:
    return range(0, count, _SCENES_OF_A_TASK)


def _look_at(dataset: SceneDataset, indices: range) -> list[_Look | str]:
    return [_look(dataset, index) for index in indices]


def _look(dataset: SceneDataset, index: int) -> _Look | str:
    try:
        scene = dataset.load(index)
    except DataError as error:
        return str(error)
    rows = _even_rows(scene)
    return _Look(
        len(scene.pc1),
        len(scene.pc2),
        1.0 if scene.valid is None else float(scene.valid.mean()),
        scene.pc1[rows, 2],
        np.linalg.norm(scene.flow[rows], axis=1),
    )


def _even_rows(scene: Scene) -> np.ndarray:
    known = np.arange(len(scene.pc1)) if scene.valid is None else np.flatnonzero(scene.valid)
    return known[even_rows(len(known), _POINTS_OF_A_SCENE)]


def _summary(dataset: SceneDataset, looks: list[_Look]) -> SplitCheck:
    def at_quantiles(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
        return tuple(_rounded(np.quantile(values, QUANTILES))) if len(values) else ()

    return SplitCheck(
        dataset.split,
        len(dataset),
        len(dataset) - len(looks),
        at_quantiles([look.points1 for look in looks]),
        at_quantiles([look.points2 for look in looks]),
        at_quantiles(np.concatenate([look.depths for look in looks]) if looks else []),
        at_quantiles(np.concatenate([look.lengths for look in looks]) if looks else []),
        round(float(np.mean([look.valid for look in looks])), 4) if looks else 0.0,
    )


def _find_scene(path: Path) -> tuple[SceneDataset, int]:
    for root in path.parents:
        try:
            layout = find_layout(root)
            datasets = [open_dataset(layout.root, split) for split in splits_of(layout)]
        except BpfnError:  # the folder of a split may look like another dataset
            continue
        for dataset in datasets:
            for start in (layout.root, layout.root / dataset.split):
                wanted = path.relative_to(start) if path.is_relative_to(start) else Path()
                for name in (str(wanted), str(wanted.with_suffix("")) if wanted.suffix else ""):
                    if name in dataset.names:
                        return dataset, dataset.names.index(name)
    raise UsageError(f"{printable(path)}: no scene; give DATASET/train/NAME, or DATASET/NAME where there are no splits")


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
