# SPDX-License-Identifier: MIT
"""Make a subset, a share of the scenes that shows the trends of the whole, and verify a finished one."""

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path

from bpfn_cli.data.datasets.base import in_one_line
from bpfn_cli.data.records import OutputRecord
from bpfn_cli.data.subset import folder
from bpfn_cli.data.subset.manifest import MANIFEST, Extent, Similarity, SubsetManifest, SubsetOptions, read_manifest
from bpfn_cli.data.subset.plan import SubsetPlan, measure_similarity, plan_subset, scene_list
from bpfn_cli.data.subset.transfer import fault_of, pack_scenes, transfer_scenes
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors, made_folder
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import OnProgress


@dataclass(frozen=True)
class SubsetSummary:
    """A finished subset. before, after: size of the source and of the subset; skipped: as in `SubsetPlan`."""

    out: Path
    source_kind: str
    options: SubsetOptions
    before: Extent
    after: Extent
    similarity: Similarity
    already_complete: bool = False
    skipped: tuple[str, ...] = ()


def make_subset(
    source: Path,
    out: Path,
    options: SubsetOptions,
    *,
    progress: OnProgress = None,
    force: bool = False,
    processes: int | None = None,
) -> SubsetSummary:
    """Write the chosen scenes to `out/{train,val}/NAME/{pc1,pc2}.npy` or `out/{train,val}.packed`, then `subset.json`.

    A killed run completes when it is repeated, with the same bytes; a finished one returns at once.

    Args:
        force: replace another subset and edited files; remove foreign files, but only in train/ and val/.
        processes: threads that copy and hash (neither holds the interpreter lock).
    Raises:
        DataError: as `plan_subset`; damaged scenes; a source that changes meanwhile; foreign or edited files.
        UsageError: `out` and `source` overlap. BusyError: another process works on `out`. DiskError.
    """
    if processes is not None and processes < 1:
        raise UsageError(f"processes {processes}: use 1 or more")
    record = OutputRecord(out, MANIFEST)
    reuse = options.method == "stratified" and record.finished.is_file() and not force
    known = read_manifest(record.finished) if reuse else None
    plan = plan_subset(source, options, known=known, progress=progress, processes=processes)
    folder.refuse_overlap(plan.source, out)
    with made_folder(out), only_writer(out), disk_errors(out):
        folder.sweep(out)
        previous = None if force else folder.own_work(out, plan)
        if previous and folder.is_untouched(plan, out, previous):
            record.remove_partial()
            return _summarize(out, previous, True, plan.skipped)
        folder.refuse_full_disk(plan, out)
        record.start(plan.task.document())
        if force:
            record.finished.unlink(missing_ok=True)
            folder.remove_foreign(out, plan.chosen, options)
        manifest = _write_scenes(plan, out, previous, force, progress, processes)
        record.finish(manifest.document())
    return _summarize(out, manifest, False, plan.skipped)


def _write_scenes(
    plan: SubsetPlan, out: Path, previous: SubsetManifest | None, force: bool, progress: OnProgress, threads: int | None
) -> SubsetManifest:
    after = plan.after
    if plan.options.packed:
        files, packed = pack_scenes(plan, out, progress, threads)
        after = replace(after, bytes=sum(file.bytes for file in packed.values()))
    else:
        files, packed = transfer_scenes(plan, out, previous, force, progress, threads), {}
    subset, source = (plan.dataset("train", scenes["train"]) for scenes in (plan.chosen, plan.available))
    return SubsetManifest(plan.task, plan.before, after, measure_similarity(subset, source), files, packed)


def _summarize(out: Path, manifest: SubsetManifest, complete: bool, skipped: tuple[str, ...] = ()) -> SubsetSummary:
    task, sizes = manifest.task, (manifest.before, manifest.after, manifest.similarity)
    return SubsetSummary(out, task.source_kind, task.options, *sizes, complete, skipped)


def verify_subset(out: Path, *, progress: OnProgress = None, processes: int | None = None) -> SubsetSummary:
    """Compare every file of a finished subset with its record. Raises: DataError: unfinished, or changed."""
    record = OutputRecord(out, MANIFEST)
    with disk_errors(out):
        if not os.path.lexists(record.finished):
            if record.partial.exists():
                raise DataError(f"{printable(out)}: unfinished; repeat the bpfn subset command")
            raise DataError(f"{printable(out)}: no {MANIFEST}, so not a subset; check the path")
        manifest = read_manifest(record.finished)
        foreign = folder.foreign_entries(out, manifest.names(), manifest.task.options)
    check = functools.partial(_scene_faults, out, manifest, frozenset(foreign))
    scenes = scene_list(manifest.names())
    faults = [fault for found in map_in_threads(check, scenes, processes, progress) for fault in found]
    faults += [f"{name} {fault}" for name, file in manifest.packed.items() if (fault := fault_of(out / name, file))]
    faults += [f"{path} does not belong" for path in foreign]
    if faults:
        raise DataError(f"{printable(out)}: {printable(in_one_line(faults))}; make the subset again with --force")
    return _summarize(out, manifest, False)


def _scene_faults(out: Path, manifest: SubsetManifest, foreign: frozenset[str], scene: tuple[str, str]) -> list[str]:
    """What is wrong with the files of a scene; nothing is read through entries that do not belong."""
    split, name = scene
    if foreign & {split, f"{split}/{name}"}:
        return []
    files = {f"{split}/{name}/{cloud}": record for cloud, record in manifest.files[split][name].items()}
    with disk_errors(out):
        own = {key: record for key, record in files.items() if key not in foreign}
        return [f"{key} {fault}" for key, record in own.items() if (fault := fault_of(out / key, record))]
