# SPDX-License-Identifier: MIT
"""KITTI Scene Flow 2015: the evaluation scenes and the cameras."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bpfn_cli.data.files.npy import read_file
from bpfn_cli.errors import DataError, printable
from bpfn_cli.structures import Camera


def evaluation_scenes() -> tuple[int, ...]:
    """The 142 of the 200 training scenes that papers report on."""
    return tuple(_table()["evaluation_scenes"])


def baseline_m() -> float:
    """Distance of the two cameras, metres."""
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


def read_calibration(path: Path) -> Camera:
    """The left color camera, from `P_rect_02` of a `calib_cam_to_cam` file.

    Raises: DataError: missing, or without a rectified P_rect_02. DiskError: not permitted.
    """
    return parse_calibration(read_file(path), printable(path))


def parse_calibration(content: bytearray, name: str) -> Camera:
    """As `read_calibration`, from the bytes of a file; `name` stands at the head of errors."""
    text = content.decode("ascii", "replace")
    values = [line.partition(":")[2].split() for line in text.splitlines() if line.startswith("P_rect_02:")]
    try:
        (matrix,) = values
        return camera_from_projection([float(value) for value in matrix])
    except ValueError as error:
        raise DataError(f"{name}: no rectified P_rect_02 of 12 numbers; fetch the file again") from error


@functools.cache
def _table() -> dict[str, Any]:
    text = resources.files("bpfn_cli.resources").joinpath("kitti.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table
