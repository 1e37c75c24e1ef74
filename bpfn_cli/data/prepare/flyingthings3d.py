# SPDX-License-Identifier: MIT
"""The raw FlyingThings3D subset to the FT3D_s layout: points visible in both frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.archives import RawFiles, find_folder
from bpfn_cli.data.files.images import parse_flo, parse_mask_png, parse_pfm
from bpfn_cli.data.files.points import MAX_COORDINATE_M
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.prepare.projection import back_project_pair, check_same_size
from bpfn_cli.data.prepare.scene import FolderScene, Preparation, ScenePair, numbered_files
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, FLYINGTHINGS3D_CAMERA

BASELINE_M = 1.0


@dataclass(frozen=True)
class FrameMaps:
    """The maps of a frame with a known flow.

    Attributes:
        label: its flow file, for errors.
        depth1, depth2: (H, W) metres in frame 1 and 2, both in the pixel grid of frame 1. Infinite where the disparity
            is 0, NaN where it is damaged.
        flow: (H, W, 2) pixels. occluded: (H, W) bool.
    """

    label: str
    depth1: np.ndarray
    depth2: np.ndarray
    flow: np.ndarray
    occluded: np.ndarray


@dataclass(frozen=True)
class FrameFiles:
    """The map files of frame `name` of a split."""

    name: str
    split: RawFiles

    def read(self) -> FrameMaps:
        """Read the maps. Raises: DataError: missing, damaged, or different in size."""
        flow_file = f"flow/left/into_future/{self.name}.flo"
        disparity = self._map(f"disparity/left/{self.name}.pfm", parse_pfm)
        change = self._map(f"disparity_change/left/into_future/{self.name}.pfm", parse_pfm)
        flow = self._map(flow_file, parse_flo)
        hidden1 = self._map(f"disparity_occlusions/left/{self.name}.png", parse_mask_png)
        hidden2 = self._map(f"flow_occlusions/left/into_future/{self.name}.png", parse_mask_png)
        label = self.split.label(flow_file)
        check_same_size(label, [flow[..., 0], disparity, change, hidden1, hidden2])
        return FrameMaps(label, _depth(disparity), _depth(disparity, change), flow, hidden1 | hidden2)

    def next_depth(self) -> np.ndarray:
        """Depth of the next frame, (H, W) metres. Raises: as `read`."""
        return _depth(self._map(f"disparity/left/{int(self.name) + 1:07d}.pfm", parse_pfm))

    def _map(self, file: str, parse: Callable[[bytearray, str], np.ndarray]) -> np.ndarray:
        return parse(self.split.read(file), self.split.label(file))


@dataclass(frozen=True)
class FlyingThings3DScene(FolderScene):
    """A scene of FlyingThings3D. near, drop_nonfinite: as in `plan_flyingthings3d`."""

    files: FrameFiles
    near: float | None
    drop_nonfinite: bool

    def read(self) -> ScenePair:
        """See `RawScene`. Axes as on disk: x right, y up, z negative forward."""
        frame = self.files.read()
        limit = MAX_COORDINATE_M if self.near is None else self.near
        far = (frame.depth1 >= limit) | (frame.depth2 >= limit)  # false for NaN: damage is reported, not cut away
        kept = ~(frame.occluded | far)
        clouds = back_project_pair(FLYINGTHINGS3D_CAMERA, kept, frame.flow, frame.depth1, frame.depth2)
        pair = self._finite(ScenePair(*clouds), frame.label)
        if len(pair.pc1) == 0:
            raise no_visible_point(frame.label, limit)
        turned = replace(pair, pc1=pair.pc1 * FLYINGTHINGS3D_AXES, pc2=pair.pc2 * FLYINGTHINGS3D_AXES)
        return turned.checked(frame.label)

    def _finite(self, pair: ScenePair, label: str) -> ScenePair:
        finite = np.isfinite(pair.pc1).all(axis=1) & np.isfinite(pair.pc2).all(axis=1)
        bad = int((~finite).sum())
        if bad and not self.drop_nonfinite:
            raise DataError(
                f"{label}: {bad} of {len(finite)} visible points hold NaN or infinity, "
                f"the first is point {int(np.argmin(finite))}; leave them out with --drop-nonfinite"
            )
        return ScenePair(pair.pc1[finite], pair.pc2[finite], dropped=bad)


def plan_flyingthings3d(
    source: Path,
    out: Path,
    *,
    near: float | None = 35.0,
    drop_nonfinite: bool = False,
    limit: int | None = None,
) -> Preparation:
    """Plan to write `out/{train,val}/NNNNNNN/{pc1,pc2}.npy`; row i of both clouds is the same point.

    Args:
        source: the folder that holds `train/`, `val/` or both, or a `.zip` or uncompressed `.tar` of it.
        near: metres; points at least as far in either frame are cut. None: cut only those beyond 10 km.
        drop_nonfinite: leave out points with NaN or infinity, and note how many; otherwise they are errors.
        limit: prepare at most this many scenes of each split, the first ones.

    Raises:
        UsageError: `near` or `limit` out of range.
        DataError: source missing, empty or unreadable. DiskError: not permitted.
    """
    if near is not None:
        check_near(near)
    frames = frames_of(source, limit)
    scenes = [
        FlyingThings3DScene(out / split / files.name, files, near, drop_nonfinite)
        for split in frames
        for files in frames[split]
    ]
    settings = {
        "kind": "flyingthings3d",
        "frame": "x right, y up, z negative forward",
        "source": os.path.realpath(source),
        "near_m": near,
        "drop_nonfinite": drop_nonfinite,
    }
    return Preparation(source, out, scenes, settings)


def check_near(near: float) -> None:
    """Raises: UsageError: not a distance."""
    if not 0 < near <= MAX_COORDINATE_M:
        raise UsageError(f"near {near}: not a distance; use metres above 0, up to {MAX_COORDINATE_M:.0f}")


def frames_of(source: Path, limit: int | None) -> dict[str, list[FrameFiles]]:
    """Per split, the files of the frames with a flow (the last one of each sequence has none), at most `limit`.

    Raises: UsageError: `limit` below 1. DataError: none.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: use 1 or more")
    with disk_errors(source):
        splits = {split: found.below(split) for split in SPLITS if (found := find_folder(source, split))}
        if not splits:
            raise DataError(f"{printable(source)}: no folder train or val in it; give the raw FlyingThings3D subset")
        return {
            split: [
                FrameFiles(name, files)
                for name in numbered_files(files.below("flow/left/into_future"), "NNNNNNN.flo")[:limit]
            ]
            for split, files in splits.items()
        }


def no_visible_point(label: str, limit: float) -> DataError:
    """The error of a scene of which nothing would be left."""
    return DataError(f"{label}: no visible point nearer than {limit:g} m; remove the scene")


def _depth(disparity: np.ndarray, change: np.ndarray | int = 0) -> np.ndarray:
    """As in `FrameMaps`. Only the magnitude counts: one release stores negative values, the other positive ones."""
    with np.errstate(all="ignore"):
        magnitude = np.abs(disparity.astype(np.float64) + change)
        depth = -FLYINGTHINGS3D_CAMERA.focal * BASELINE_M / magnitude
    return np.where(np.isfinite(magnitude), depth, np.nan)
