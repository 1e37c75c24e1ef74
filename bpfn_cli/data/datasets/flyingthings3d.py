# SPDX-License-Identifier: MIT
"""FlyingThings3D as prepared by HPLFlowNet (CVPR 2019): points visible in both frames. And the synthetic scenes of
`bpfn synth`: the same layout, with a record."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from bpfn_cli.data.datasets.base import Format, SceneNames, stored_split
from bpfn_cli.data.datasets.folders import cut_scene, file_sizes, has_splits, list_scenes, read_pair
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.records import read_record
from bpfn_cli.structures import DRIVING_CAMERA, FLYINGTHINGS3D_AXES, FLYINGTHINGS3D_CAMERA, Camera, Scene

FLYINGTHINGS3D_FOLDER = "FlyingThings3D_subset_processed_35m"
RECORD = "synthetic.json"  # written last, so that it marks a finished dataset

_SCENES_PER_SEQUENCE = 10  # consecutive numbers; approximate where frames were left out


class FlyingThings3D(Format):
    """`{train,val}/NNNNNNN/{pc1,pc2}.npy`; x right, y up, z backward."""

    name = "flyingthings3d"
    frame = "flyingthings3d"
    title = "FlyingThings3D"
    layout = "train/ and val/ with NNNNNNN/pc1.npy"
    folders: ClassVar[tuple[str, ...]] = (FLYINGTHINGS3D_FOLDER,)
    raw_folders: ClassVar[tuple[str, ...]] = ("train/disparity", "val/disparity")
    camera: ClassVar[Camera] = FLYINGTHINGS3D_CAMERA

    def recognizes(self, root: Path) -> bool:
        return has_splits(root)

    def list_scenes(self, root: Path) -> SceneNames:
        return {split: list_scenes(root / split)[0] for split in SPLITS if (root / split).is_dir()}

    def load(self, root: Path, split: str, name: str) -> Scene:
        folder = root / stored_split(split) / name
        pc1, pc2 = (cloud * FLYINGTHINGS3D_AXES for cloud in read_pair(folder))
        return cut_scene(folder, pc1, pc2, self.camera)

    def file_sizes(self, root: Path, scenes: SceneNames) -> dict[str, int]:
        return file_sizes(root, scenes)

    def sequence(self, name: str) -> int | str:
        return int(name) // _SCENES_PER_SEQUENCE if name.isdecimal() else name


class Synthetic(FlyingThings3D):
    """`{train,val}/NNNNNNN/{pc1,pc2}.npy` and `synthetic.json`."""

    name = "synthetic"
    title = "synthetic"
    layout = f"train/ and val/ with {RECORD}"
    folders = ()
    raw_folders = ()
    is_synthetic = True
    sequence = Format.sequence  # every scene is drawn by itself

    def recognizes(self, root: Path) -> bool:
        return has_splits(root) and is_synthetic(root)


class SyntheticDriving(Synthetic):
    """The same with driving scenes, as seen by KITTI's camera."""

    name = "synthetic_driving"
    title = "synthetic driving"
    camera = DRIVING_CAMERA

    def recognizes(self, root: Path) -> bool:
        return super().recognizes(root) and _record(root).get("style") == "driving"


def is_synthetic(folder: Path) -> bool:
    """Whether `folder` is a finished dataset of `bpfn synth`. Raises: DataError: its record is damaged. DiskError."""
    return _record(folder).get("kind") == "synthetic"


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / RECORD
    return read_record(path, "make the synthetic scenes again") if os.path.lexists(path) else {}
