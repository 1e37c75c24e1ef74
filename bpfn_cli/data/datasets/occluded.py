# SPDX-License-Identifier: MIT
"""Scenes with occlusion, one `.npz` file each, as FlowNet3D prepared FlyingThings3D and KITTI.

Points of the first cloud that are hidden in the second have a flow nobody knows: `Scene.valid` is False there.
Source: FlowNet3D, CVPR 2019.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.data.datasets.scenes import NamedScenes
from bpfn_cli.data.files.npy import check_points, read_npz
from bpfn_cli.errors import DataError, printable
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA, MAX_DEPTH_M, Scene

FLYINGTHINGS3D_OCCLUDED, KITTI_OCCLUDED = "flyingthings3d_occluded", "kitti_occluded"
OCCLUDED_KINDS = (FLYINGTHINGS3D_OCCLUDED, KITTI_OCCLUDED)
ENDING = ".npz"

_THINGS_NAME = re.compile(r"(TRAIN|TEST)_[ABC]_[0-9]{4}_(left|right)_[0-9]{4}-0")
_KITTI_NAME = re.compile(r"[0-9]{6}")
_THINGS_SPLITS = {"train": "TRAIN", "val": "TEST", "test": "TEST"}

# NaN in the first; in the others no point is visible in both frames.
BAD_SCENES = frozenset(
    [f"TRAIN_{name}-0" for name in ("C_0140_left_0006",)]
    + [
        f"TRAIN_{name}-0"
        for name in (
            "A_0364_left_0008",
            "A_0364_left_0009",
            "A_0658_left_0014",
            "B_0053_left_0009",
            "B_0053_left_0011",
            "B_0424_left_0011",
            "B_0609_right_0010",
        )
    ]
    + [
        f"TEST_{name}-0"
        for name in ("A_0149_right_0012", "A_0149_right_0013", "A_0123_right_0008", "A_0123_right_0009")
    ]
)


@dataclass(frozen=True)
class OccludedScenes(NamedScenes):
    """FlyingThings3D or KITTI with occlusion, a `SceneDataset`."""

    def load(self, index: int) -> Scene:
        """See `SceneDataset`. Rows of pc1 and pc2 do not correspond."""
        read = _read_things if self.kind == FLYINGTHINGS3D_OCCLUDED else _read_kitti
        return read(self.root / f"{self.names[index]}{ENDING}")


def occluded_kind(stem: str) -> str | None:
    """The kind of a scene file of this name without its ending; None: of no such kind."""
    if _THINGS_NAME.fullmatch(stem):
        return FLYINGTHINGS3D_OCCLUDED
    return KITTI_OCCLUDED if _KITTI_NAME.fullmatch(stem) else None


def of_split(names: tuple[str, ...], kind: str, split: str) -> tuple[str, ...]:
    """Those of a split that are known to be good; KITTI has but one split."""
    if kind == FLYINGTHINGS3D_OCCLUDED:
        names = tuple(name for name in names if name.startswith(_THINGS_SPLITS[split]))
    return tuple(name for name in names if name not in BAD_SCENES)


def _read_things(path: Path) -> Scene:
    """On disk x right, y up, z forward."""
    arrays = read_npz(path, ["points1", "points2", "flow", "valid_mask1"])
    axes = np.array([-1, 1, 1], np.float32)
    pc1, pc2, flow = (check_points(arrays[name], path, name) * axes for name in ("points1", "points2", "flow"))
    valid = arrays["valid_mask1"]
    if len(flow) != len(pc1) or valid.shape != (len(pc1),):
        raise DataError(
            f"{printable(path)}: points1 has {len(pc1)} rows, flow {len(flow)} and valid_mask1 {valid.shape}; "
            "one row a point expected"
        )
    return _scene(path, Scene(path.stem, pc1, pc2, flow, FLYINGTHINGS3D_CAMERA, valid != 0))


def _read_kitti(path: Path) -> Scene:
    """On disk x forward, y left, z up."""
    arrays = read_npz(path, ["pos1", "pos2", "gt"])
    pc1, pc2, flow = (check_points(arrays[name], path, name)[:, [1, 2, 0]] for name in ("pos1", "pos2", "gt"))
    if len(flow) != len(pc1):
        raise DataError(f"{printable(path)}: pos1 has {len(pc1)} rows and gt {len(flow)}; one row a point expected")
    return _scene(path, Scene(path.stem, pc1, pc2, flow))


def _scene(path: Path, scene: Scene) -> Scene:
    near1, near2 = scene.pc1[:, 2] < MAX_DEPTH_M, scene.pc2[:, 2] < MAX_DEPTH_M
    valid = None if scene.valid is None else scene.valid[near1]
    if not near1.any() or not near2.any() or (valid is not None and not valid.any()):
        raise DataError(f"{printable(path)}: no point with a known flow within {MAX_DEPTH_M:g} m; leave the scene out")
    pc1, flow = np.ascontiguousarray(scene.pc1[near1]), np.ascontiguousarray(scene.flow[near1])
    return Scene(scene.name, pc1, np.ascontiguousarray(scene.pc2[near2]), flow, scene.camera, valid)
