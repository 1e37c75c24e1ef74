# SPDX-License-Identifier: MIT
"""Raw downloads made by hand, and their preparation."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import png

from bpfn_cli.data.prepare.flyingthings3d import plan_flyingthings3d, plan_occluded_flyingthings3d
from bpfn_cli.data.prepare.kitti import plan_kitti
from bpfn_cli.data.prepare.runner import WHOLE, PrepareSummary, prepare
from bpfn_cli.parallel import Shard
from bpfn_cli.structures import Camera

CAMERA = Camera(focal=-100.0, cx=1.0, cy=0.5, tx=20.0, ty=-10.0, tz=0.5)
CALIBRATION = "P_rect_02: 100 0 1 20 0 100 0.5 -10 0 0 1 0.5\n"


def write_png(path: Path, rows: np.ndarray, bits: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = rows.ndim == 2
    buffer = io.BytesIO()
    writer = png.Writer(rows.shape[1], rows.shape[0], greyscale=grey, bitdepth=bits)
    writer.write(buffer, rows.reshape(rows.shape[0], -1).tolist())
    path.write_bytes(buffer.getvalue())


def kitti_tree(root: Path, scenes: int = 1, calibration: Path | None = None) -> Path:
    """Scenes of 3 x 2 pixels; in each, pixel (2, 1) is known, at 4 m and then at 2 m, moving by (3, -0.5)."""
    disparity1, disparity2 = np.zeros((2, 3), int), np.zeros((2, 3), int)
    flow = np.zeros((2, 3, 3), int)
    disparity1[1, 2], disparity2[1, 2], flow[1, 2] = 13.5 * 256, 27 * 256, [32768 + 3 * 64, 32768 - 32, 1]
    disparity1[0], disparity2[0], flow[0, :, 2] = [9, 9, 0], [0, 9, 9], [1, 0, 1]  # known in two maps only
    for scene in range(scenes):
        image = f"{scene:06d}_10.png"
        write_png(root / "training" / "disp_occ_0" / image, disparity1, 16)
        write_png(root / "training" / "disp_occ_1" / image, disparity2, 16)
        write_png(root / "training" / "flow_occ" / image, flow, 16)
        if calibration:
            text = calibration / "training" / "calib_cam_to_cam" / f"{scene:06d}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(CALIBRATION)
    return root


def write_pfm(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    path.write_bytes(f"Pf\n{width} {height}\n-1\n".encode() + values[::-1].astype("<f4").tobytes())


def write_flo(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = values.shape
    path.write_bytes(b"PIEH" + struct.pack("<ii", width, height) + values.astype("<f4").tobytes())


def flyingthings3d_scene(split: Path, name: str = "0000000", sign: int = -1, **changes: np.ndarray) -> None:
    """A row of 4 pixels, all visible: at 10 m and then 5 m, moving by (10.5, -21); `changes` replace maps."""
    maps = {
        "disparity": np.full((1, 4), 105.0),
        "change": np.full((1, 4), 105.0),
        "flow": np.full((1, 4, 2), [10.5, -21.0]),
        "disparity_occluded": np.zeros((1, 4), int),
        "flow_occluded": np.zeros((1, 4), int),
        **changes,
    }
    write_pfm(split / "disparity" / "left" / f"{name}.pfm", sign * maps["disparity"])
    write_pfm(split / "disparity_change" / "left" / "into_future" / f"{name}.pfm", sign * maps["change"])
    write_flo(split / "flow" / "left" / "into_future" / f"{name}.flo", maps["flow"])
    write_png(split / "disparity_occlusions" / "left" / f"{name}.png", maps["disparity_occluded"], 1)
    write_png(split / "flow_occlusions" / "left" / "into_future" / f"{name}.png", maps["flow_occluded"], 8)


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def cloud(*parts: str | Path) -> list[list[float]]:
    array = np.load(Path(*parts))
    assert array.dtype == np.float32
    return array.tolist()


def prepare_kitti(source: Path, out: Path, calibration: Path | None = None, **how: Any) -> PrepareSummary:
    return prepare(plan_kitti(source, out, calibration=calibration), **how)


def prepare_flyingthings3d(
    source: Path, out: Path, *, shard: Shard = WHOLE, processes: int = 1, **options: Any
) -> PrepareSummary:
    return prepare(plan_flyingthings3d(source, out, **options), shard=shard, processes=processes)


def prepare_occluded_flyingthings3d(
    source: Path, out: Path, *, shard: Shard = WHOLE, processes: int = 1, limit: int | None = None
) -> PrepareSummary:
    return prepare(plan_occluded_flyingthings3d(source, out, limit=limit), shard=shard, processes=processes)
