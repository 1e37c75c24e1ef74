# SPDX-License-Identifier: MIT
"""Interfaces of datasets: a format, a dataset of that format, and the scenes of one split."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from bpfn_cli.choices import Region
from bpfn_cli.data.augment import sample_points
from bpfn_cli.data.contents import contents_sha256, newest_change
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors
from bpfn_cli.frames import INTERNAL
from bpfn_cli.structures import Camera, Scene

SceneNames = Mapping[str, tuple[str, ...]]  # split as stored -> sorted scene names

_SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test", "all": "test"}
_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class Format(ABC):
    """A dataset format. It has no state: every call gets `root`, the folder of the dataset.

    region: what is kept of each cloud, where there is a choice; None: there is none.
    """

    name: ClassVar[str]  # in recipes, JSON and file records
    title: ClassVar[str]  # in reports
    layout: ClassVar[str]  # what a folder of this format contains; shown when no dataset is found
    folders: ClassVar[tuple[str, ...]] = ()  # usual names, looked for in the folder given by the user
    raw_folders: ClassVar[tuple[str, ...]] = ()  # any of them marks a raw download, for `bpfn prepare NAME`
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")  # `test` may be stored as `val`; `all`: every one
    frame: ClassVar[str] = INTERNAL  # of the coordinates in the files, as `axes_of` takes it
    is_synthetic: ClassVar[bool] = False  # results must not be compared with published ones
    camera: ClassVar[Camera | None] = None  # of every scene; None: each scene has its own, or none
    has_flow: ClassVar[bool] = True  # scenes have their true flow
    has_hidden_flow: ClassVar[bool] = False  # also at points that are hidden in the second cloud
    region: Region | None = None

    def within(self, region: Region) -> Format:
        """This format with another region. Raises: UsageError: it has no choice."""
        if self.region is None:
            raise UsageError(f"region {region}: only LiDAR logs have a choice, {self.name} has one cut")
        return replace(self, region=region)

    @abstractmethod
    def recognizes(self, root: Path) -> bool:
        """Whether a folder is a dataset of this format; looks at names only."""

    @abstractmethod
    def list_scenes(self, root: Path) -> SceneNames:
        """Sorted scene names of every stored split. Raises: DataError: an invalid name. DiskError: no permission."""

    @abstractmethod
    def load(self, root: Path, split: str, name: str) -> Scene:
        """Read a scene of a requested split. Raises: as `SceneDataset.load`."""

    @abstractmethod
    def file_sizes(self, root: Path, scenes: SceneNames) -> dict[str, int]:
        """Path relative to `root` -> bytes, of the files of these scenes. They identify the data of a run.

        Raises: DataError: missing files. DiskError: no permission.
        """

    @property
    def reading(self) -> tuple[str, ...]:
        """How the files are read, where that is up to the user; part of the identity of the data."""
        return ()

    def split_sizes(self, root: Path, split: str, names: tuple[str, ...]) -> dict[str, int]:
        """As `file_sizes`, for the scenes of a requested split; equal for a subset and its source."""
        return self.file_sizes(root, {stored_split(split): names})

    def open(self, root: Path, split: str, names: tuple[str, ...]) -> SceneDataset:
        """The dataset of these scenes of a requested split."""
        return SceneDataset(self, root, split, names, label=self.label(split, len(names)))

    def label(self, split: str, count: int) -> str:
        """As `SceneDataset.label`."""
        return f"{count:,} {_SPLIT_WORDS[split]} scenes"

    def sequence(self, name: str) -> int | str:
        """The sequence of a scene. Scenes of one sequence are similar: they are held out and resampled together."""
        return int(name) if name.isdecimal() else name


@dataclass(frozen=True)
class SceneDataset:
    """The scenes of one split of a dataset. labels: keep the true flow; otherwise scenes are loaded without it."""

    format: Format  # for a subset, that of its source
    root: Path  # holds the scenes or their splits
    split: str  # as requested: train, val, test or all
    names: tuple[str, ...]  # unique and sorted
    label: str = field(default="", kw_only=True)  # number and choice of the scenes, such as "10 training scenes"
    labels: bool = field(default=True, kw_only=True)

    @property
    def kind(self) -> str:
        return self.format.name

    @property
    def frame(self) -> str:
        """Of the coordinates in the files; `load` returns internal ones."""
        return self.format.frame

    @property
    def has_flow(self) -> bool:
        """Whether `load` returns the true flow."""
        return self.format.has_flow and self.labels

    def without_labels(self) -> SceneDataset:
        """The same scenes without their true flow."""
        return replace(self, labels=False)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Scene:
        """Read one scene. Raises: DataError: missing or damaged. DiskError: no permission."""
        return self._labeled(self.format.load(self.root, self.split, self.names[index]))

    def sample(self, index: int, points: int, generator: np.random.Generator, least: int | None = None) -> Scene:
        """One scene with `points` points in each cloud. Args: least: as `sample_points`. Raises: as `load`."""
        return sample_points(self.load(index), points, generator, least)

    def identity(self) -> str:
        """sha256 of file names, sizes and contents (sampled). Raises: DataError: missing files. DiskError."""
        with disk_errors(self.root):
            sizes = self.format.split_sizes(self.root, self.split, self.names)
        return contents_sha256(self.root, sizes, *self.format.reading)

    def _labeled(self, scene: Scene) -> Scene:
        """The scene, without its true flow if labels are withheld."""
        return scene if self.has_flow else replace(scene, flow=None, valid=None)


@dataclass(frozen=True)
class DataIdentity:
    """What a run records about its data."""

    kind: str  # "subset" or the format
    source_kind: str  # the format
    path: str  # as given by the user
    train_scenes: int
    val_scenes: int
    fraction: float | None  # this, method and seed: how a subset was chosen
    method: str | None
    seed: int | None
    sha256: str  # of `subset.json`, all file names and sizes, and blocks of the contents
    written: str = ""  # when the newest file was written


@dataclass(frozen=True)
class Dataset:
    """A dataset that was recognized. Its scenes are listed once, when they are first needed."""

    path: Path  # as given by the user
    root: Path  # `path`, or one of the usual names in it
    format: Format

    @functools.cached_property
    def scenes(self) -> SceneNames:
        """Sorted scene names of every stored split. Raises: as `Format.list_scenes`."""
        with disk_errors(self.root):
            return self._list_scenes()

    def within(self, region: Region) -> Dataset:
        """As `Format.within`."""
        return replace(self, format=self.format.within(region))

    def splits(self) -> tuple[str, ...]:
        """The splits that together hold every scene once, as `open` takes them."""
        if "all" in self.format.splits:
            return ("all",)
        return tuple(split for split, names in self.scenes.items() if names and split in self.format.splits)

    def open(self, split: str) -> SceneDataset:
        """The scenes of a split. Raises: UsageError: no such split. DataError: no scenes. DiskError."""
        if split not in self.format.splits:
            known = ", ".join(self.format.splits)
            raise UsageError(f"split {printable(split)}: {self.format.name} has no such split; use one of {known}")
        if split == "all":
            names = tuple(sorted(name for names in self.scenes.values() for name in names))
        else:
            names = self.scenes.get(split) or self.scenes.get(stored_split(split), ())
        dataset = self._open(split, names)
        if not dataset.names:
            raise DataError(f"{printable(self.root)}: no {split} scenes; check the path")
        return dataset

    @functools.cached_property
    def identity(self) -> DataIdentity:
        """What a run records about its data; reads blocks of files. Raises: DataError: missing files. DiskError."""
        with disk_errors(self.root):
            sizes = self.format.file_sizes(self.root, self.scenes)
        return self._identified(self.format.name, sizes, *self.format.reading)

    def _identified(
        self,
        kind: str,
        sizes: Mapping[str, int],
        *more: str,
        fraction: float | None = None,
        method: str | None = None,
        seed: int | None = None,
    ) -> DataIdentity:
        train, test = len(self.scenes.get("train", ())), len(self.scenes.get("val") or self.scenes.get("test", ()))
        how = str(self.path), train, test, fraction, method, seed
        sha256, written = contents_sha256(self.root, sizes, *more), newest_change(self.root, sizes)
        return DataIdentity(kind, self.format.name, *how, sha256, written)

    def _list_scenes(self) -> SceneNames:
        return self.format.list_scenes(self.root)

    def _open(self, split: str, names: tuple[str, ...]) -> SceneDataset:
        return self.format.open(self.root, split, names)


def stored_split(split: str) -> str:
    """The stored split of a requested one: the validation scenes are the ones to test on."""
    return "val" if split == "test" else split


def in_one_line(faults: Sequence[str], separator: str = ", ") -> str:
    """The first ten faults, and the number of the others."""
    more = len(faults) - _NAMED_IN_ERRORS
    return separator.join(faults[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
