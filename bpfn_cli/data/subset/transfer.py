# SPDX-License-Identifier: MIT
"""Bring scene files into a subset: copies, hard links or symbolic links."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from bpfn_cli.data.datasets.folders import check_pair
from bpfn_cli.data.files.npy import parse_npy
from bpfn_cli.data.files.points import check_points
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.subset.manifest import MANIFEST, FileRecord, SceneFiles, SubsetManifest
from bpfn_cli.data.subset.plan import SubsetPlan, refuse_damaged, scene_list
from bpfn_cli.data.subset.similarity import measure_similarity
from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.files import TEMPORARY_PREFIX, disk_errors, make_folder, read_file, sync_folder, write_atomic
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import ProgressCallback

NO_HARD_LINKS = "cannot hold hard links of the source (another file system?); use --link copy"
_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}


def transfer_scenes(
    plan: SubsetPlan,
    out: Path,
    previous: SubsetManifest | None,
    *,
    force: bool,
    progress: ProgressCallback | None,
    processes: int | None,
) -> SubsetManifest:
    """Bring over every chosen scene. previous: the finished subset that `out` holds already.

    Raises: DataError: damaged scenes (all are tried), or a source that changes. DiskError.
    """
    for split in plan.chosen:
        make_folder(out / split)
    scenes = scene_list(plan.chosen)
    transfer = functools.partial(transfer_scene, plan, out, previous, force)
    results = list(map_in_threads(transfer, scenes, processes, progress))
    refuse_damaged([result for result in results if isinstance(result, str)], len(scenes))
    files: SceneFiles = {split: {} for split in SPLITS}
    for (split, name), result in zip(scenes, results, strict=True):
        assert not isinstance(result, str)
        files[split][name] = result
    manifest = SubsetManifest(plan.task, plan.before, plan.after, measure_similarity(plan), files)
    for split in plan.chosen:
        sync_folder(out / split)
    return manifest


def transfer_scene(
    plan: SubsetPlan, out: Path, previous: SubsetManifest | None, force: bool, scene: tuple[str, str]
) -> dict[str, FileRecord] | str:
    """Bring over one scene. Returns: the records of its files, or what is wrong with a damaged scene."""
    split, name = scene
    source, target = plan.source / split / name, out / split / name
    with disk_errors(target):
        with unchanged({source / cloud: plan.sizes[f"{split}/{name}/{cloud}"] for cloud in CLOUDS}):
            contents = {cloud: read_file(source / cloud) for cloud in CLOUDS}
        try:
            check_pair(source, *(_points(content, source / cloud) for cloud, content in contents.items()))
        except DataError as error:
            return str(error)
        records = {cloud: file_record(content) for cloud, content in contents.items()}
        if previous and previous.files[split][name] != records:
            raise DataError(
                f"{printable(source)}: edited since {MANIFEST} was written; restore it, or use --force to take it"
            )
        make_folder(target)
        for cloud, content in contents.items():
            _place(source / cloud, target / cloud, content, plan.options.link, force)
    return records


@contextlib.contextmanager
def unchanged(sizes: Mapping[Path, int]) -> Iterator[None]:
    """Check that files have these sizes, and that nobody writes them inside the block. Raises: DataError."""
    before = {path: stamp(path) for path in sizes}
    yield
    for path, size in sizes.items():
        after = stamp(path)
        if after is None or after != before[path] or after[1] != size:
            raise DataError(f"{printable(path)}: changed while the subset was made; repeat when nobody is writing it")


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and time of change in nanoseconds; None: no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def file_record(content: bytearray) -> FileRecord:
    """Size and hash of a file with this content."""
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _points(content: bytearray, path: Path) -> np.ndarray:
    return check_points(parse_npy(content, printable(path)), path)


def _place(source: Path, target: Path, content: bytearray, link: str, force: bool) -> None:
    if os.path.lexists(target):
        if _is_placed(source, target, content, link):
            return
        if not force:
            raise DataError(f"{printable(target)}: differs from its source; remove it, or use --force to overwrite it")
    if link == "symlink":
        _link(os.symlink, source, target)
    elif link == "copy" or not _hard_link(source, target, link):
        write_atomic(target, bytes(content))
        status = source.stat()
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))  # `is_untouched` compares it


def _is_placed(source: Path, target: Path, content: bytearray, link: str) -> bool:
    """Whether an earlier run with these options made `target`."""
    if target.is_symlink() or link == "symlink":
        return link == "symlink" and target.is_symlink() and target.exists() and target.samefile(source)
    if target.samefile(source):
        return link != "copy"
    return link != "hard" and read_file(target) == content


def _hard_link(source: Path, target: Path, link: str) -> bool:
    try:
        _link(os.link, source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        if link == "hard":
            raise DiskError(f"{printable(target)}: {NO_HARD_LINKS}") from error
        return False
    return True


def _link(make: Callable[[str, Path], None], source: Path, target: Path) -> None:
    temporary = target.parent / f"{TEMPORARY_PREFIX}{target.name}"
    try:
        make(os.path.realpath(source), temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # renaming to a hard link of the same file does nothing
    sync_folder(target.parent)
