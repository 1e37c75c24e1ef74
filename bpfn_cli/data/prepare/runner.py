# SPDX-License-Identifier: MIT
"""Prepare the scenes of a raw download: in parallel, in shards, resuming what a killed run left.

The settings are recorded before the first scene and again after the last one, so scenes of other settings never mix.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfn_cli.data.datasets.base import in_one_line
from bpfn_cli.data.prepare.scene import Preparation, RawScene
from bpfn_cli.data.records import OutputRecord, differences, read_record
from bpfn_cli.errors import BpfnError, DataError, DiskError, UsageError, printable
from bpfn_cli.files import TEMPORARY_PREFIX, disk_errors, make_folder, remove_temporaries, write_json
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import Shard, map_in_processes
from bpfn_cli.progress import ProgressCallback

RECORD = "prepared.json"
WHOLE = Shard()
_FIX = "choose another --out, or remove its folder"
_SHARD_PREFIX = ".shard-"  # hidden: dataset readers skip it


@dataclass(frozen=True)
class PrepareSummary:
    """The result of a preparation.

    Attributes:
        scenes: number of scenes, of the shard if there is one.
        skipped: how many of them an earlier run had completed.
        points: points of pc1 over all scenes.
        notes: lines for the user.
    """

    scenes: int
    skipped: int
    points: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Outcome:
    points: int = 0
    dropped: int = 0
    skipped: bool = False
    failure: BpfnError | None = None


def prepare(
    job: Preparation, *, shard: Shard = WHOLE, processes: int = 1, progress: ProgressCallback | None = None
) -> PrepareSummary:
    """Write the scenes that are missing. A killed run completes when it is repeated, with the same bytes.

    Args:
        shard: part of the scenes; other processes may prepare the other shards meanwhile.

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
    with _lock(job.out, shard):
        _claim(job, sweep=shard == WHOLE)
        outcomes = _prepare_scenes(shard.of(job.scenes), processes, progress)
        points = sum(outcome.points for outcome in outcomes)
        _finish(job, shard, points)
    dropped = sum(outcome.dropped for outcome in outcomes)
    notes = (*job.notes, f"{dropped} points with NaN or infinity were left out") if dropped else job.notes
    return PrepareSummary(len(outcomes), sum(outcome.skipped for outcome in outcomes), points, notes)


@contextlib.contextmanager
def _lock(out: Path, shard: Shard) -> Iterator[None]:
    """Lock the output; shards share it, and lock a folder of their own. Raises: BusyError."""
    own = contextlib.nullcontext() if shard == WHOLE else only_writer(make_folder(_shard_folder(out, shard)))
    with only_writer(out, shared=shard != WHOLE), own:
        yield


def _shard_folder(out: Path, shard: Shard) -> Path:
    """The folder that a shard locks and leaves its record in."""
    return out / f"{_SHARD_PREFIX}{shard.index}-of-{shard.count}"


def _claim(job: Preparation, sweep: bool) -> None:
    """Take the output folder, which must be empty or hold what an earlier run with the same settings left.

    Raises: UsageError: it holds something else.
    """
    record = OutputRecord(job.out, RECORD)
    if sweep:  # else another shard may be writing
        remove_temporaries(job.out)
    with disk_errors(job.out):
        foreign = [path for path in job.out.iterdir() if not _is_of_a_shard(path, record)]
    # Look for records only now: another shard may have started meanwhile, and it writes its record before its scenes.
    records = [path for path in (record.finished, record.partial) if path.exists()]
    for path in records:
        found = read_record(path, _FIX)
        if different := differences(job.settings, found):
            raise UsageError(
                f"{printable(job.out)}: prepared with other settings ({different[0]}); choose another --out"
            )
    if foreign and not records:
        raise UsageError(f"{printable(job.out)}: not empty, and not written by bpfn prepare; choose another --out")
    record.start(job.settings)


def _is_of_a_shard(path: Path, record: OutputRecord) -> bool:
    """Whether another shard that has just started may have made this."""
    return path.name.startswith((_SHARD_PREFIX, TEMPORARY_PREFIX)) or path in {record.finished, record.partial}


def _prepare_scenes(scenes: Sequence[RawScene], processes: int, progress: ProgressCallback | None) -> list[_Outcome]:
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
