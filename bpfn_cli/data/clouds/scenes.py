# SPDX-License-Identifier: MIT
"""Scenes of datasets as pairs of clouds, in the axes of their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.data.clouds.cloud import Cloud
from bpfn_cli.data.clouds.pairs import Clouds, PairReader
from bpfn_cli.data.datasets import DamagedDatasetError, find_dataset
from bpfn_cli.data.datasets.base import Dataset, SceneDataset, stored_split
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.frames import INTERNAL, axes_of

CUT = "cut off, as in evaluation"  # beyond 35 m, or ground


@dataclass(frozen=True)
class ScenePair:
    """A scene of a dataset. Its rows are those of its file."""

    scenes: SceneDataset
    index: int

    @property
    def name(self) -> str:
        return self.scenes.names[self.index].replace("/", "-")

    @property
    def inputs(self) -> list[Path]:
        """The folder of the dataset."""
        return [self.scenes.root]

    def leads_to(self, following: object) -> bool:
        """As of `CloudPair`: scenes share no cloud."""
        return False

    def read(self, reader: PairReader) -> Clouds:
        """Raises: DataError: a damaged scene. DiskError: no permission."""
        scene, axes, name = self.scenes.load(self.index), axes_of(self.scenes.frame), str(self)
        kept = np.ones(len(scene.pc1), bool) if scene.kept is None else scene.kept
        points, truth = np.zeros((2, len(kept), 3), np.float32)
        known = np.zeros(len(kept), bool)
        points[kept], truth[kept] = scene.pc1 @ axes, scene.truth @ axes
        known[kept] = True if scene.valid is None else scene.valid
        left_out = {CUT: int((~kept).sum())} if not kept.all() else {}
        second = Cloud.of_points(scene.pc2 @ axes, f"{name}: second cloud")
        return Clouds(Cloud(f"{name}: first cloud", points, kept, left_out), second, truth, known)

    def __str__(self) -> str:
        root, split = self.scenes.root, stored_split(self.scenes.split)
        return printable((root / split if (root / split).is_dir() else root) / self.scenes.names[self.index])


def find_scenes(path: Path) -> list[ScenePair] | None:
    """The test scenes of a dataset, the scenes of a split folder, or one scene; None: `path` is none of these.

    Scenes that cannot be read are not read as other files instead, which would be taken for another frame.

    Raises: DataError: no such scenes, or the first one is damaged or has no point to evaluate. DiskError.
    """
    if len(path.parts) < 2 or ".." in path.parts:  # the folders above are not in the path
        path = path.resolve()
    for root in _roots(path):
        title = "dataset"
        try:
            dataset = _dataset_in(root, path)
            if dataset is None:
                continue
            title = dataset.format.title
            found = _scenes_at(dataset, path)
            if found:
                found[0].scenes.load(found[0].index)
                return found
        except (DataError, DiskError) as error:
            kind = DiskError if isinstance(error, DiskError) else DataError
            raise kind(f"{error} (taken for {title} scenes; --frame reads the files as they are)") from error
    return None


def _dataset_in(root: Path, path: Path) -> Dataset | None:
    """The dataset in a folder. Folders with `pc1.npy` are KITTI's only if their names are.

    Raises: DamagedDatasetError: `path` lies in a dataset that is not whole.
    """
    try:
        dataset = find_dataset(root)
        return dataset if dataset.format.frame != INTERNAL or dataset.scenes else None
    except DamagedDatasetError as error:
        if path.is_relative_to(error.root):
            raise
        return None
    except (DataError, DiskError):
        return None


def _roots(path: Path) -> list[Path]:
    """Folders that may be the dataset: `path`, or those above something that may be a scene or a split."""
    if path.is_dir() and not (path / CLOUDS[0]).exists() and path.name not in SPLITS:
        return [path]
    return [] if path.is_file() and path.suffix.lower() != ".npz" else [path, *path.parents[:2]]


def _scenes_at(dataset: Dataset, path: Path) -> list[ScenePair]:
    if path in (dataset.path, dataset.root):
        return _all_scenes(dataset.open("test"))
    if not path.is_relative_to(dataset.root):
        return []
    inside = path.relative_to(dataset.root)
    owners = [split for split, names in dataset.scenes.items() if {str(inside), str(inside.with_suffix(""))} & {*names}]
    if len(owners) > 1:
        advice = f"give the split, such as {printable(dataset.root / owners[0] / inside)}"
        raise DataError(f"{printable(path)}: a scene of {' and of '.join(owners)}; {advice}")
    for split, names in dataset.scenes.items():
        folder = Path(split)
        if inside == folder and names and path.is_dir():
            return _all_scenes(dataset.open(split))
        name = inside.relative_to(folder) if inside.is_relative_to(folder) else inside
        for one in (str(name), str(name.with_suffix("")) if name.suffix else ""):
            if one not in names:
                continue
            if split not in dataset.format.splits:
                raise DataError(f"{printable(path)}: NaN, or no point that is visible in both frames; leave it out")
            scenes = dataset.open(split)
            return [ScenePair(scenes, scenes.names.index(one))]
    return []


def _all_scenes(scenes: SceneDataset) -> list[ScenePair]:
    return [ScenePair(scenes, index) for index in range(len(scenes))]
