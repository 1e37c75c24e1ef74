# SPDX-License-Identifier: MIT
"""Make a subset: a share of the scenes that shows the trends of the whole, on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bpfn_cli.data.subset.folder import (
    is_untouched,
    own_work,
    record_of,
    refuse_full_disk,
    refuse_overlap,
    remove_foreign,
    sweep,
)
from bpfn_cli.data.subset.manifest import Extent, Similarity, SubsetManifest, SubsetOptions, read_manifest
from bpfn_cli.data.subset.pack import pack_scenes
from bpfn_cli.data.subset.plan import plan_subset
from bpfn_cli.data.subset.transfer import transfer_scenes
from bpfn_cli.errors import UsageError
from bpfn_cli.files import disk_errors, make_folder
from bpfn_cli.locks import only_writer
from bpfn_cli.progress import ProgressCallback


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


def summarize(
    out: Path, manifest: SubsetManifest, already_complete: bool = False, skipped: tuple[str, ...] = ()
) -> SubsetSummary:
    """The summary of a finished subset."""
    task = manifest.task
    sizes = manifest.before, manifest.after, manifest.similarity
    return SubsetSummary(out, task.source_kind, task.options, *sizes, already_complete, skipped)


def make_subset(
    source: Path,
    out: Path,
    options: SubsetOptions,
    *,
    progress: ProgressCallback | None = None,
    force: bool = False,
    processes: int | None = None,
) -> SubsetSummary:
    """Write the chosen scenes to `out/{train,val}/NAME/{pc1,pc2}.npy` or `out/{train,val}.packed`, then `subset.json`.

    A killed run completes when it is repeated, with the same bytes; a finished one returns at once.

    Args:
        force: replace another subset and edited files. Foreign files in train/ and val/ are removed,
            nothing beside them is touched.
        processes: threads that copy and hash (neither holds the interpreter lock).
    Raises:
        UsageError: `out` and `source` overlap.
        DataError: as `plan_subset`; damaged scenes; a source that changes meanwhile; foreign or edited files.
        DiskError: no space, no inodes, not permitted. BusyError: another process works on `out`.
    """
    if processes is not None and processes < 1:
        raise UsageError(f"processes {processes}: use 1 or more")
    record = record_of(out)
    reuse = options.method == "stratified" and record.finished.is_file() and not force
    known = read_manifest(record.finished) if reuse else None
    plan = plan_subset(source, options, known=known, progress=progress, processes=processes)
    refuse_overlap(plan.source, out)
    with only_writer(make_folder(out)), disk_errors(out):
        sweep(out)
        previous = None if force else own_work(out, plan)
        if previous and is_untouched(plan, out, previous):
            record.remove_partial()
            return summarize(out, previous, already_complete=True, skipped=plan.skipped)
        refuse_full_disk(plan, out)
        record.start(plan.task.document())
        if force:
            record.finished.unlink(missing_ok=True)
            remove_foreign(out, plan.chosen, options)
        if options.packed:
            manifest = pack_scenes(plan, out, progress=progress, processes=processes)
        else:
            manifest = transfer_scenes(plan, out, previous, force=force, progress=progress, processes=processes)
        record.finish(manifest.document())
    return summarize(out, manifest, skipped=plan.skipped)
