# SPDX-License-Identifier: MIT
"""Raw KITTI Scene Flow 2015 and FlyingThings3D to clouds: the KITTI_s and FT3D_s layouts.

A scene is written pc1 first, pc2 last, each atomically, so a scene with both files is complete. The settings
are recorded before the first scene (`prepared.json.partial`) and again after the last (`prepared.json`): a
killed run completes when repeated, and scenes of other settings are never taken for these.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from bpfn_cli.data.datasets.kitti import baseline_m, kitti_camera, parse_calibration
from bpfn_cli.data.files.archives import RawFiles, find_folder, is_archive
from bpfn_cli.data.files.images import parse_flo, parse_kitti_disparity, parse_kitti_flow, parse_mask_png, parse_pfm
from bpfn_cli.data.files.npy import MAX_COORDINATE_M, check_points, npy_shape, read_file, read_npz, write_points
from bpfn_cli.data.names import SPLITS
from bpfn_cli.errors import BpfnError, DataError, DiskError, UsageError, printable
from bpfn_cli.files import TEMPORARY_PREFIX, disk_errors, make_folder, remove_temporaries, write_atomic, write_json
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import Shard, map_in_processes
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, FLYINGTHINGS3D_CAMERA, Camera

Progress = Callable[[int, int], None]  # scenes done, scenes in all

RECORD = "prepared.json"
PARTIAL_RECORD = "prepared.json.partial"  # stands there until all scenes do
_LISTED_FAILURES = 10
_SHARD_PREFIX = ".shard-"  # hidden: no dataset reader looks at it

FLYINGTHINGS3D_BASELINE_M = 1.0


WHOLE = Shard()
Map = TypeVar("Map")


@dataclass(frozen=True)
class PrepareSummary:
    """What a preparation left in `out`.

    Attributes:
        scenes: scenes in all, or of the shard.
        skipped: those of them that were there already, of an earlier run.
        points: points of pc1 over all scenes.
        notes: what the user should know, one line each.
    """

    scenes: int
    skipped: int
    points: int
    notes: tuple[str, ...]


# --- KITTI ----------------------------------------------------------------------------------------


class _FolderScene:
    """What scenes have in common that are written as a folder with two clouds."""

    folder: Path

    def complete(self) -> int | None:
        """Points of a scene that is there already; None where it is not, or not whole."""
        try:
            shape1, shape2 = npy_shape(self.folder / "pc1.npy"), npy_shape(self.folder / "pc2.npy")
        except DataError:
            return None
        return shape1[0] if shape1 == shape2 and len(shape1) == 2 else None

    def write(self, pair: _Pair) -> None:
        """pc2 last: where both are, the scene is complete."""
        remove_temporaries(make_folder(self.folder))
        write_points(self.folder / "pc1.npy", pair.pc1)
        write_points(self.folder / "pc2.npy", pair.pc2)


@dataclass(frozen=True)
class _KittiScene(_FolderScene):
    name: str
    folder: Path
    training: RawFiles
    calibration: RawFiles | None  # None: from the development kit's table

    def read(self) -> _Pair:
        """All pixels known in all three maps; x left, y up, z forward."""
        image = f"{self.name}_10.png"
        disparity1 = self._map("disp_occ_0", image, parse_kitti_disparity)
        disparity2 = self._map("disp_occ_1", image, parse_kitti_disparity)  # in the grid of frame 1
        flow, flow_known = self._map("flow_occ", image, parse_kitti_flow)
        label = self.training.label(f"flow_occ/{image}")
        _same_size(label, [disparity1, disparity2, flow_known])
        camera = self._camera()
        known = (disparity1 > 0) & (disparity2 > 0) & flow_known
        depth1, depth2 = _kitti_depth(disparity1, camera), _kitti_depth(disparity2, camera)
        return _checked(_back_project_both(camera, known, flow, depth1, depth2), label)

    def _map(self, folder: str, image: str, parse: Callable[[bytearray, str], Map]) -> Map:
        return parse(self.training.read(f"{folder}/{image}"), self.training.label(f"{folder}/{image}"))

    def _camera(self) -> Camera:
        if self.calibration is None:
            return kitti_camera(int(self.name))
        file = f"{self.name}.txt"
        return parse_calibration(self.calibration.read(file), self.calibration.label(file))


def prepare_kitti(
    source: Path,
    out: Path,
    *,
    calibration: Path | None = None,
    shard: Shard = WHOLE,
    processes: int = 1,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Write `out/NNNNNN/{pc1,pc2}.npy`: all points known in both frames, ground and far points included.

    Args:
        source: the folder holding `training/`, or `training` itself, or the `.zip` they came in.
        calibration: the folder of the calibration archive (or its `calib_cam_to_cam`), or the `.zip`; None: looked
            for in `source`, then beside it as `<source>_calib` and `data_scene_flow_calib`. Where a scene has no
            file, the development kit's table is used, and a note says so.
        shard: which part of the scenes; others may be at work on the others.

    Raises:
        DataError: source missing or empty, or damaged scenes (all are tried, all are listed).
        DiskError: not permitted, or no space. UsageError: `out` inside `source`, or of other settings.
    """
    with disk_errors(source):
        training = _kitti_training(source)
        names = _scene_names(training.below("disp_occ_0"), ".png", r"(\d{6})_10\.png", "NNNNNN_10.png")
        calibrations = _calibration_files(source, training, calibration)
        scenes = [
            _KittiScene(name, out / name, training, calibrations if _has_calibration(calibrations, name) else None)
            for name in names
        ]
    settings = {
        "kind": "kitti",
        "frame": "x left, y up, z forward",
        "source": _real_name(training),
        "calibration": _real_name(calibrations) if calibrations else None,
    }
    from_table = [scene.name for scene in scenes if scene.calibration is None]
    notes = []
    if from_table:
        notes.append(
            f"{len(from_table)} of {len(scenes)} scenes have no calibration file; "
            f"the development kit's P_rect_02 was used: {_shortened(from_table)}"
        )
    return _prepare(scenes, _Job(source, out, settings, shard, notes), processes, progress)


def _kitti_depth(disparity: np.ndarray, camera: Camera) -> np.ndarray:
    return -camera.focal * baseline_m() / (disparity.astype(np.float64) + 1e-5)


def _kitti_training(source: Path) -> RawFiles:
    if is_archive(source):
        found = find_folder(source, "training")
        if found is None:
            raise DataError(f"{printable(source)}: no folder training in it; give data_scene_flow.zip")
        return found.below("training")
    return RawFiles(source / "training" if (source / "training").is_dir() else source)


def _calibration_files(source: Path, training: RawFiles, given: Path | None) -> RawFiles | None:
    """Where the `NNNNNN.txt` are. Raises: DataError: a place was given and has none."""
    root = _real(training.root) if training.is_archive else _real(training.root).parent
    stem = root.with_suffix("") if training.is_archive else root
    beside = [stem.parent / name for name in (f"{stem.name}_calib", "data_scene_flow_calib")]
    beside += [path.with_name(f"{path.name}.zip") for path in beside]
    for place in [given] if given else [root, *beside]:
        if place.is_dir():
            for inner in (place / "training" / "calib_cam_to_cam", place / "calib_cam_to_cam", place):
                if inner.name == "calib_cam_to_cam" and inner.is_dir():
                    return RawFiles(inner)
        elif place.exists() and is_archive(place):
            for wanted in ("training", "calib_cam_to_cam"):
                found = find_folder(place, wanted)
                folder = "training/calib_cam_to_cam" if wanted == "training" else wanted
                if found and found.has_folder(folder):
                    return found.below(folder)
    if given:
        raise DataError(
            f"{printable(given)}: no training/calib_cam_to_cam in it; give the calibration archive or its folder"
        )
    return None


def _has_calibration(files: RawFiles | None, name: str) -> bool:
    return files is not None and files.has(f"{name}.txt")


# --- FlyingThings3D -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RawFrame:
    """The maps of a frame with a flow."""

    label: str
    depth1: np.ndarray
    depth2: np.ndarray
    flow: np.ndarray
    occluded: np.ndarray


@dataclass(frozen=True)
class _RawThings:
    """Where a scene's maps are."""

    name: str
    split: RawFiles

    def frame(self) -> _RawFrame:
        flow_file = f"flow/left/into_future/{self.name}.flo"
        label = self.split.label(flow_file)
        disparity = self._map(f"disparity/left/{self.name}.pfm", parse_pfm)
        change = self._map(f"disparity_change/left/into_future/{self.name}.pfm", parse_pfm)
        flow = self._map(flow_file, parse_flo)
        occluded = [
            self._map(f"disparity_occlusions/left/{self.name}.png", parse_mask_png),
            self._map(f"flow_occlusions/left/into_future/{self.name}.png", parse_mask_png),
        ]
        _same_size(label, [flow[..., 0], disparity, change, *occluded])
        depths = _flyingthings3d_depth(disparity, 0), _flyingthings3d_depth(disparity, change)
        return _RawFrame(label, *depths, flow, occluded[0] | occluded[1])

    def next_depth(self) -> np.ndarray:
        """Of the frame after it."""
        return _flyingthings3d_depth(self._map(f"disparity/left/{int(self.name) + 1:07d}.pfm", parse_pfm), 0)

    def _map(self, file: str, parse: Callable[[bytearray, str], np.ndarray]) -> np.ndarray:
        return parse(self.split.read(file), self.split.label(file))


@dataclass(frozen=True)
class _FlyingThings3DScene(_FolderScene):
    raw: _RawThings
    folder: Path
    near: float | None
    drop_nonfinite: bool

    def read(self) -> _Pair:
        """Pixels visible in both frames and near in both; on-disk axes: x right, y up, z negative forward."""
        frame = self.raw.frame()
        limit = MAX_COORDINATE_M if self.near is None else self.near
        far = (frame.depth1 >= limit) | (frame.depth2 >= limit)  # false for NaN: damage is reported, not cut away
        kept = ~(frame.occluded | far)
        pair = _back_project_both(FLYINGTHINGS3D_CAMERA, kept, frame.flow, frame.depth1, frame.depth2)
        pair = self._finite(pair, frame.label)
        if len(pair.pc1) == 0:
            raise DataError(f"{frame.label}: no visible point nearer than {limit:g} m; remove the scene")
        turned = _Pair(pair.pc1 * FLYINGTHINGS3D_AXES, pair.pc2 * FLYINGTHINGS3D_AXES, dropped=pair.dropped)
        return _checked(turned, frame.label)

    def _finite(self, pair: _Pair, label: str) -> _Pair:
        finite = np.isfinite(pair.pc1).all(axis=1) & np.isfinite(pair.pc2).all(axis=1)
        bad = int((~finite).sum())
        if bad and not self.drop_nonfinite:
            raise DataError(
                f"{label}: {bad} of {len(finite)} visible points hold NaN or infinity, "
                f"the first is point {int(np.argmin(finite))}; --drop-nonfinite leaves them out"
            )
        return _Pair(pair.pc1[finite], pair.pc2[finite], dropped=bad)


OCCLUDED_POINTS = 8192  # of each cloud, as in FlowNet3D's files
_OCCLUDED_AXES = np.array([-1, 1, 1], np.float32)  # on disk x right, y up, z forward


@dataclass(frozen=True)
class _OccludedThingsScene:
    raw: _RawThings
    file: Path
    near: float

    def complete(self) -> int | None:
        """Points of a scene that is there already; files are written in one step."""
        try:
            return len(read_npz(self.file, ["points1"])["points1"])
        except DataError:
            return None

    def read(self) -> _Pair:
        """All near pixels of each frame, hidden in the other or not, of which points are drawn.

        A point's flow is known, hidden or not, while it is in front of the camera in frame 2.
        """
        frame, depth = self.raw.frame(), self.raw.next_depth()
        _same_size(frame.label, [frame.depth1, depth])
        known = (frame.depth1 < self.near) & np.isfinite(frame.depth2) & np.isfinite(frame.flow).all(axis=2)
        pair = _back_project_both(FLYINGTHINGS3D_CAMERA, known, frame.flow, frame.depth1, frame.depth2)
        valid = ~frame.occluded[known]
        v, u = (index.astype(np.float64) for index in np.nonzero(depth < self.near))
        pc2 = back_project(u, v, depth[depth < self.near], FLYINGTHINGS3D_CAMERA)
        if not valid.any() or not len(pc2):
            raise DataError(f"{frame.label}: no visible point nearer than {self.near:g} m; remove the scene")
        generator = keyed_generator("occluded", self.file.stem)
        rows1, rows2 = (np.sort(generator.permutation(len(cloud))[:OCCLUDED_POINTS]) for cloud in (pair.pc1, pc2))
        checked = _checked(_Pair(pair.pc1[rows1], pc2[rows2]), frame.label)
        flow = check_points(pair.pc2[rows1] - pair.pc1[rows1], Path(frame.label), "flow")
        damaged = np.isnan(frame.depth1) | np.isnan(frame.depth2) | ~np.isfinite(frame.flow).all(axis=2)
        return _Pair(checked.pc1, checked.pc2, flow, valid[rows1], int(damaged.sum()))

    def write(self, pair: _Pair) -> None:
        assert pair.flow is not None and pair.valid is not None, "read() made them"
        buffer = io.BytesIO()
        np.savez(
            buffer,
            points1=pair.pc1 * _OCCLUDED_AXES,
            points2=pair.pc2 * _OCCLUDED_AXES,
            flow=pair.flow * _OCCLUDED_AXES,
            valid_mask1=pair.valid,
        )
        write_atomic(self.file, buffer.getvalue())


def prepare_occluded_flyingthings3d(
    source: Path,
    out: Path,
    *,
    near: float = 35.0,
    limit: int | None = None,
    shard: Shard = WHOLE,
    processes: int = 1,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Write `out/{TRAIN,TEST}_A_NNNN_left_NNNN-0.npz` as FlowNet3D did: each cloud from its own frame, and which points
    of the first are visible in the second. Without the colors of the images, which are not in the subset's maps.

    Args: as `prepare_flyingthings3d`. The frame after one with a flow must have its disparity.
    Raises: as `prepare_flyingthings3d`.
    """
    _check_near(near)
    with disk_errors(source):
        scenes = [
            _OccludedThingsScene(raw, out / f"{_occluded_name(split, raw.name)}.npz", near)
            for split, raw in _raw_things(source, limit)
        ]
    settings = {
        "kind": "flyingthings3d_occluded",
        "frame": "x right, y up, z forward",
        "source": str(_real(source)),
        "near_m": near,
        "points_a_cloud": OCCLUDED_POINTS,
    }
    return _prepare(scenes, _Job(source, out, settings, shard), processes, progress)


def _occluded_name(split: str, name: str) -> str:
    """FlowNet3D's form, from the number of a frame: its last four digits as the frame. None of them is in its list of
    bad scenes, whose sequences have higher numbers."""
    sequence, frame = divmod(int(name), 10_000)
    return f"{'TRAIN' if split == 'train' else 'TEST'}_A_{sequence:04d}_left_{frame:04d}-0"


def prepare_flyingthings3d(
    source: Path,
    out: Path,
    *,
    near: float | None = 35.0,
    drop_nonfinite: bool = False,
    limit: int | None = None,
    shard: Shard = WHOLE,
    processes: int = 1,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Write `out/{train,val}/NNNNNNN/{pc1,pc2}.npy`: points visible in both frames, the same in each row.

    Args:
        source: the folder holding `train/`, `val/` or both, of the raw FlyingThings3D subset, or a `.zip` or
            uncompressed `.tar` of it.
        near: metres; points at least as far in either frame are cut. None: only those beyond 10 km.
        drop_nonfinite: leave out points with NaN or infinity, and note how many; otherwise they are errors.
        limit: at most so many scenes of each split, the first ones.
        shard: as in `prepare_kitti`.

    Raises: as `prepare_kitti`.
    """
    if near is not None:
        _check_near(near)
    with disk_errors(source):
        scenes = [
            _FlyingThings3DScene(raw, out / split / raw.name, near, drop_nonfinite)
            for split, raw in _raw_things(source, limit)
        ]
    settings = {
        "kind": "flyingthings3d",
        "frame": "x right, y up, z negative forward",
        "source": str(_real(source)),
        "near_m": near,
        "drop_nonfinite": drop_nonfinite,
    }
    return _prepare(scenes, _Job(source, out, settings, shard), processes, progress)


def _check_near(near: float) -> None:
    if not 0 < near <= MAX_COORDINATE_M:
        raise UsageError(f"near: {near} is not a distance; give metres between 0 and {MAX_COORDINATE_M:.0f}")


def _raw_things(source: Path, limit: int | None) -> list[tuple[str, _RawThings]]:
    """Split and maps of each scene, at most `limit` of a split. Raises: DataError: none."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit: {limit} is less than one scene; give 1 or more")
    splits = {split: files for split in SPLITS if (files := _raw_split(source, split))}
    if not splits:
        raise DataError(f"{printable(source)}: no folder train or val in it; give the raw FlyingThings3D subset")
    return [
        (split, _RawThings(name, files))
        for split, files in splits.items()
        for name in _flyingthings3d_names(files)[:limit]
    ]


def _raw_split(source: Path, split: str) -> RawFiles | None:
    found = find_folder(source, split)
    return found.below(split) if found else None


def _flyingthings3d_names(split: RawFiles) -> list[str]:
    """The frames that have a flow: the last one of each sequence has none."""
    return _scene_names(split.below("flow/left/into_future"), ".flo", r"(\d{7})\.flo", "NNNNNNN.flo")


def _flyingthings3d_depth(disparity: np.ndarray, change: np.ndarray | int) -> np.ndarray:
    """Metres; infinite where the disparity is 0, NaN where it is damaged.

    The magnitude counts: one release stores disparity and its change negative, the other positive.
    """
    with np.errstate(all="ignore"):
        magnitude = np.abs(disparity.astype(np.float64) + change)
        depth = -FLYINGTHINGS3D_CAMERA.focal * FLYINGTHINGS3D_BASELINE_M / magnitude
    return np.where(np.isfinite(magnitude), depth, np.nan)


# --- geometry -------------------------------------------------------------------------------------


def back_project(u: np.ndarray, v: np.ndarray, depth: np.ndarray, camera: Camera) -> np.ndarray:
    """(N, 3) float32 metres, x left, y up, z forward, of pixels (u right, v down) at `depth` = z (N,) metres.

    Inverse of the projection in `structures.Camera`. z itself is the depth, not z + tz: only so are KITTI's
    published point counts met after the cuts.
    """
    x = (u * (depth + camera.tz) - camera.cx * depth - camera.tx) / camera.focal
    y = (v * (depth + camera.tz) - camera.cy * depth - camera.ty) / camera.focal
    return np.stack([x, y, depth], axis=1).astype(np.float32)


def _back_project_both(
    camera: Camera, kept: np.ndarray, flow: np.ndarray, depth1: np.ndarray, depth2: np.ndarray
) -> _Pair:
    """Where the kept pixels are in frame 1 and in frame 2. Both depths are in the grid of frame 1."""
    v, u = (index.astype(np.float64) for index in np.nonzero(kept))
    with np.errstate(over="ignore", invalid="ignore"):  # damaged maps give points that are refused later
        moved = flow[kept].astype(np.float64)
        pc1 = back_project(u, v, depth1[kept], camera)
        pc2 = back_project(u + moved[:, 0], v + moved[:, 1], depth2[kept], camera)
    return _Pair(pc1, pc2)


def _checked(pair: _Pair, label: str) -> _Pair:
    path = Path(label)
    return replace(pair, pc1=check_points(pair.pc1, path, "pc1"), pc2=check_points(pair.pc2, path, "pc2"))


def _same_size(label: str, maps: Iterable[np.ndarray]) -> None:
    sizes = sorted({(array.shape[1], array.shape[0]) for array in maps})
    if len(sizes) > 1:
        found = " and ".join(f"{width} x {height}" for width, height in sizes)
        raise DataError(f"{label}: the maps of this scene differ in size ({found}); fetch them again")


# --- writing scenes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """Two clouds; with occlusion, rows do not correspond, and pc1 has its flow and which of it is visible."""

    pc1: np.ndarray
    pc2: np.ndarray
    flow: np.ndarray | None = None
    valid: np.ndarray | None = None
    dropped: int = 0


class _Scene(Protocol):
    def complete(self) -> int | None: ...
    def read(self) -> _Pair: ...
    def write(self, pair: _Pair) -> None: ...


@dataclass(frozen=True)
class _Job:
    source: Path
    out: Path
    settings: dict[str, Any]
    shard: Shard
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Outcome:
    points: int = 0
    dropped: int = 0
    skipped: bool = False
    failure: BpfnError | None = None


def _prepare(scenes: Sequence[_Scene], job: _Job, processes: int, progress: Progress | None) -> PrepareSummary:
    if processes < 1:
        raise UsageError(f"processes: {processes} is less than one; give 1 or more")
    if _real(job.out).is_relative_to(_real(job.source)):
        raise UsageError(f"{printable(job.out)}: lies inside the source {printable(job.source)}; choose another --out")
    make_folder(job.out)
    mine = scenes[job.shard.index - 1 :: job.shard.count]
    with _only_preparer(job):
        _claim(job.out, job.settings, sweep=job.shard == WHOLE)
        outcomes = []
        for outcome in map_in_processes(_prepare_scene, mine, processes):
            outcomes.append(outcome)
            if progress:
                progress(len(outcomes), len(mine))
        _raise_failures([outcome.failure for outcome in outcomes if outcome.failure], len(mine))
        points = sum(outcome.points for outcome in outcomes)
        _finish(job, len(scenes), points)
    dropped = sum(outcome.dropped for outcome in outcomes)
    notes = [*job.notes, f"{dropped} points with NaN or infinity were left out"] if dropped else job.notes
    return PrepareSummary(len(mine), sum(outcome.skipped for outcome in outcomes), points, tuple(notes))


@contextlib.contextmanager
def _only_preparer(job: _Job) -> Iterator[None]:
    """Alone in the output, or, for a shard, alone with other shards. Raises: BusyError."""
    if job.shard == WHOLE:
        with only_writer(job.out):
            yield
        return
    with only_writer(job.out, shared=True), only_writer(make_folder(_shard_folder(job, job.shard.index))):
        yield


def _shard_folder(job: _Job, index: int) -> Path:
    """What a shard locks, and leaves its record in."""
    return job.out / f"{_SHARD_PREFIX}{index}-of-{job.shard.count}"


def _finish(job: _Job, scenes: int, points: int) -> None:
    """Write the record, of a shard only when all of them have written theirs, of as many scenes in all."""
    if job.shard != WHOLE:
        write_json(_shard_folder(job, job.shard.index) / RECORD, {"scenes_in_all": scenes, "points": points})
        records = [_shard_folder(job, index) / RECORD for index in range(1, job.shard.count + 1)]
        found = [json.loads(read_file(record)) for record in records if record.is_file()]
        if [one["scenes_in_all"] for one in found] != [scenes] * job.shard.count:
            return
        points = sum(one["points"] for one in found)
    write_json(job.out / RECORD, {**job.settings, "scenes": scenes, "points": points})
    with disk_errors(job.out):
        (job.out / PARTIAL_RECORD).unlink(missing_ok=True)


def _prepare_scene(scene: _Scene) -> _Outcome:
    """Faults of the source are returned, so that the other scenes go on; faults of the output end the run."""
    if (points := scene.complete()) is not None:
        return _Outcome(points, skipped=True)
    try:
        pair = scene.read()
    except BpfnError as error:
        return _Outcome(failure=type(error)(str(error)))  # without the traceback, which holds the arrays
    scene.write(pair)
    return _Outcome(len(pair.pc1), pair.dropped)


def _raise_failures(failures: list[BpfnError], scenes: int) -> None:
    if not failures:
        return
    kind = DiskError if any(isinstance(failure, DiskError) for failure in failures) else DataError
    raise kind(f"{len(failures)} of {scenes} scenes could not be prepared: {_shortened(map(str, failures), ' | ')}")


def _shortened(items: Iterable[str], separator: str = ", ") -> str:
    listed = list(items)
    more = len(listed) - _LISTED_FAILURES
    return separator.join(listed[:_LISTED_FAILURES]) + (f"{separator}and {more} more" if more > 0 else "")


# --- the output folder ----------------------------------------------------------------------------


def _claim(out: Path, settings: dict[str, Any], sweep: bool) -> None:
    """Take the folder for these settings, empty or with what an earlier run of the same settings left.

    Raises: UsageError: it holds something else.
    """
    if sweep:  # another shard may be writing
        remove_temporaries(out)
    with disk_errors(out):
        foreign = [path for path in out.iterdir() if not _is_of_a_shard(path)]
    # Looked for after that: another shard may have begun meanwhile, and its record comes before its scenes.
    records = [out / name for name in (RECORD, PARTIAL_RECORD) if (out / name).exists()]
    for record in records:
        _check_record(record, settings)
    if foreign and not records:
        raise UsageError(f"{printable(out)}: is not empty and was not written by bpfn prepare; choose another --out")
    write_json(out / PARTIAL_RECORD, settings)


def _is_of_a_shard(path: Path) -> bool:
    """Made by another shard, perhaps in this moment."""
    return path.name.startswith((_SHARD_PREFIX, TEMPORARY_PREFIX)) or path.name in {RECORD, PARTIAL_RECORD}


def _check_record(record: Path, settings: dict[str, Any]) -> None:
    try:
        recorded = json.loads(read_file(record))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(record)}: damaged; choose another --out, or remove its folder") from error
    for key, value in settings.items():
        found = recorded.get(key) if isinstance(recorded, dict) else "nothing"
        if found != value:
            raise UsageError(
                f"{printable(record.parent)}: was prepared with another {key} "
                f"({printable(found)[:200]}, now {printable(value)}); choose another --out"
            )


def _real_name(files: RawFiles) -> str:
    return RawFiles(_real(files.root), files.inside).name


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve fails on loops of links


def _scene_names(folder: RawFiles, ending: str, pattern: str, shown: str) -> list[str]:
    """Sorted names, by `pattern`, of the files with `ending`.

    Raises: DataError: no folder, no such file, or one of another pattern.
    """
    files = [name for name in folder.names() if name.endswith(ending) and not name.startswith(".")]
    matches = {file: re.fullmatch(pattern, file, re.ASCII) for file in files}
    strange = sorted(file for file, match in matches.items() if match is None)
    if strange:
        raise DataError(f"{folder.label(strange[0])}: not a scene name; {shown} expected")
    if not files:
        raise DataError(f"{printable(folder.name)}: no scene in it; {shown} expected")
    return sorted(match[1] for match in matches.values() if match)
