# SPDX-License-Identifier: MIT
"""Check a finished subset against its `subset.json`."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from bpfn_cli.data.datasets.base import in_one_line
from bpfn_cli.data.subset.folder import foreign_entries, record_of
from bpfn_cli.data.subset.make import SubsetSummary, summarize
from bpfn_cli.data.subset.manifest import MANIFEST, FileRecord, SubsetManifest, read_manifest
from bpfn_cli.data.subset.plan import scene_list
from bpfn_cli.data.subset.transfer import file_record
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors, read_file
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import ProgressCallback


def verify_subset(
    out: Path, *, progress: ProgressCallback | None = None, processes: int | None = None
) -> SubsetSummary:
    """Read every file of a finished subset and compare it with its record.

    Raises:
        DataError: unfinished; or files that changed, are missing, or do not belong, up to ten by name.
        DiskError: not permitted.
    """
    with disk_errors(out):
        record = record_of(out)
        if not os.path.lexists(record.finished):
            if record.partial.exists():
                raise DataError(f"{printable(out)}: unfinished; repeat the bpfn subset command")
            raise DataError(f"{printable(out)}: no {MANIFEST}, so not a subset; check the path")
        manifest = read_manifest(record.finished)
        foreign = foreign_entries(out, manifest.names(), manifest.task.options)
    check = functools.partial(_scene_faults, out, manifest, frozenset(foreign))
    scenes = scene_list(manifest.names())
    faults = [fault for found in map_in_threads(check, scenes, processes, progress) for fault in found]
    faults += [f"{name} {fault}" for name, file in manifest.packed.items() if (fault := _fault(out / name, file))]
    faults += [f"{path} does not belong" for path in foreign]
    if faults:
        raise DataError(f"{printable(out)}: {printable(in_one_line(faults))}; make the subset again with --force")
    return summarize(out, manifest)


def _scene_faults(out: Path, manifest: SubsetManifest, foreign: frozenset[str], scene: tuple[str, str]) -> list[str]:
    """What is wrong with the files of a scene; nothing is read through entries that do not belong."""
    split, name = scene
    if foreign & {split, f"{split}/{name}"}:
        return []
    faults = []
    with disk_errors(out):
        for cloud, record in manifest.files[split][name].items():
            key = f"{split}/{name}/{cloud}"
            fault = None if key in foreign else _fault(out / key, record)
            if fault:
                faults.append(f"{key} {fault}")
    return faults


def _fault(path: Path, record: FileRecord) -> str | None:
    if not path.exists():
        return "is missing"
    return None if path.is_file() and file_record(read_file(path)) == record else "changed"
