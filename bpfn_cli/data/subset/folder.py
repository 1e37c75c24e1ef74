# SPDX-License-Identifier: MIT
"""The folder of a subset: what belongs in it, whether it is complete, and whether the disk has room for it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bpfn_cli.data.datasets.base import SceneNames
from bpfn_cli.data.datasets.packed import ROW_BYTES
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.records import OutputRecord
from bpfn_cli.data.subset.manifest import MANIFEST, SubsetManifest, SubsetOptions, packed_name, read_manifest, read_task
from bpfn_cli.data.subset.plan import SubsetPlan, scene_list
from bpfn_cli.data.subset.transfer import NO_HARD_LINKS, stamp
from bpfn_cli.errors import DataError, DiskError, UsageError, printable
from bpfn_cli.files import remove_temporaries

_MANIFEST_BYTES_PER_FILE = 256
_REPLACE = "choose another --out, or replace it with --force"


def refuse_overlap(source: Path, out: Path) -> None:
    """Raises: UsageError: one lies inside the other."""
    real_source, real_out = os.path.realpath(source), os.path.realpath(out)
    if os.path.commonpath([real_source, real_out]) in {real_source, real_out}:
        raise UsageError(f"out {printable(out)}: overlaps with the source {printable(source)}; choose another")


def sweep(out: Path) -> None:
    """Remove the temporary files of killed runs; links are not followed."""
    splits = [out / split for split in SPLITS if _is_folder(out / split)]
    for folder in (out, *splits, *(path for split in splits for path in split.iterdir() if _is_folder(path))):
        remove_temporaries(folder)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def own_work(out: Path, plan: SubsetPlan) -> SubsetManifest | None:
    """The finished subset of `plan` in `out`; None: empty, or unfinished. Raises: DataError: anything else."""
    record = OutputRecord(out, MANIFEST)
    finished = read_manifest(record.finished) if os.path.lexists(record.finished) else None
    unfinished = read_task(record.partial) if os.path.lexists(record.partial) else None
    found = finished.task if finished else unfinished
    if found and (different := plan.task.differences(found)):
        raise DataError(f"{printable(out)}: holds another subset (asked for: {', '.join(different)}); {_REPLACE}")
    if finished and finished.names() != {split: plan.chosen.get(split, ()) for split in SPLITS}:
        raise DataError(f"{printable(record.finished)}: its scenes do not match its options; {_REPLACE}")
    if foreign := foreign_entries(out, plan.chosen if found else {}, plan.options):
        raise DataError(f"{printable(out / foreign[0])}: not part of this subset ({len(foreign)} such); {_REPLACE}")
    return finished


def foreign_entries(out: Path, names: SceneNames, options: SubsetOptions) -> list[str]:
    """Sorted entries of `out` that do not belong to a subset of scenes `names`."""
    foreign: list[str] = []
    own = {MANIFEST, OutputRecord(out, MANIFEST).partial.name}
    own |= set(map(packed_name, names)) if options.packed else set()
    for entry in os.scandir(out):
        if not options.packed and entry.name in names and entry.is_dir(follow_symlinks=False):
            foreign += _foreign_in_split(Path(entry.path), set(names[entry.name]), options.link)
        elif entry.name not in own or not entry.is_file(follow_symlinks=False):
            foreign.append(entry.name)
    return sorted(foreign)


def _foreign_in_split(folder: Path, names: set[str], link: str) -> Iterator[str]:
    for scene in os.scandir(folder):
        if scene.name not in names or not scene.is_dir(follow_symlinks=False):
            yield f"{folder.name}/{scene.name}"
            continue
        for entry in os.scandir(scene.path):
            linked = entry.is_symlink() and link == "symlink"
            if entry.name not in CLOUDS or not (linked or entry.is_file(follow_symlinks=False)):
                yield f"{folder.name}/{scene.name}/{entry.name}"


def remove_foreign(out: Path, names: SceneNames, options: SubsetOptions) -> None:
    """Remove what does not belong in train/, val/ and the packed files; nothing beside them is touched."""
    of_subsets = {*SPLITS, *map(packed_name, SPLITS)}
    for path in foreign_entries(out, names, options):
        if path.split("/")[0] not in of_subsets:
            continue
        if _is_folder(out / path):
            shutil.rmtree(out / path)
        else:
            (out / path).unlink()


def is_untouched(plan: SubsetPlan, out: Path, manifest: SubsetManifest) -> bool:
    """Whether sizes and times are as when `subset.json` was written; `verify_subset` reads the files."""
    finished = (out / MANIFEST).stat().st_mtime_ns
    files = {plan.source / key: plan.sizes[key] for key in plan.files()}
    if plan.options.packed:
        files |= {out / name: record.bytes for name, record in manifest.packed.items()}
        stamps = [(stamp(path), size) for path, size in files.items()]
        return all(found and found[1] == size and found[2] <= finished for found, size in stamps)
    for key in plan.files():
        source, target = stamp(plan.source / key), stamp(out / key)
        if not source or not target or source[1:] != target[1:] or target[2] > finished:
            return False
    return True


def refuse_full_disk(plan: SubsetPlan, out: Path) -> None:
    """Check the disk before anything is written. Raises: DiskError: too few bytes or inodes, or no hard links."""
    disk, link = os.statvfs(out), plan.options.link
    block, free = disk.f_frsize, disk.f_bavail * disk.f_frsize
    if plan.options.packed:
        points = [plan.sizes[key] // 12 for key in plan.files() if key.endswith(CLOUDS[0])]  # an upper bound
        most = plan.options.max_points or max(points, default=0)
        return _refuse(out, sum(min(count, most) * ROW_BYTES for count in points), free, "bytes", "--max-points")
    same_disk = plan.source.stat().st_dev == out.stat().st_dev
    if link == "hard" and not same_disk:
        raise DiskError(f"{printable(out)}: {NO_HARD_LINKS}")
    copies = link == "copy" or (link == "auto" and not same_disk)
    missing = [key for key in plan.files() if not os.path.lexists(out / key)]
    folders = len(SPLITS) + sum(not (out / split / name).exists() for split, name in scene_list(plan.chosen))
    blocks = sum(-(-plan.sizes[key] // block) for key in missing) if copies else 0
    _refuse(out, (blocks + folders) * block + len(missing) * _MANIFEST_BYTES_PER_FILE, free, "bytes", "--link symlink")
    inodes = folders + 2 + (len(missing) if copies or link == "symlink" else 0)
    if disk.f_files:  # 0: the file system has no fixed number of inodes
        _refuse(out, inodes, disk.f_favail, "inodes", "--link symlink")


def _refuse(out: Path, need: int, free: int, unit: str, option: str) -> None:
    if need > free:
        lack = f"{printable(out)}: needs {need:,} {unit} and {free:,} are free"
        raise DiskError(f"{lack}; free some, or choose another --out, a smaller --fraction or {option}")
