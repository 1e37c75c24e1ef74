# SPDX-License-Identifier: MIT
"""Datasets: one interface, one file per format, and here the list of the formats and the search for a dataset."""

import os
from collections.abc import Collection
from pathlib import Path

from bpfn_cli.choices import Region
from bpfn_cli.data.datasets.base import Dataset, Format, SceneDataset
from bpfn_cli.data.datasets.driving import Driving
from bpfn_cli.data.datasets.flyingthings3d import FlyingThings3D, Synthetic, SyntheticDriving
from bpfn_cli.data.datasets.folders import has_splits
from bpfn_cli.data.datasets.kitti import Kitti
from bpfn_cli.data.datasets.lidar_logs import LidarLogs
from bpfn_cli.data.datasets.occluded import OccludedFlyingThings3D, OccludedKitti
from bpfn_cli.data.datasets.pairs import Pairs, find_pairs
from bpfn_cli.data.datasets.subset import Subset
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.records import OutputRecord
from bpfn_cli.data.subset.manifest import MANIFEST, packed_name, read_manifest
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors

# The first format that recognizes a folder wins, so the special ones come before the general ones.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        SyntheticDriving(),
        Synthetic(),
        FlyingThings3D(),
        OccludedFlyingThings3D(),
        Kitti(),
        OccludedKitti(),
        LidarLogs(),
        Driving(),
        Pairs(),
    )
}

_RECORDS = (MANIFEST, "synthetic.json", "prepared.json")  # written last; NAME.partial exists until then


class DamagedDatasetError(DataError):
    """A folder that holds a dataset, but not a whole one. root: that folder."""

    def __init__(self, message: str, root: Path):
        super().__init__(message)
        self.root = root


def find_dataset(path: Path, formats: Collection[str] | None = None) -> Dataset:
    """The dataset in `path`, or in one of the usual folders inside it.

    Args: formats: names of the formats to look for; None: all.
    Raises: DamagedDatasetError: an unfinished one. DataError: none, several, or only a raw download. DiskError.
    """
    wanted = [format for name, format in FORMATS.items() if formats is None or name in formats]
    with disk_errors(path):
        if not path.is_dir():
            raise DataError(f"{printable(path)}: no such folder; check the path")
        inside = [path / folder for format in wanted for folder in format.folders]
        for roots in ([path] if has_splits(path) or _is_packed(path) else [], inside, [path]):
            found = [dataset for root in roots if (dataset := _recognize(path, root, wanted))]
            if len(found) > 1:
                both = " and ".join(dataset.root.name for dataset in found)
                raise DataError(f"{printable(path)}: contains both {both}; name one of them")
            if found:
                return found[0]
        raise DataError(f"{printable(path)}: {_nothing_found(path, wanted)}")


def open_dataset(path: Path, split: str, region: Region | None = None) -> SceneDataset:
    """The scenes of one split of the dataset in `path`: train, val or test; for KITTI and LiDAR logs also all.

    Args: region: as of `Format`; None: the usual one.
    Raises: UsageError: no such split, or no choice of regions. DataError: as `find_dataset`, no scenes, or invalid
        names. DiskError.
    """
    dataset = find_dataset(path)
    return (dataset.within(region) if region else dataset).open(split)


def find_data(path: Path, kind: str = "auto", frame: str | None = None, remove_ground: bool = False) -> Dataset:
    """A dataset, or the user's own pairs of clouds, which `kind` "pairs" or a frame asks for.

    Raises: UsageError: a frame or ground removal for another format. Others as `find_dataset` and `find_pairs`.
    """
    if kind == "pairs" or (kind == "auto" and frame is not None):
        return find_pairs(path, frame, remove_ground)
    if frame is not None or remove_ground:
        key = f"data.frame {printable(frame)}" if frame is not None else "data.remove_ground"
        raise UsageError(
            f"{key}: only for clouds of your own (data.kind: pairs); datasets have their own axes and cuts"
        )
    return find_dataset(path)


def describe(dataset: SceneDataset) -> str:
    """One line: format, scenes and folder."""
    return f"{dataset.kind}, {dataset.label} in {printable(dataset.root)}"


def title_of(kind: str) -> str:
    """The name of a format in reports; an unknown one is kept."""
    return FORMATS[kind].title if kind in FORMATS else kind


def is_synthetic_kind(kind: str) -> bool:
    """Whether results on this format must not be compared with published ones."""
    return kind in FORMATS and FORMATS[kind].is_synthetic


def sequence_of(kind: str, name: str) -> int | str:
    """As `Format.sequence`; in an unknown format every scene is its own sequence."""
    return FORMATS[kind].sequence(name) if kind in FORMATS else name


def _recognize(path: Path, root: Path, wanted: list[Format]) -> Dataset | None:
    if not root.is_dir() or _raw_format(root):
        return None
    if os.path.lexists(root / MANIFEST):
        try:
            manifest = read_manifest(root / MANIFEST)
        except DataError as error:
            raise DamagedDatasetError(str(error), root) from error
        return Subset(path, root, FORMATS[manifest.task.source_kind], manifest)
    if any(OutputRecord(root, record).is_unfinished for record in _RECORDS):
        raise DamagedDatasetError(f"{printable(root)}: unfinished; repeat the command that started it", root)
    if _is_packed(root):
        raise DamagedDatasetError(f"{printable(root)}: packed scenes without their {MANIFEST}; copy it too", root)
    return next((Dataset(path, root, format) for format in wanted if format.recognizes(root)), None)


def _is_packed(root: Path) -> bool:
    return any((root / packed_name(split)).exists() for split in SPLITS)


def _raw_format(path: Path) -> Format | None:
    raw = (format for format in FORMATS.values() if any((path / folder).is_dir() for folder in format.raw_folders))
    return next(raw, None)


def _nothing_found(path: Path, wanted: list[Format]) -> str:
    if raw := _raw_format(path):
        return f"a raw download; run `bpfn prepare {raw.name}` on it first"
    layouts = ", ".join(f"{format.layout} ({format.title})" for format in wanted)
    folders = " or ".join(folder for format in wanted for folder in format.folders)
    return f"no dataset; looked for {layouts}, or a folder named {folders}"
