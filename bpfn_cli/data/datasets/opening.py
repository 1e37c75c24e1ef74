# SPDX-License-Identifier: MIT
"""One protocol for the datasets that train and test a network, and the readers behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bpfn_cli.data.datasets.argoverse2 import LOG_KIND, open_logs
from bpfn_cli.data.datasets.kitti import evaluation_scenes, kitti_camera
from bpfn_cli.data.datasets.layout import Layout, file_sizes, find_layout, fingerprint, scene_files, scene_names
from bpfn_cli.data.datasets.occluded import FLYINGTHINGS3D_OCCLUDED, OCCLUDED_KINDS, OccludedScenes, of_split
from bpfn_cli.data.datasets.packed import MOST_PACKED_BYTES, PackedScenes, read_index
from bpfn_cli.data.datasets.scenes import NamedScenes
from bpfn_cli.data.files.npy import open_regular, read_points
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.sampling import sample_points
from bpfn_cli.data.subset.manifest import MANIFEST, SubsetManifest, packed_name
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors, sha256_of
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, FLYINGTHINGS3D_CAMERA, MAX_DEPTH_M, Camera, Scene

KITTI_GROUND_M = -1.4  # points below it in both clouds are ground

_SPLIT_FOLDERS = {"train": "train", "val": "val", "test": "val"}
_SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test", "all": "test"}


class SceneDataset(Protocol):
    """Scenes of one split of one dataset, in sorted order of their names."""

    @property
    def kind(self) -> str:
        """flyingthings3d, kitti or synthetic."""

    @property
    def root(self) -> Path:
        """The folder that holds the scenes, or their splits."""

    @property
    def split(self) -> str:
        """As it was asked for."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scenes."""

    def __len__(self) -> int:
        """How many scenes."""

    def load(self, index: int) -> Scene:
        """Read one scene. Raises: DataError: missing or damaged. DiskError: not permitted."""


@runtime_checkable
class DrawsPoints(Protocol):
    """A `SceneDataset` that need not read a scene whole to draw points from it."""

    def sample(self, index: int, points: int, generator: np.random.Generator) -> Scene:
        """One scene with `points` of each cloud, as `sample_points` draws them. Raises: as `SceneDataset.load`."""


def sample_scene(dataset: SceneDataset, index: int, points: int, generator: np.random.Generator) -> Scene:
    """One scene with `points` of each cloud. Raises: as `SceneDataset.load`."""
    if isinstance(dataset, DrawsPoints):
        return dataset.sample(index, points, generator)
    return sample_points(dataset.load(index), points, generator)


@dataclass(frozen=True)
class FlyingThings3DScenes(NamedScenes):
    """FlyingThings3D as HPLFlowNet prepared it, or scenes written like it.

    Source: HPLFlowNet, CVPR 2019, non-occluded points; both clouds within 35 m.
    """

    def load(self, index: int) -> Scene:
        """See `SceneDataset`. Rows of pc1 and pc2 correspond."""
        folder = self.root / _SPLIT_FOLDERS[self.split] / self.names[index]
        pc1, pc2 = (cloud * FLYINGTHINGS3D_AXES for cloud in _read_pair(folder))
        return _scene(folder, pc1, pc2, _is_near(pc1, pc2), FLYINGTHINGS3D_CAMERA)


@dataclass(frozen=True)
class KittiScenes(NamedScenes):
    """KITTI Scene Flow 2015, non-occluded points without ground, both clouds within 35 m.

    Source: HPLFlowNet, CVPR 2019.
    """

    def load(self, index: int) -> Scene:
        """See `SceneDataset`. Rows of pc1 and pc2 correspond."""
        name = self.names[index]
        pc1, pc2 = _read_pair(self.root / name)
        ground = (pc1[:, 1] < KITTI_GROUND_M) & (pc2[:, 1] < KITTI_GROUND_M)
        return _scene(self.root / name, pc1, pc2, ~ground & _is_near(pc1, pc2), kitti_camera(int(name)))


def open_dataset(path: Path, split: str) -> SceneDataset:
    """The scenes of one split; the kind is told by what lies in `path`.

    Args:
        path: the dataset, a subset, or the folder that holds the dataset under its usual name.
        split: FlyingThings3D and synthetic: train, val, or test (the field tests on the `val` folder).
            KITTI: test (those of the 142 evaluation scenes that are there), train (the other 58) or all.
            KITTI with occlusion and LiDAR logs: test (all there are) or all.
    Raises:
        UsageError: no such split.
        DataError: no dataset, no scenes, names that cannot be, or a damaged `subset.json`.
        DiskError: not permitted.
    """
    layout = find_layout(path)
    if layout.kind == "kitti":
        dataset: SceneDataset = _kitti(layout, split)
    elif layout.kind in {*OCCLUDED_KINDS, LOG_KIND}:
        dataset = _of_files(layout, split)
    else:
        dataset = _flyingthings3d(layout, split)
    if not dataset.names:
        raise DataError(f"{printable(layout.root)}: no {split} scenes; check the path")
    return dataset


def splits_of(layout: Layout) -> tuple[str, ...]:
    """The splits of a dataset that hold scenes, as `open_dataset` names them; all its scenes are in them.

    Raises: as `open_dataset`.
    """
    if layout.kind == FLYINGTHINGS3D_OCCLUDED:
        names = tuple(path.stem for path in scene_files(layout))
        return tuple(split for split in SPLITS if of_split(names, layout.kind, split))
    if layout.kind in {"kitti", *OCCLUDED_KINDS, LOG_KIND}:
        return ("all",)
    return tuple(split for split, names in _all_scenes(layout).items() if names)


def describe(dataset: SceneDataset) -> str:
    """One line for people: kind, number of scenes, how they were chosen, where they lie."""
    count = f"{len(dataset):,}"
    if dataset.kind == "kitti":
        evaluation = len(evaluation_scenes())
        if dataset.split == "test":
            of_all = "" if len(dataset) == evaluation else f"of the {evaluation} "
            count = f"{count} {of_all}evaluation"
        return f"kitti, {count} scenes in {printable(dataset.root)}"
    manifest = find_layout(dataset.root).manifest
    chosen = ""
    if manifest and (dataset.split == "train" or manifest.task.options.val_fraction is not None):
        chosen = f" ({manifest.task.options.label(_SPLIT_FOLDERS[dataset.split])})"
    return f"{dataset.kind}, {count} {_SPLIT_WORDS[dataset.split]} scenes{chosen} in {printable(dataset.root)}"


def data_identity(path: Path) -> dict[str, Any]:
    """What a run records about the data it saw; looks at names and sizes, reads no scene.

    Returns: kind (subset or the kind itself), source_kind, path, train_scenes, val_scenes; of a subset
        fraction, method and seed, else None; sha256 of `subset.json`, or of all file names and sizes.
    Raises: as `open_dataset`; DataError also for missing files.
    """
    layout = find_layout(path)
    if layout.kind in {*OCCLUDED_KINDS, LOG_KIND}:
        return _identity_of_files(layout, path)
    scenes = _all_scenes(layout)
    if layout.manifest:
        _check_packed_files(layout.root, layout.manifest)
    options = layout.manifest.task.options if layout.manifest else None
    counts = {split: len(names) for split, names in scenes.items()}
    if layout.kind == "kitti":
        tested = sum(map(_is_evaluated, scenes[""]))
        counts = {"train": len(scenes[""]) - tested, "val": tested}
    with disk_errors(layout.root):
        sha256 = sha256_of(layout.root / MANIFEST) if layout.manifest else fingerprint(file_sizes(layout.root, scenes))
    return {
        "kind": "subset" if options else layout.kind,
        "source_kind": layout.kind,
        "path": str(path),
        "train_scenes": counts.get("train", 0),
        "val_scenes": counts.get("val", 0),
        "fraction": options.fraction if options else None,
        "method": options.method if options else None,
        "seed": options.seed if options else None,
        "sha256": sha256,
    }


def _check_packed_files(root: Path, manifest: SubsetManifest) -> None:
    """Raises: DataError: a packed split is missing or of another size."""
    for name, record in manifest.packed.items():
        with open_regular(root / name, MOST_PACKED_BYTES) as (_, size):
            if size != record.bytes:
                raise DataError(
                    f"{printable(root / name)}: {size} bytes found, {record.bytes} expected; fetch it again"
                )


def _identity_of_files(layout: Layout, path: Path) -> dict[str, Any]:
    files = scene_files(layout)
    counts = dict.fromkeys(("train", "val"), 0)
    if layout.kind == FLYINGTHINGS3D_OCCLUDED:
        names = tuple(file.stem for file in files)
        counts = {split: len(of_split(names, layout.kind, split)) for split in counts}
    else:
        counts["val"] = len(files)
    with disk_errors(layout.root):
        sizes = {file.name: file.stat().st_size for file in files}
    return {
        "kind": layout.kind,
        "source_kind": layout.kind,
        "path": str(path),
        "train_scenes": counts["train"],
        "val_scenes": counts["val"],
        "fraction": None,
        "method": None,
        "seed": None,
        "sha256": fingerprint(sizes),
    }


def split_identity(dataset: SceneDataset) -> str:
    """sha256 of the names and file sizes of the scenes of one split: equal for a subset and the whole it is of.

    Of a packed split, of its names and their numbers of points.

    Raises: DataError: files are missing. DiskError: not permitted.
    """
    if isinstance(dataset, PackedScenes):
        return dataset.identity()
    if dataset.kind in {*OCCLUDED_KINDS, LOG_KIND}:
        of_files = {path.stem: path.stat().st_size for path in scene_files(find_layout(dataset.root))}
        return fingerprint({name: of_files.get(name.split("/")[0], 0) for name in dataset.names})
    folder = "" if dataset.kind == "kitti" else _SPLIT_FOLDERS[dataset.split]
    with disk_errors(dataset.root):
        return fingerprint(file_sizes(dataset.root, {folder: dataset.names}))


def check_pair(scene: Path, pc1: np.ndarray, pc2: np.ndarray) -> None:
    """Raises: DataError: rows of the two clouds cannot correspond."""
    if len(pc1) != len(pc2):
        raise DataError(
            f"{printable(scene)}: pc1 has {len(pc1)} points and pc2 {len(pc2)}, "
            "but their rows must correspond; prepare it again"
        )


def _flyingthings3d(layout: Layout, split: str) -> FlyingThings3DScenes | PackedScenes:
    if split not in _SPLIT_FOLDERS:
        raise UsageError(f"split {printable(split)}: {layout.kind} has train, val and test")
    if layout.manifest and layout.manifest.packed:
        return _packed(layout, layout.manifest, split)
    names = scene_names(layout, _SPLIT_FOLDERS[split])
    return FlyingThings3DScenes(layout.kind, layout.root, split, names)


def _of_files(layout: Layout, split: str) -> SceneDataset:
    """Datasets without a folder a scene."""
    allowed = set(_SPLIT_FOLDERS) if layout.kind == FLYINGTHINGS3D_OCCLUDED else {"test", "all"}
    if split not in allowed:
        raise UsageError(f"split {printable(split)}: {layout.kind} has {' and '.join(sorted(allowed))}")
    files = scene_files(layout)
    if layout.kind == LOG_KIND:
        return open_logs(layout.root, files, split)
    names = of_split(tuple(path.stem for path in files), layout.kind, split)
    return OccludedScenes(layout.kind, layout.root, split, names)


def _packed(layout: Layout, manifest: SubsetManifest, split: str) -> PackedScenes:
    folder = _SPLIT_FOLDERS[split]
    file = layout.root / packed_name(folder)
    if file.name not in manifest.packed:
        return PackedScenes(layout.kind, layout.root, split, (), file, 0, np.zeros(1, np.int64))
    names, first_byte, offsets = read_index(file)
    if names != manifest.names()[folder]:
        raise DataError(f"{printable(file)}: holds other scenes than {MANIFEST} names; repeat bpfn subset with --force")
    return PackedScenes(layout.kind, layout.root, split, names, file, first_byte, offsets)


def _kitti(layout: Layout, split: str) -> KittiScenes:
    if split not in {"train", "test", "all"}:
        raise UsageError(f"split {printable(split)}: KITTI has others; use test (the evaluation scenes), train or all")
    names = scene_names(layout)
    if split != "all":
        names = tuple(name for name in names if _is_evaluated(name) == (split == "test"))
    return KittiScenes("kitti", layout.root, split, names)


def _is_evaluated(name: str) -> bool:
    return int(name) in set(evaluation_scenes())


def _all_scenes(layout: Layout) -> dict[str, tuple[str, ...]]:
    if layout.kind == "kitti":
        return {"": scene_names(layout)}
    promised = layout.manifest.files if layout.manifest else {}
    if layout.manifest and layout.manifest.packed:
        return {split: tuple(sorted(scenes)) for split, scenes in promised.items()}
    splits = [split for split in SPLITS if promised.get(split) or (layout.root / split).is_dir()]
    return {split: scene_names(layout, split) for split in splits}


def _read_pair(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    pc1, pc2 = (read_points(folder / cloud) for cloud in CLOUDS)
    check_pair(folder, pc1, pc2)
    return pc1, pc2


def _is_near(pc1: np.ndarray, pc2: np.ndarray) -> np.ndarray:
    return (pc1[:, 2] < MAX_DEPTH_M) & (pc2[:, 2] < MAX_DEPTH_M)


def _scene(folder: Path, pc1: np.ndarray, pc2: np.ndarray, keep: np.ndarray, camera: Camera) -> Scene:
    if not keep.any():
        raise DataError(
            f"{printable(folder)}: none of {len(keep)} points is left after the cuts "
            f"({MAX_DEPTH_M:g} m, and the ground of KITTI); are the axes those of the format?"
        )
    if not keep.all():  # most scenes were cut when they were prepared
        pc1, pc2 = pc1[keep], pc2[keep]
    return Scene(folder.name, pc1, pc2, pc2 - pc1, camera)
