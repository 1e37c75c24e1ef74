# SPDX-License-Identifier: MIT
"""Pairs of clouds without true flow: a folder, a sequence of frames, a list, or one `.npz`, in any cloud format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy as np

from bpfn_cli.data.augment import even_rows
from bpfn_cli.data.clouds.agreement import disagreement
from bpfn_cli.data.clouds.cloud import Cloud
from bpfn_cli.data.clouds.listing import pairs_in
from bpfn_cli.data.clouds.pairs import CloudPair, PairReader
from bpfn_cli.data.datasets.base import Dataset, Format, SceneDataset, SceneNames
from bpfn_cli.data.files.points import MAX_COORDINATE_M
from bpfn_cli.data.ground import ground_rows
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors
from bpfn_cli.frames import FRAMES, axes_of
from bpfn_cli.structures import MAX_DEPTH_M, Scene

READ_FIRST = 100  # pairs that are read before a training
_MOST_TOGETHER = 10  # pairs of a sequence


@dataclass(frozen=True)
class Pairs(Format):
    """Clouds as `bpfn predict` reads them, in the sensor's frame. A flow in the files is not used.

    Attributes: pairs: by name. cloud_frame: of the clouds, as `axes_of` takes it. remove_ground: leave out the ground
        plane of each cloud.
    """

    pairs: Mapping[str, CloudPair] = field(default_factory=dict, hash=False)
    cloud_frame: str = ""
    remove_ground: bool = False

    name: ClassVar[str] = "pairs"
    title: ClassVar[str] = "Pairs"
    layout: ClassVar[str] = "your own clouds, with --frame"
    splits: ClassVar[tuple[str, ...]] = ("train",)
    has_flow: ClassVar[bool] = False

    def recognizes(self, root: Path) -> bool:
        """Any folder may hold clouds, and nothing in it tells their frame: see `find_pairs`."""
        return False

    @property
    def reading(self) -> tuple[str, ...]:
        files = (f"{name}: {' '.join(path.name for path in pair.inputs)}" for name, pair in sorted(self.pairs.items()))
        return (self.cloud_frame, str(self.remove_ground), *files)

    def list_scenes(self, root: Path) -> SceneNames:
        return {"train": tuple(sorted(self.pairs))}

    def file_sizes(self, root: Path, scenes: SceneNames) -> dict[str, int]:
        paths = {path for names in scenes.values() for name in names for path in self.pairs[name].inputs}
        return {os.path.relpath(path, root): path.stat().st_size for path in paths}

    def label(self, split: str, count: int) -> str:
        return f"{count:,} {'pair' if count == 1 else 'pairs'} without true flow"

    def sequence(self, name: str) -> int | str:
        """Up to ten pairs that follow one another, such as frames 1 and 2, 2 and 3; fewer of less than 200 pairs."""
        return self._sequences[name]

    @cached_property
    def _sequences(self) -> dict[str, str]:
        following = {pair.first: name for name, pair in self.pairs.items()}
        starts = self.pairs.keys() - {following.get(pair.second) for pair in self.pairs.values() if pair.second}
        found: dict[str, str] = {}
        together = min(_MOST_TOGETHER, max(1, len(self.pairs) // 20))
        for start in sorted(starts):
            name: str | None = start
            for place in count():
                if name is None or name in found:
                    break
                found[name] = f"{start} {place // together}"
                second = self.pairs[name].second
                name = following.get(second) if second else None
        return found | {name: name for name in self.pairs if name not in found}  # those of a circle

    def load(self, root: Path, split: str, name: str) -> Scene:
        """Read a pair: internal axes, near points, without ground if asked.

        Raises: DataError: damaged, empty, beyond `MAX_COORDINATE_M`, nothing near, or clouds that are not of one scene.
        """
        pair = self.pairs[name]
        clouds = pair.read(PairReader())[:2]
        first, second = map(_points_of, clouds)
        if fault := disagreement(first, second):
            raise DataError(f"{pair}: {fault}")
        axes = axes_of(self.cloud_frame)
        pc1, pc2 = (self._near(cloud, of @ axes.T) for cloud, of in zip(clouds, (first, second), strict=True))
        return Scene(name, pc1, pc2, None)

    def check(self, scenes: SceneDataset) -> None:
        """Read up to `READ_FIRST` pairs, so that mistakes show before a training. Raises: as `load`."""
        for index in even_rows(len(scenes), READ_FIRST):
            scenes.load(int(index))

    def _near(self, cloud: Cloud, points: np.ndarray) -> np.ndarray:
        near = np.hypot(points[:, 0], points[:, 2]) < MAX_DEPTH_M
        ground = ground_rows(points) if self.remove_ground else None
        keep = near if ground is None else near & ~ground
        if not keep.any():
            what = "and above the ground " if ground is not None and near.any() else ""
            fault = f"no point within {MAX_DEPTH_M:g} m of the origin {what}is left"
            raise DataError(f"{cloud.name}: {fault}; give clouds in the sensor's frame, in metres")
        return np.ascontiguousarray(points[keep])


def find_pairs(path: Path, frame: str | None = None, remove_ground: bool = False) -> Dataset:
    """The pairs of a folder, list or `.npz`, all of which exist.

    Args: frame: of the clouds, as `axes_of` takes it; None: as their ending tells.
    Raises: DataError: none, a list names a missing cloud, an empty file, or a pair in two frames. UsageError: an
        unknown frame. DiskError.
    """
    if frame is not None:
        axes_of(frame)
    root = path if path.is_dir() else path.parent
    with disk_errors(path):
        pairs = pairs_in(path)
        for pair in pairs:
            _check_files(pair, frame)
    found = Pairs(pairs=_named(pairs, root), cloud_frame=frame or _frame_of(pairs, path), remove_ground=remove_ground)
    return Dataset(path, root, found)


def _check_files(pair: CloudPair, frame: str | None) -> None:
    """Raises: DataError: an empty file, or a cloud whose ending tells another frame than that of the other cloud."""
    if empty := [file for file in pair.inputs if not file.stat().st_size]:
        raise DataError(f"{printable(empty[0])}: empty; write it again, or leave the pair out")
    if len(pair.frames) > 1 and (other := pair.frames - {None, frame}):
        fault = f"one cloud is in frame {other.pop()} by its ending, the other is not"
        raise DataError(f"{pair}: {fault}; transform both to one frame")


def _frame_of(pairs: Iterable[CloudPair], source: Path) -> str:
    frames = set[str | None]().union(*(pair.frames for pair in pairs))
    frame = frames.pop() if len(frames) == 1 else None
    if frame is None:
        advice = f"give --frame (data.frame), one of {', '.join(FRAMES)}, or directions such as right,forward,up"
        raise UsageError(f"{printable(source)}: the axes of these clouds are unknown; {advice}")
    return frame


def _named(pairs: list[CloudPair], root: Path) -> dict[str, CloudPair]:
    """The pairs by name; by their path from `root` if names of several folders are equal."""
    for names in ([pair.name for pair in pairs], [os.path.relpath(pair.first, root) for pair in pairs]):
        found = dict(zip(names, pairs, strict=True))
        if len(found) == len(pairs):
            return found
    twice = next(name for name in names if names.count(name) > 1)
    raise DataError(f"{printable(twice)}: first cloud of two pairs; list it once")


def _points_of(cloud: Cloud) -> np.ndarray:
    """(N, 3) float32 metres, axes of the file. Raises: DataError: beyond `MAX_COORDINATE_M`."""
    points = cloud.points[cloud.valid]
    largest = float(np.abs(points).max())
    if not largest <= MAX_COORDINATE_M:
        fault = f"coordinates up to {largest:.3g} m, at most {MAX_COORDINATE_M:.0f} m expected"
        raise DataError(f"{cloud.name}: {fault}; give clouds in the sensor's frame, in metres")
    return points.astype(np.float32)
