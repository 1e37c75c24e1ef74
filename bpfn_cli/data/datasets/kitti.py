# SPDX-License-Identifier: MIT
"""KITTI Scene Flow 2015 as prepared by HPLFlowNet (CVPR 2019): points visible in both frames; and cameras."""

import functools
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bpfn_cli.data.datasets.base import Format, SceneNames
from bpfn_cli.data.datasets.folders import cut_scene, file_sizes, list_scenes, read_pair
from bpfn_cli.data.names import CLOUDS
from bpfn_cli.errors import DataError, printable
from bpfn_cli.structures import Camera, Scene

GROUND_M = -1.4  # points below this height in both clouds are ground

_SCENE_NAME = re.compile(r"000[01][0-9]{2}")


class Kitti(Format):
    """`NNNNNN/{pc1,pc2}.npy`, without ground; the scenes that are not evaluated can be trained on."""

    name = "kitti"
    title = "KITTI"
    layout = "NNNNNN/pc1.npy"
    folders = ("KITTI_processed_occ_final", "kitti_processed")
    raw_folders = ("training/disp_occ_0",)
    splits = ("train", "test", "all")

    def recognizes(self, root: Path) -> bool:
        return root.name in self.folders or any((entry / CLOUDS[0]).exists() for entry in root.iterdir())

    def list_scenes(self, root: Path) -> SceneNames:
        names, _ = list_scenes(root)
        for name in names:
            if not _SCENE_NAME.fullmatch(name):
                other = "for FlyingThings3D, give the folder that holds train/ and val/"
                fault = f"{printable(name)} is not a KITTI scene; names have 6 digits, 000000 to 000199 ({other})"
                raise DataError(f"{printable(root)}: {fault}")
        test = tuple(name for name in names if int(name) in evaluation_scenes())
        return {"train": tuple(name for name in names if name not in test), "test": test}

    def load(self, root: Path, split: str, name: str) -> Scene:
        pc1, pc2 = read_pair(root / name)
        ground = (pc1[:, 1] < GROUND_M) & (pc2[:, 1] < GROUND_M)
        return cut_scene(root / name, pc1, pc2, kitti_camera(int(name)), ~ground)

    def file_sizes(self, root: Path, scenes: SceneNames) -> dict[str, int]:
        return file_sizes(root, {"": [name for names in scenes.values() for name in names]})

    def label(self, split: str, count: int) -> str:
        if split != "test":
            return f"{count} scenes"
        evaluated = len(evaluation_scenes())
        return f"{count} {'' if count == evaluated else f'of the {evaluated} '}evaluation scenes"


def evaluation_scenes() -> tuple[int, ...]:
    """The 142 of the 200 training scenes that papers evaluate on."""
    return tuple(_table()["evaluation_scenes"])


def baseline_m() -> float:
    """Distance between the two cameras in metres."""
    return float(_table()["baseline_m"])


def kitti_camera(scene: int) -> Camera:
    """The left color camera of training scene 0-199. Raises: DataError: no such scene."""
    for entry in _table()["calibration"]:
        if entry["first"] <= scene <= entry["last"]:
            return camera_from_projection(entry["P_rect_02"])
    raise DataError(f"KITTI scene {scene}: scenes 0 to {_table()['scenes'] - 1} have a known calibration")


def camera_from_projection(matrix: Sequence[float]) -> Camera:
    """The camera of a 3x4 projection (row major, x right, y down) for points with x left and y up.

    Raises: ValueError: not the projection of a rectified camera with square pixels.
    """
    p00, p01, cx, tx, p10, p11, cy, ty, *last_row, tz = matrix
    rectified = p00 > 0 and p11 == p00 and p01 == p10 == 0 and last_row == [0, 0, 1]
    if not rectified or not all(math.isfinite(value) for value in matrix):
        raise ValueError("not a rectified projection")
    return Camera(focal=-p00, cx=cx, cy=cy, tx=tx, ty=ty, tz=tz)


def parse_calibration(content: bytearray, name: str) -> Camera:
    """The left color camera, from `P_rect_02` of a `calib_cam_to_cam` file. Raises: DataError: no such camera."""
    lines = content.decode("ascii", "replace").splitlines()
    try:
        (matrix,) = (line.partition(":")[2].split() for line in lines if line.startswith("P_rect_02:"))
        return camera_from_projection([float(value) for value in matrix])
    except ValueError as error:
        if any(line.startswith("P2:") for line in lines):
            other = "the calibration of KITTI odometry or object detection (P0 to P3)"
            raise DataError(f"{name}: {other}; give calib_cam_to_cam of scene flow 2015") from error
        raise DataError(f"{name}: no rectified P_rect_02 of 12 numbers; download the file again") from error


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((resources.files("bpfn_cli.resources") / "kitti.json").read_text("utf-8"))
    return table
