# SPDX-License-Identifier: MIT
"""FlyingThings3D and KITTI with occlusion, as prepared by FlowNet3D: one `.npz` file a scene.

The flow of points that are hidden in the second frame is unknown: `Scene.valid` is False there. Rows of pc1 and pc2 do
not correspond. Source: FlowNet3D, CVPR 2019.
"""

import re
from pathlib import Path

import numpy as np

from bpfn_cli.data.datasets.base import Format, SceneNames
from bpfn_cli.data.datasets.folders import visible_files
from bpfn_cli.data.files.npy import read_npz
from bpfn_cli.data.files.points import check_points
from bpfn_cli.data.names import check_scene_name
from bpfn_cli.errors import DataError, printable
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA, MAX_DEPTH_M, Scene

# The first holds NaN; in the others no point is visible in both frames.
_BAD_SCENES = """
    TRAIN_C_0140_left_0006-0 TRAIN_A_0364_left_0008-0 TRAIN_A_0364_left_0009-0 TRAIN_A_0658_left_0014-0
    TRAIN_B_0053_left_0009-0 TRAIN_B_0053_left_0011-0 TRAIN_B_0424_left_0011-0 TRAIN_B_0609_right_0010-0
    TEST_A_0149_right_0012-0 TEST_A_0149_right_0013-0 TEST_A_0123_right_0008-0 TEST_A_0123_right_0009-0
"""
BAD_SCENES = frozenset(_BAD_SCENES.split())
_LAST_FRAME = 15  # of FlowNet3D's scenes; the first one is 6


class _Occluded(Format):
    """Scenes in `NAME.npz`, where NAME matches `pattern`."""

    pattern = ""

    def recognizes(self, root: Path) -> bool:
        return any(path.suffix == ".npz" and re.fullmatch(self.pattern, path.stem) for path in root.iterdir())

    def list_scenes(self, root: Path) -> SceneNames:
        names = tuple(path.stem for path in visible_files(root, (".npz",)))
        for name in names:
            if not re.fullmatch(self.pattern, check_scene_name(name, root)):
                fault = f"not the name of a {self.name} scene"
                raise DataError(f"{printable(root / name)}.npz: {fault}; move the file elsewhere")
        return self.split_scenes(names)

    def split_scenes(self, names: tuple[str, ...]) -> SceneNames:
        """The scenes of each stored split."""
        return {"test": names}

    def file_sizes(self, root: Path, scenes: SceneNames) -> dict[str, int]:
        return {f"{name}.npz": (root / f"{name}.npz").stat().st_size for names in scenes.values() for name in names}


class OccludedFlyingThings3D(_Occluded):
    """`{TRAIN,TEST}_A_NNNN_left_NNNN-0.npz` and the like; x right, y up, z forward."""

    name = "flyingthings3d_occluded"
    frame = "right,up,forward"
    title = "FlyingThings3D with occlusion"
    layout = "TRAIN_A_NNNN_left_NNNN-0.npz"
    has_hidden_flow = True
    pattern = r"(TRAIN|TEST)_[ABC]_[0-9]{4}_(left|right)_[0-9]{4}-0"

    def split_scenes(self, names: tuple[str, ...]) -> SceneNames:
        good = [name for name in names if name not in BAD_SCENES]
        return {
            "train": tuple(name for name in good if name.startswith("TRAIN")),
            "val": tuple(name for name in good if name.startswith("TEST")),
            "left out": tuple(name for name in names if name in BAD_SCENES),
        }

    def sequence(self, name: str) -> int | str:
        """Both cameras' frames 6 to 15 of a sequence; ten numbers in names that `bpfn prepare` made of other ones."""
        sequence, _, frame = name.removesuffix("-0").rsplit("_", 2)
        return f"{sequence}_{int(frame) // 10 if int(frame) > _LAST_FRAME else 0}"

    def load(self, root: Path, split: str, name: str) -> Scene:
        path = root / f"{name}.npz"
        arrays = read_npz(path, ["points1", "points2", "flow", "valid_mask1"])
        axes = np.array([-1, 1, 1], np.float32)
        pc1, pc2, flow = (check_points(arrays[key], path, key) * axes for key in ("points1", "points2", "flow"))
        valid = arrays["valid_mask1"]
        if len(flow) != len(pc1) or valid.shape != (len(pc1),):
            rows = f"points1 has {len(pc1)} rows, flow {len(flow)} and valid_mask1 {valid.shape}"
            raise DataError(f"{printable(path)}: {rows}; one row per point expected")
        return _cut(path, Scene(name, pc1, pc2, flow, FLYINGTHINGS3D_CAMERA, valid != 0))


class OccludedKitti(_Occluded):
    """`NNNNNN.npz`; x forward, y left, z up."""

    name = "kitti_occluded"
    frame = "lidar"
    title = "KITTI with occlusion"
    layout = "NNNNNN.npz"
    splits = ("test", "all")
    pattern = r"[0-9]{6}"

    def load(self, root: Path, split: str, name: str) -> Scene:
        path = root / f"{name}.npz"
        arrays = read_npz(path, ["pos1", "pos2", "gt"])
        pc1, pc2, flow = (check_points(arrays[key], path, key)[:, [1, 2, 0]] for key in ("pos1", "pos2", "gt"))
        if len(flow) != len(pc1):
            raise DataError(f"{printable(path)}: pos1 has {len(pc1)} rows and gt {len(flow)}; one per point expected")
        return _cut(path, Scene(name, pc1, pc2, flow))


def _cut(path: Path, scene: Scene) -> Scene:
    """The points of each cloud within 35 m."""
    near1, near2 = scene.pc1[:, 2] < MAX_DEPTH_M, scene.pc2[:, 2] < MAX_DEPTH_M
    valid = None if scene.valid is None else scene.valid[near1]
    if not near1.any() or not near2.any() or (valid is not None and not valid.any()):
        raise DataError(f"{printable(path)}: no point with known flow within {MAX_DEPTH_M:g} m; leave the scene out")
    pc1, pc2, flow = map(np.ascontiguousarray, (scene.pc1[near1], scene.pc2[near2], scene.truth[near1]))
    return Scene(scene.name, pc1, pc2, flow, scene.camera, valid, near1)
