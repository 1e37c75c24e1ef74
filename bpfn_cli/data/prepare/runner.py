# SPDX-License-Identifier: MIT
"""Prepare the scenes of a raw download: in parallel, in shards, resuming what a killed run left.

The settings are recorded before the first scene and again after the last one, so scenes of other settings never mix.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bpfn_cli.data.datasets.base import in_one_line
from bpfn_cli.data.files.archives import RawFiles
from bpfn_cli.data.files.npy import npy_shape
from bpfn_cli.data.files.points import check_points, write_points
from bpfn_cli.data.names import CLOUDS
from bpfn_cli.data.records import OutputRecord, differences, read_record
from bpfn_cli.errors import BpfnError, DataError, DiskError, UsageError, printable
from bpfn_cli.files import TEMPORARY_PREFIX, disk_errors, make_folder, remove_temporaries, write_json
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import Shard, map_in_processes
from bpfn_cli.progress import OnProgress

RECORD = "prepared.json"
WHOLE = Shard()
_FIX = "choose another --out, or remove its folder"
_SHARD_PREFIX = ".shard-"  # hidden: dataset readers skip it

Map = TypeVar("Map")


@dataclass(frozen=True)
class ScenePair:
    """The two clouds of a scene."""

    pc1: np.ndarray  # (N, 3)
    pc2: np.ndarray  # (M, 3)
    flow: np.ndarray | None = None  # (N, 3), with occlusion only, where the rows of pc1 and pc2 do not correspond
    valid: np.ndarray | None = None  # (N,) bool, as flow
    dropped: int = 0  # number of damaged points that were left out

    def checked(self, label: str) -> ScenePair:
        """The same pair. Raises: DataError: as `check_points`; blames `label`."""
        path = Path(label)
        return replace(self, pc1=check_points(self.pc1, path, "pc1"), pc2=check_points(self.pc2, path, "pc2"))


@dataclass(frozen=True)
class RawScene:
    """A scene of a raw download, and where it is written."""

    target: Path  # by default a folder with two clouds, pc2 last: with both files, it is complete

    def read(self) -> ScenePair:
        """Read the scene. Raises: DataError: missing or damaged maps. DiskError: not permitted."""
        raise NotImplementedError

    def prepared_points(self) -> int | None:
        """Number of points of pc1 if the scene is written completely, else None."""
        try:
            shape1, shape2 = (npy_shape(self.target / cloud) for cloud in CLOUDS)
        except DataError:
            return None
        return shape1[0] if shape1 == shape2 and len(shape1) == 2 else None

    def write(self, pair: ScenePair) -> None:
        """Write the scene; a kill leaves it complete or `prepared_points` None. Raises: DiskError."""
        remove_temporaries(make_folder(self.target))
        for cloud, points in zip(CLOUDS, (pair.pc1, pair.pc2), strict=True):
            write_points(self.target / cloud, points)


@dataclass(frozen=True)
class Preparation:
    """The scenes of one raw download, ready to be prepared."""

    source: Path  # the raw download
    out: Path
    scenes: Sequence[RawScene]
    settings: Mapping[str, object]  # kept in the record; the output holds scenes of these settings only
    notes: tuple[str, ...] = ()  # lines for the user


@dataclass(frozen=True)
class PrepareSummary:
    """The result of a preparation, or of one shard."""

    scenes: int
    skipped: int  # scenes that an earlier run had completed
    points: int  # of pc1, over all scenes
    notes: tuple[str, ...]  # lines for the user


@dataclass(frozen=True)
class _Outcome:
    points: int = 0
    dropped: int = 0
    skipped: bool = False
    failure: BpfnError | None = None


def numbered_files(folder: RawFiles, form: str) -> list[str]:
    """Sorted numbers of the files named like `form`, such as NNNNNN_10.png. Raises: DataError: none, or other files."""
    pattern = re.sub("N+", lambda digits: rf"(\d{{{len(digits[0])}}})", re.escape(form))
    files = [name for name in folder.names() if name.endswith(Path(form).suffix) and not name.startswith(".")]
    matches = {file: re.fullmatch(pattern, file, re.ASCII) for file in files}
    if strange := sorted(file for file, match in matches.items() if match is None):
        raise DataError(f"{folder.label(strange[0])}: not a scene name; {form} expected")
    if not files:
        raise DataError(f"{printable(folder.name)}: no scenes found; {form} expected")
    return sorted(match[1] for match in matches.values() if match)


def read_map(files: RawFiles, name: str, parse: Callable[[bytearray, str], Map]) -> Map:
    """Read and parse a file of a raw download. Raises: DataError: missing or damaged. DiskError: not permitted."""
    return parse(files.read(name), files.label(name))


def prepare(
    job: Preparation, *, shard: Shard = WHOLE, processes: int = 1, progress: OnProgress = None
) -> PrepareSummary:
    """Write the scenes that are missing. A killed run completes when it is repeated, with the same bytes.

    Args: shard: part of the scenes; other processes may prepare the other shards meanwhile.
    Raises:
        DataError: damaged scenes (all are tried, and all are listed). DiskError: not permitted, or no space.
        UsageError: `out` inside the source, or not empty, or with other settings. BusyError: in use.
    """
    if processes < 1:
        raise UsageError(f"processes {processes}: use 1 or more")
    source, out = (Path(os.path.realpath(path)) for path in (job.source, job.out))  # Path.resolve fails on link loops
    if out.is_relative_to(source):
        raise UsageError(f"{printable(job.out)}: inside the source {printable(job.source)}; choose another --out")
    make_folder(job.out)
    own = contextlib.nullcontext() if shard == WHOLE else only_writer(make_folder(_shard_folder(job.out, shard)))
    with only_writer(job.out, shared=shard != WHOLE), own:  # shards share the folder, and lock one of their own
        _claim(job, sweep=shard == WHOLE)
        outcomes = _prepare_scenes(shard.of(job.scenes), processes, progress)
        points = sum(outcome.points for outcome in outcomes)
        _finish(job, shard, points)
    dropped = sum(outcome.dropped for outcome in outcomes)
    notes = (*job.notes, f"{dropped} points with NaN or infinity were left out") if dropped else job.notes
    return PrepareSummary(len(outcomes), sum(outcome.skipped for outcome in outcomes), points, notes)


def _shard_folder(out: Path, shard: Shard) -> Path:
    """The folder that a shard locks and leaves its record in."""
    return out / f"{_SHARD_PREFIX}{shard.index}-of-{shard.count}"


def _claim(job: Preparation, sweep: bool) -> None:
    """Take the output folder: empty, or left by a run with the same settings. Raises: UsageError: anything else."""
    record = OutputRecord(job.out, RECORD)
    if sweep:  # else another shard may be writing
        remove_temporaries(job.out)
    own = {record.finished.name, record.partial.name}
    with disk_errors(job.out):  # another shard may have just started, and made entries like these
        names = {path.name for path in job.out.iterdir()} - own
    foreign = [name for name in names if not name.startswith((_SHARD_PREFIX, TEMPORARY_PREFIX))]
    # Look for records only now: another shard may have started meanwhile, and it writes its record before its scenes.
    records = [path for path in (record.finished, record.partial) if path.exists()]
    for path in records:
        if different := differences(job.settings, _settings_in(path, job)):
            where = f"{printable(job.out)}: prepared with other settings ({different[0]})"
            raise UsageError(f"{where}; choose another --out")
    if foreign and not records:
        raise UsageError(f"{printable(job.out)}: not empty, and not written by bpfn prepare; choose another --out")
    record.start(job.settings)
    if record.finished.exists():
        count = _settings_in(record.finished, job).get("scenes")
        if count != len(job.scenes) or not all(scene.target.exists() for scene in job.scenes):
            record.reopen()


def _settings_in(path: Path, job: Preparation) -> Mapping[str, Any]:
    """What a record holds; the settings of the job if another shard has just removed it."""
    try:
        return read_record(path, _FIX)
    except DataError:
        if path.exists():
            raise
        return job.settings


def _prepare_scenes(scenes: Sequence[RawScene], processes: int, progress: OnProgress) -> list[_Outcome]:
    """Prepare every scene. Raises: DataError, DiskError: once all are tried, lists those that failed."""
    outcomes = []
    for outcome in map_in_processes(_prepare_scene, scenes, processes):
        outcomes.append(outcome)
        if progress:
            progress(len(outcomes), len(scenes))
    if failures := [outcome.failure for outcome in outcomes if outcome.failure]:
        kind = DiskError if any(isinstance(failure, DiskError) for failure in failures) else DataError
        listed = in_one_line([str(failure) for failure in failures], " | ")
        raise kind(f"{len(failures)} of {len(scenes)} scenes could not be prepared: {listed}")
    return outcomes


def _prepare_scene(scene: RawScene) -> _Outcome:
    """Return faults of the source, so that the other scenes are still prepared; faults of the output end the run."""
    if (points := scene.prepared_points()) is not None:
        return _Outcome(points, skipped=True)
    try:
        pair = scene.read()
    except BpfnError as error:
        return _Outcome(failure=type(error)(str(error)))  # without the traceback, which holds the arrays
    scene.write(pair)
    return _Outcome(len(pair.pc1), pair.dropped)


def _finish(job: Preparation, shard: Shard, points: int) -> None:
    """Write the record; of shards, once all have written their own for the same number of scenes."""
    scenes = len(job.scenes)
    if shard != WHOLE:
        write_json(_shard_folder(job.out, shard) / RECORD, {"scenes_in_all": scenes, "points": points})
        shards = [Shard(index, shard.count) for index in range(1, shard.count + 1)]
        records = [_shard_folder(job.out, one) / RECORD for one in shards]
        found = [read_record(record, _FIX) for record in records if record.is_file()]
        if [one["scenes_in_all"] for one in found] != [scenes] * shard.count:
            return
        points = sum(one["points"] for one in found)
    OutputRecord(job.out, RECORD).finish({**job.settings, "scenes": scenes, "points": points})
