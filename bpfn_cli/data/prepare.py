# SPDX-License-Identifier: MIT
"""Raw KITTI Scene Flow 2015 and FlyingThings3D to clouds: the KITTI_s and FT3D_s layouts.

A scene is written pc1 first, pc2 last, each atomically, so a scene with both files is complete. The settings
are recorded before the first scene (`prepared.json.partial`) and again after the last (`prepared.json`): a
killed run completes when repeated, and scenes of other settings are never taken for these.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bpfn_cli.data.arrays import MAX_COORDINATE_M, check_points, npy_shape, read_file, write_points
from bpfn_cli.data.concurrency import map_in_processes, only_writer
from bpfn_cli.data.images import read_flo, read_kitti_disparity, read_kitti_flow, read_mask_png, read_pfm
from bpfn_cli.data.kitti import baseline_m, kitti_camera, read_calibration
from bpfn_cli.errors import BpfnError, DataError, DiskError, UsageError, printable
from bpfn_cli.files import disk_errors, make_folder, remove_temporaries, write_json
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, FLYINGTHINGS3D_CAMERA, Camera

Progress = Callable[[int, int], None]  # scenes done, scenes in all

RECORD = "prepared.json"
PARTIAL_RECORD = "prepared.json.partial"  # stands there until all scenes do
_LISTED_FAILURES = 10

FLYINGTHINGS3D_BASELINE_M = 1.0


@dataclass(frozen=True)
class PrepareSummary:
    """What a preparation left in `out`.

    Attributes:
        scenes: scenes in all.
        skipped: those of them that were there already, of an earlier run.
        points: points of pc1 over all scenes.
        notes: what the user should know, one line each.
    """

    scenes: int
    skipped: int
    points: int
    notes: tuple[str, ...]


# --- KITTI ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _KittiScene:
    name: str
    folder: Path
    training: Path
    calibration: Path | None  # None: from the development kit's table

    def read(self) -> _Pair:
        """All pixels known in all three maps; x left, y up, z forward."""
        image = f"{self.name}_10.png"
        disparity1 = read_kitti_disparity(self.training / "disp_occ_0" / image)
        disparity2 = read_kitti_disparity(self.training / "disp_occ_1" / image)  # in the grid of frame 1
        flow_path = self.training / "flow_occ" / image
        flow, flow_known = read_kitti_flow(flow_path)
        _same_size(flow_path, [disparity1, disparity2, flow_known])
        camera = read_calibration(self.calibration) if self.calibration else kitti_camera(int(self.name))
        known = (disparity1 > 0) & (disparity2 > 0) & flow_known
        depth1, depth2 = _kitti_depth(disparity1, camera), _kitti_depth(disparity2, camera)
        return _checked(_back_project_both(camera, known, flow, depth1, depth2), flow_path)


def prepare_kitti(
    source: Path,
    out: Path,
    *,
    calibration: Path | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Write `out/NNNNNN/{pc1,pc2}.npy`: all points known in both frames, ground and far points included.

    Args:
        source: the folder holding `training/`, or `training` itself.
        calibration: the folder of the calibration archive (or its `calib_cam_to_cam`); None: looked for in
            `source`, then beside it as `<source>_calib` and `data_scene_flow_calib`. Where a scene has no
            file, the development kit's table is used, and a note says so.

    Raises:
        DataError: source missing or empty, or damaged scenes (all are tried, all are listed).
        DiskError: not permitted, or no space. UsageError: `out` inside `source`, or of other settings.
    """
    with disk_errors(source):
        training = source / "training" if (source / "training").is_dir() else source
        names = _scene_names(training / "disp_occ_0", ".png", r"(\d{6})_10\.png", "NNNNNN_10.png")
        calibrations = _calibration_folder(_real(training).parent, calibration)
        scenes = [_KittiScene(name, out / name, training, _calibration_file(calibrations, name)) for name in names]
    settings = {
        "kind": "kitti",
        "frame": "x left, y up, z forward",
        "source": str(_real(training)),
        "calibration": str(_real(calibrations)) if calibrations else None,
    }
    from_table = [scene.name for scene in scenes if scene.calibration is None]
    notes = []
    if from_table:
        notes.append(
            f"{len(from_table)} of {len(scenes)} scenes have no calibration file; "
            f"the development kit's P_rect_02 was used: {_shortened(from_table)}"
        )
    return _prepare(scenes, _Job(source, out, settings, notes), processes, progress)


def _kitti_depth(disparity: np.ndarray, camera: Camera) -> np.ndarray:
    return -camera.focal * baseline_m() / (disparity.astype(np.float64) + 1e-5)


def _calibration_folder(root: Path, given: Path | None) -> Path | None:
    """The folder with `NNNNNN.txt`. Raises: DataError: one was given and has none."""
    beside = [root.parent / f"{root.name}_calib", root.parent / "data_scene_flow_calib"]
    for folder in [given] if given else [root, *beside]:
        for inner in (folder / "training" / "calib_cam_to_cam", folder / "calib_cam_to_cam", folder):
            if inner.name == "calib_cam_to_cam" and inner.is_dir():
                return inner
    if given:
        raise DataError(
            f"{printable(given)}: no training/calib_cam_to_cam in it; give the calibration archive's folder"
        )
    return None


def _calibration_file(folder: Path | None, name: str) -> Path | None:
    return folder / f"{name}.txt" if folder and (folder / f"{name}.txt").exists() else None


# --- FlyingThings3D -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FlyingThings3DScene:
    name: str
    folder: Path
    split: Path
    near: float | None
    drop_nonfinite: bool

    def read(self) -> _Pair:
        """Pixels visible in both frames and near in both; on-disk axes: x right, y up, z negative forward."""
        disparity = read_pfm(self.split / "disparity" / "left" / f"{self.name}.pfm")
        change = read_pfm(self.split / "disparity_change" / "left" / "into_future" / f"{self.name}.pfm")
        flow_path = self.split / "flow" / "left" / "into_future" / f"{self.name}.flo"
        flow = read_flo(flow_path)
        occluded = [
            read_mask_png(self.split / "disparity_occlusions" / "left" / f"{self.name}.png"),
            read_mask_png(self.split / "flow_occlusions" / "left" / "into_future" / f"{self.name}.png"),
        ]
        _same_size(flow_path, [flow[..., 0], disparity, change, *occluded])
        depth1, depth2 = _flyingthings3d_depth(disparity, 0), _flyingthings3d_depth(disparity, change)
        limit = MAX_COORDINATE_M if self.near is None else self.near
        far = (depth1 >= limit) | (depth2 >= limit)  # false for NaN: damage is reported, not cut away
        kept = ~(occluded[0] | occluded[1] | far)
        pair = self._finite(_back_project_both(FLYINGTHINGS3D_CAMERA, kept, flow, depth1, depth2), flow_path)
        if len(pair.pc1) == 0:
            raise DataError(f"{printable(flow_path)}: no visible point nearer than {limit:g} m; remove the scene")
        return _checked(_Pair(pair.pc1 * FLYINGTHINGS3D_AXES, pair.pc2 * FLYINGTHINGS3D_AXES, pair.dropped), flow_path)

    def _finite(self, pair: _Pair, path: Path) -> _Pair:
        finite = np.isfinite(pair.pc1).all(axis=1) & np.isfinite(pair.pc2).all(axis=1)
        bad = int((~finite).sum())
        if bad and not self.drop_nonfinite:
            raise DataError(
                f"{printable(path)}: {bad} of {len(finite)} visible points hold NaN or infinity, "
                f"the first is point {int(np.argmin(finite))}; --drop-nonfinite leaves them out"
            )
        return _Pair(pair.pc1[finite], pair.pc2[finite], bad)


def prepare_flyingthings3d(
    source: Path,
    out: Path,
    *,
    near: float | None = 35.0,
    drop_nonfinite: bool = False,
    limit: int | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Write `out/{train,val}/NNNNNNN/{pc1,pc2}.npy`: points visible in both frames, the same in each row.

    Args:
        source: the folder holding `train/`, `val/` or both, of the raw FlyingThings3D subset.
        near: metres; points at least as far in either frame are cut. None: only those beyond 10 km.
        drop_nonfinite: leave out points with NaN or infinity, and note how many; otherwise they are errors.
        limit: at most so many scenes of each split, the first ones.

    Raises: as `prepare_kitti`.
    """
    if near is not None and not 0 < near <= MAX_COORDINATE_M:
        raise UsageError(f"near: {near} is not a distance; give metres between 0 and {MAX_COORDINATE_M:.0f}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit: {limit} is less than one scene; give 1 or more")
    with disk_errors(source):
        splits = [source / split for split in ("train", "val") if (source / split).is_dir()]
        if not splits:
            raise DataError(f"{printable(source)}: no folder train or val in it; give the raw FlyingThings3D subset")
        scenes = [
            _FlyingThings3DScene(name, out / split.name / name, split, near, drop_nonfinite)
            for split in splits
            for name in _flyingthings3d_names(split)[:limit]
        ]
    settings = {
        "kind": "flyingthings3d",
        "frame": "x right, y up, z negative forward",
        "source": str(_real(source)),
        "near_m": near,
        "drop_nonfinite": drop_nonfinite,
    }
    return _prepare(scenes, _Job(source, out, settings), processes, progress)


def _flyingthings3d_names(split: Path) -> list[str]:
    """The frames that have a flow: the last one of each sequence has none."""
    return _scene_names(split / "flow" / "left" / "into_future", ".flo", r"(\d{7})\.flo", "NNNNNNN.flo")


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


def _checked(pair: _Pair, path: Path) -> _Pair:
    return _Pair(check_points(pair.pc1, path, "pc1"), check_points(pair.pc2, path, "pc2"), pair.dropped)


def _same_size(path: Path, maps: Iterable[np.ndarray]) -> None:
    sizes = sorted({(array.shape[1], array.shape[0]) for array in maps})
    if len(sizes) > 1:
        found = " and ".join(f"{width} x {height}" for width, height in sizes)
        raise DataError(f"{printable(path)}: the maps of this scene differ in size ({found}); fetch them again")


# --- writing scenes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    pc1: np.ndarray
    pc2: np.ndarray
    dropped: int = 0


class _Scene(Protocol):
    @property
    def folder(self) -> Path: ...
    def read(self) -> _Pair: ...


@dataclass(frozen=True)
class _Job:
    source: Path
    out: Path
    settings: dict[str, Any]
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
    with only_writer(make_folder(job.out)):
        _claim(job.out, job.settings)
        outcomes = []
        for outcome in map_in_processes(_prepare_scene, scenes, processes):
            outcomes.append(outcome)
            if progress:
                progress(len(outcomes), len(scenes))
        _raise_failures([outcome.failure for outcome in outcomes if outcome.failure], len(scenes))
        points = sum(outcome.points for outcome in outcomes)
        write_json(job.out / RECORD, {**job.settings, "scenes": len(scenes), "points": points})
        with disk_errors(job.out):
            (job.out / PARTIAL_RECORD).unlink(missing_ok=True)
    dropped = sum(outcome.dropped for outcome in outcomes)
    notes = [*job.notes, f"{dropped} points with NaN or infinity were left out"] if dropped else job.notes
    return PrepareSummary(len(scenes), sum(outcome.skipped for outcome in outcomes), points, tuple(notes))


def _prepare_scene(scene: _Scene) -> _Outcome:
    """Faults of the source are returned, so that the other scenes go on; faults of the output end the run."""
    if (points := _complete(scene.folder)) is not None:
        return _Outcome(points, skipped=True)
    try:
        pair = scene.read()
    except BpfnError as error:
        return _Outcome(failure=type(error)(str(error)))  # without the traceback, which holds the arrays
    remove_temporaries(make_folder(scene.folder))
    write_points(scene.folder / "pc1.npy", pair.pc1)
    write_points(scene.folder / "pc2.npy", pair.pc2)
    return _Outcome(len(pair.pc1), pair.dropped)


def _complete(folder: Path) -> int | None:
    """Points of a scene that is there already; None where it is not, or not whole."""
    try:
        shape1, shape2 = npy_shape(folder / "pc1.npy"), npy_shape(folder / "pc2.npy")
    except DataError:
        return None
    return shape1[0] if shape1 == shape2 and len(shape1) == 2 else None


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


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Take the folder for these settings, empty or with what an earlier run of the same settings left.

    Raises: UsageError: it holds something else.
    """
    remove_temporaries(out)
    records = [out / name for name in (RECORD, PARTIAL_RECORD) if (out / name).exists()]
    for record in records:
        _check_record(record, settings)
    with disk_errors(out):
        foreign = not records and any(out.iterdir())
    if foreign:
        raise UsageError(f"{printable(out)}: is not empty and was not written by bpfn prepare; choose another --out")
    write_json(out / PARTIAL_RECORD, settings)


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


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve fails on loops of links


def _scene_names(folder: Path, ending: str, pattern: str, shown: str) -> list[str]:
    """Sorted names, by `pattern`, of the files with `ending`.

    Raises: DataError: no folder, no such file, or one of another pattern.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such folder; give the one that holds the raw download")
    names = [path.name for path in folder.iterdir()]
    files = [name for name in names if name.endswith(ending) and not name.startswith(".")]
    matches = {file: re.fullmatch(pattern, file, re.ASCII) for file in files}
    strange = sorted(file for file, match in matches.items() if match is None)
    if strange:
        raise DataError(f"{printable(folder / strange[0])}: not a scene name; {shown} expected")
    if not files:
        raise DataError(f"{printable(folder)}: no scene in it; {shown} expected")
    return sorted(match[1] for match in matches.values() if match)
