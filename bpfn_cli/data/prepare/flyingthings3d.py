# SPDX-License-Identifier: MIT
"""The raw FlyingThings3D subset to the FT3D_s layout (points visible in both frames) or to FT3D_o of FlowNet3D.

In FT3D_o, each cloud is of its own frame, hidden points too. The colors of the images are left out: the raw subset has
no images.
"""

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.archives import RawFiles, find_folder
from bpfn_cli.data.files.images import parse_flo, parse_mask_png, parse_pfm
from bpfn_cli.data.files.npy import read_npz
from bpfn_cli.data.files.points import MAX_COORDINATE_M, check_points
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.prepare.projection import back_project, back_project_pair, check_same_size
from bpfn_cli.data.prepare.runner import Preparation, RawScene, ScenePair, numbered_files, read_map
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors, write_atomic
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, FLYINGTHINGS3D_CAMERA

BASELINE_M = 1.0
OCCLUDED_POINTS = 8192  # of each cloud, as in FlowNet3D's files
_FULL_RELEASE = ("optical_flow", "frames_cleanpass", "frames_finalpass", "disparity", "TRAIN")
_OCCLUDED_AXES = np.array([-1, 1, 1], np.float32)  # on disk x right, y up, z forward


@dataclass(frozen=True)
class FrameMaps:
    """The maps of a frame with a known flow; depth in metres, infinite where disparity is 0, NaN where damaged."""

    label: str  # its flow file, for errors
    depth1: np.ndarray  # (H, W), in frame 1
    depth2: np.ndarray  # (H, W), in frame 2, but in the pixel grid of frame 1
    flow: np.ndarray  # (H, W, 2) pixels
    occluded: np.ndarray  # (H, W) bool


@dataclass(frozen=True)
class FrameFiles:
    """The map files of frame `name` of a split."""

    name: str
    split: RawFiles

    def read(self) -> FrameMaps:
        """Read the maps. Raises: DataError: missing, damaged, or different in size."""
        flow_file = f"flow/left/into_future/{self.name}.flo"
        disparity = read_map(self.split, f"disparity/left/{self.name}.pfm", parse_pfm)
        change = read_map(self.split, f"disparity_change/left/into_future/{self.name}.pfm", parse_pfm)
        flow = read_map(self.split, flow_file, parse_flo)
        hidden1 = read_map(self.split, f"disparity_occlusions/left/{self.name}.png", parse_mask_png)
        hidden2 = read_map(self.split, f"flow_occlusions/left/into_future/{self.name}.png", parse_mask_png)
        label = self.split.label(flow_file)
        check_same_size(label, [flow[..., 0], disparity, change, hidden1, hidden2])
        return FrameMaps(label, _depth(disparity), _depth(disparity, change), flow, hidden1 | hidden2)

    def next_depth(self) -> np.ndarray:
        """Depth of the next frame, (H, W) metres. Raises: as `read`."""
        return _depth(read_map(self.split, f"disparity/left/{int(self.name) + 1:07d}.pfm", parse_pfm))


@dataclass(frozen=True)
class FlyingThings3DScene(RawScene):
    """A scene of FlyingThings3D. near, drop_nonfinite: as in `plan_flyingthings3d`."""

    files: FrameFiles
    near: float | None
    drop_nonfinite: bool

    def read(self) -> ScenePair:
        """See base. Axes as on disk: x right, y up, z negative forward."""
        frame = self.files.read()
        limit = MAX_COORDINATE_M if self.near is None else self.near
        far = (frame.depth1 >= limit) | (frame.depth2 >= limit)  # false for NaN: damage is reported, not cut away
        kept = ~(frame.occluded | far)
        clouds = back_project_pair(FLYINGTHINGS3D_CAMERA, kept, frame.flow, frame.depth1, frame.depth2)
        pair = self._finite(*clouds, frame.label)
        if len(pair.pc1) == 0:
            raise _no_visible_point(frame.label, limit)
        axes = FLYINGTHINGS3D_AXES
        return replace(pair, pc1=pair.pc1 * axes, pc2=pair.pc2 * axes).checked(frame.label)

    def _finite(self, pc1: np.ndarray, pc2: np.ndarray, label: str) -> ScenePair:
        finite = np.isfinite(pc1).all(axis=1) & np.isfinite(pc2).all(axis=1)
        bad = int((~finite).sum())
        if bad and not self.drop_nonfinite:
            first = f"the first is point {int(np.argmin(finite))}; leave them out with --drop-nonfinite"
            raise DataError(f"{label}: {bad} of {len(finite)} visible points hold NaN or infinity, {first}")
        return ScenePair(pc1[finite], pc2[finite], dropped=bad)


def plan_flyingthings3d(
    source: Path, out: Path, *, near: float | None = 35.0, drop_nonfinite: bool = False, limit: int | None = None
) -> Preparation:
    """Plan to write `out/{train,val}/NNNNNNN/{pc1,pc2}.npy`; row i of both clouds is the same point.

    Args:
        source: the folder that holds `train/`, `val/` or both, or a `.zip` or uncompressed `.tar` of it.
        near: metres; points at least as far in either frame are cut. None: cut only those beyond 10 km.
        drop_nonfinite: leave out points with NaN or infinity, and note how many; otherwise they are errors.
        limit: prepare at most this many scenes of each split, the first ones.
    Raises: UsageError: `near` or `limit` out of range. DataError: source missing, empty or unreadable. DiskError.
    """
    frames = _frames_of(source, near, limit)
    scenes = [FlyingThings3DScene(out / split / one.name, one, near, drop_nonfinite) for split, one in frames]
    settings = {"source": os.path.realpath(source), "near_m": near, "drop_nonfinite": drop_nonfinite}
    kind = {"kind": "flyingthings3d", "frame": "x right, y up, z negative forward"}
    return Preparation(source, out, scenes, {**kind, **settings})


def _frames_of(source: Path, near: float | None, limit: int | None) -> list[tuple[str, FrameFiles]]:
    """Split and files of the frames with a flow, at most `limit` a split; the last one of each sequence has none."""
    if near is not None and not 0 < near <= MAX_COORDINATE_M:
        raise UsageError(f"near {near}: not a distance; use metres above 0, up to {MAX_COORDINATE_M:.0f}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: use 1 or more")
    with disk_errors(source):
        splits = {split: found.below(split) for split in SPLITS if (found := find_folder(source, split))}
        if not splits:
            is_full = any(find_folder(source, folder) for folder in _FULL_RELEASE)
            what = "this is the full release of FlyingThings3D, which is stored differently; " if is_full else ""
            advice = f"{what}give the raw FlyingThings3D subset (DispNet/FlowNet2.0)"
            raise DataError(f"{printable(source)}: no folder train or val in it; {advice}")
        flows = {split: files.below("flow/left/into_future") for split, files in splits.items()}
        names = {split: numbered_files(folder, "NNNNNNN.flo")[:limit] for split, folder in flows.items()}
    return [(split, FrameFiles(name, splits[split])) for split in splits for name in names[split]]


def _no_visible_point(label: str, limit: float) -> DataError:
    return DataError(f"{label}: no visible point nearer than {limit:g} m; remove the scene")


def _depth(disparity: np.ndarray, change: np.ndarray | int = 0) -> np.ndarray:
    """As in `FrameMaps`. Only the magnitude counts: one release stores negative values, the other positive ones."""
    with np.errstate(all="ignore"):
        magnitude = np.abs(disparity.astype(np.float64) + change)
        depth = -FLYINGTHINGS3D_CAMERA.focal * BASELINE_M / magnitude
    return np.where(np.isfinite(magnitude), depth, np.nan)


@dataclass(frozen=True)
class OccludedScene(RawScene):
    """A scene with occlusion. target: one `.npz` file, written in one step."""

    files: FrameFiles
    near: float

    def prepared_points(self) -> int | None:
        try:
            return len(read_npz(self.target, ["points1"])["points1"])
        except DataError:
            return None

    def read(self) -> ScenePair:
        """See base. Draws from all near pixels of each frame, visible in the other or not.

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
            raise _no_visible_point(frame.label, self.near)
        generator = keyed_generator("occluded", self.target.stem)
        rows1, rows2 = (np.sort(generator.permutation(len(cloud))[:OCCLUDED_POINTS]) for cloud in (pc1, pc2))
        if not valid[rows1].any():
            rows1[-1] = np.flatnonzero(valid)[0]  # a scene without any known flow cannot be read
            rows1.sort()
        flow = check_points(moved[rows1] - pc1[rows1], Path(frame.label), "flow")
        damaged = np.isnan(frame.depth1) | np.isnan(frame.depth2) | ~finite_flow
        return ScenePair(pc1[rows1], pc2[rows2], flow, valid[rows1], int(damaged.sum())).checked(frame.label)

    def write(self, pair: ScenePair) -> None:
        assert pair.flow is not None and pair.valid is not None, "set by read()"
        buffer = io.BytesIO()
        points1, points2, flow = (cloud * _OCCLUDED_AXES for cloud in (pair.pc1, pair.pc2, pair.flow))
        np.savez(buffer, points1=points1, points2=points2, flow=flow, valid_mask1=pair.valid)
        write_atomic(self.target, buffer.getvalue())


def plan_occluded_flyingthings3d(
    source: Path, out: Path, *, near: float = 35.0, limit: int | None = None
) -> Preparation:
    """Plan to write `out/{TRAIN,TEST}_A_NNNN_left_NNNN-0.npz`. Arguments and errors as in `plan_flyingthings3d`.

    The frame after one with a flow must have its disparity.
    """
    frames = _frames_of(source, near, limit)
    scenes = [OccludedScene(out / f"{occluded_name(split, one.name)}.npz", one, near) for split, one in frames]
    settings = {"source": os.path.realpath(source), "near_m": near, "points_a_cloud": OCCLUDED_POINTS}
    kind = {"kind": "flyingthings3d_occluded", "frame": "x right, y up, z forward"}
    return Preparation(source, out, scenes, {**kind, **settings})


def occluded_name(split: str, name: str) -> str:
    """FlowNet3D's form of a frame's number, whose last four digits become the frame.

    No name is in FlowNet3D's list of bad scenes: their sequences have higher numbers.
    """
    sequence, frame = divmod(int(name), 10_000)
    return f"{'TRAIN' if split == 'train' else 'TEST'}_A_{sequence:04d}_left_{frame:04d}-0"
