# SPDX-License-Identifier: MIT
"""Pack the scenes of a subset into one file per split."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from bpfn_cli.data.datasets.packed import pack_rows, write_packed
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.subset.manifest import FileRecord, SceneFiles, SubsetManifest, packed_name
from bpfn_cli.data.subset.plan import SubsetPlan, refuse_damaged, scene_list
from bpfn_cli.data.subset.similarity import measure_similarity
from bpfn_cli.data.subset.transfer import unchanged
from bpfn_cli.errors import DataError
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import ProgressCallback


class _Damaged(Exception):
    """A scene is damaged, so the file that was started must not be kept."""


def pack_scenes(
    plan: SubsetPlan, out: Path, *, progress: ProgressCallback | None, processes: int | None
) -> SubsetManifest:
    """Write `out/SPLIT.packed` of every split.

    Raises: DataError: damaged scenes (all are tried), or a source that changes. DiskError.
    """
    scenes = scene_list(plan.chosen)
    faults: list[str] = []
    records: dict[str, FileRecord] = {}
    with contextlib.closing(map_in_threads(functools.partial(_rows, plan), scenes, processes, progress)) as rows:
        for split, names in plan.chosen.items():
            target = packed_name(split)
            with contextlib.suppress(_Damaged):
                sound = _until_damaged(islice(rows, len(names)), faults)
                records[target] = write_packed(out / target, names, sound, _header(plan, split))
    refuse_damaged(faults, len(scenes))
    after = replace(plan.after, bytes=sum(record.bytes for record in records.values()))
    files: SceneFiles = {split: {name: {} for name in plan.chosen.get(split, ())} for split in SPLITS}
    return SubsetManifest(plan.task, plan.before, after, measure_similarity(plan), files, records)


def _until_damaged(results: Iterable[np.ndarray | str], faults: list[str]) -> Iterator[np.ndarray]:
    """Yield rows until a scene is damaged, then only collect what is wrong with the others."""
    for rows in results:
        if isinstance(rows, str):
            faults.append(rows)
        elif not faults:
            yield rows
    if faults:
        raise _Damaged


def _rows(plan: SubsetPlan, scene: tuple[str, str]) -> np.ndarray | str:
    """The rows of a scene to pack, or what is wrong with a damaged one. Raises: DataError: it changes meanwhile."""
    split, name = scene
    keys = [f"{split}/{name}/{cloud}" for cloud in CLOUDS]
    with unchanged({plan.source / key: plan.sizes[key] for key in keys}):
        try:
            return pack_rows(plan.dataset(split, [name]).load(0), plan.options.max_points, plan.options.seed)
        except DataError as error:
            return str(error)


def _header(plan: SubsetPlan, split: str) -> dict[str, object]:
    return {
        "source_kind": plan.kind,
        "split": split,
        "frame": "x left, y up, z forward; metres",
        "columns": ["x", "y", "z", "flow x", "flow y", "flow z"],
        "seed": plan.options.seed,
        "max_points": plan.options.max_points,
    }
