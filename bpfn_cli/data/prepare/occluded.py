# SPDX-License-Identifier: MIT
"""The raw FlyingThings3D subset to the FT3D_o layout of FlowNet3D: each cloud from its own frame, hidden points too.

The colors of the images are left out: the raw subset has no images.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import read_npz
from bpfn_cli.data.files.points import check_points
from bpfn_cli.data.prepare.flyingthings3d import FrameFiles, check_near, frames_of, no_visible_point
from bpfn_cli.data.prepare.projection import back_project, back_project_pair, check_same_size
from bpfn_cli.data.prepare.scene import Preparation, ScenePair
from bpfn_cli.errors import DataError
from bpfn_cli.files import write_atomic
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA

OCCLUDED_POINTS = 8192  # of each cloud, as in FlowNet3D's files
_AXES = np.array([-1, 1, 1], np.float32)  # on disk x right, y up, z forward


@dataclass(frozen=True)
class OccludedScene:
    """A scene with occlusion, written to one `.npz` file."""

    file: Path
    files: FrameFiles
    near: float

    def prepared_points(self) -> int | None:
        """See `RawScene`. The file is written in one step."""
        try:
            return len(read_npz(self.file, ["points1"])["points1"])
        except DataError:
            return None

    def read(self) -> ScenePair:
        """See `RawScene`. Draws from all near pixels of each frame, visible in the other or not.

        The flow of a point is known, hidden or not, while it is in front of the camera in frame 2.
        """
        frame, depth = self.files.read(), self.files.next_depth()
        check_same_size(frame.label, [frame.depth1, depth])
        finite_flow = np.isfinite(frame.flow).all(axis=2)
        known = (frame.depth1 < self.near) & np.isfinite(frame.depth2) & finite_flow
        pc1, moved = back_project_pair(FLYINGTHINGS3D_CAMERA, known, frame.flow, frame.depth1, frame.depth2)
        valid = ~frame.occluded[known]
        v, u = (index.astype(np.float64) for index in np.nonzero(depth < self.near))
        pc2 = back_project(u, v, depth[depth < self.near], FLYINGTHINGS3D_CAMERA)
        if not valid.any() or not len(pc2):
            raise no_visible_point(frame.label, self.near)
        generator = keyed_generator("occluded", self.file.stem)
        rows1, rows2 = (np.sort(generator.permutation(len(cloud))[:OCCLUDED_POINTS]) for cloud in (pc1, pc2))
        flow = check_points(moved[rows1] - pc1[rows1], Path(frame.label), "flow")
        damaged = np.isnan(frame.depth1) | np.isnan(frame.depth2) | ~finite_flow
        return ScenePair(pc1[rows1], pc2[rows2], flow, valid[rows1], int(damaged.sum())).checked(frame.label)

    def write(self, pair: ScenePair) -> None:
        """See `RawScene`."""
        assert pair.flow is not None and pair.valid is not None, "set by read()"
        buffer = io.BytesIO()
        points1, points2, flow = (cloud * _AXES for cloud in (pair.pc1, pair.pc2, pair.flow))
        np.savez(buffer, points1=points1, points2=points2, flow=flow, valid_mask1=pair.valid)
        write_atomic(self.file, buffer.getvalue())


def plan_occluded_flyingthings3d(
    source: Path, out: Path, *, near: float = 35.0, limit: int | None = None
) -> Preparation:
    """Plan to write `out/{TRAIN,TEST}_A_NNNN_left_NNNN-0.npz`.

    Args: as `plan_flyingthings3d`. The frame after one with a flow must have its disparity.
    Raises: as `plan_flyingthings3d`.
    """
    check_near(near)
    frames = frames_of(source, limit)
    scenes = [
        OccludedScene(out / f"{occluded_name(split, files.name)}.npz", files, near)
        for split in frames
        for files in frames[split]
    ]
    settings = {
        "kind": "flyingthings3d_occluded",
        "frame": "x right, y up, z forward",
        "source": os.path.realpath(source),
        "near_m": near,
        "points_a_cloud": OCCLUDED_POINTS,
    }
    return Preparation(source, out, scenes, settings)


def occluded_name(split: str, name: str) -> str:
    """FlowNet3D's form of a frame's number, whose last four digits become the frame.

    No name is in FlowNet3D's list of bad scenes: their sequences have higher numbers.
    """
    sequence, frame = divmod(int(name), 10_000)
    return f"{'TRAIN' if split == 'train' else 'TEST'}_A_{sequence:04d}_left_{frame:04d}-0"
