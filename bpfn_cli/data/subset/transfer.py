# SPDX-License-Identifier: MIT
"""Bring scenes into a subset: as copies, hard links or symbolic links, or packed into one file per split."""

import contextlib
import errno
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.datasets.folders import check_pair
from bpfn_cli.data.datasets.packed import pack_rows, write_packed
from bpfn_cli.data.files.npy import parse_npy
from bpfn_cli.data.files.points import check_points
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.subset.manifest import MANIFEST, FileRecord, SceneFiles, SubsetManifest, packed_name
from bpfn_cli.data.subset.plan import SubsetPlan, refuse_damaged, scene_list
from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.files import TEMPORARY_PREFIX, disk_errors, make_folder, read_file, sha256_of, sync_folder, write_atomic
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import OnProgress

NO_HARD_LINKS = "cannot hold hard links of the source (another file system?); use --link copy"
_ROWS = {"frame": "x left, y up, z forward; metres", "columns": ["x", "y", "z", "flow x", "flow y", "flow z"]}
_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}


def transfer_scenes(
    plan: SubsetPlan, out: Path, previous: SubsetManifest | None, force: bool, progress: OnProgress, threads: int | None
) -> SceneFiles:
    """Copy or link every chosen scene. Raises: DataError: damaged scenes (all are tried), or changes of the source."""
    for split in plan.chosen:
        make_folder(out / split)
    scenes = scene_list(plan.chosen)
    transfer = functools.partial(transfer_scene, plan, out, previous, force)
    results = list(map_in_threads(transfer, scenes, threads, progress))
    refuse_damaged([result for result in results if isinstance(result, str)], len(scenes))
    for split in plan.chosen:
        sync_folder(out / split)
    records = {scene: found for scene, found in zip(scenes, results, strict=True) if not isinstance(found, str)}
    return {split: {name: records[split, name] for name in plan.chosen.get(split, ())} for split in SPLITS}


def transfer_scene(
    plan: SubsetPlan, out: Path, previous: SubsetManifest | None, force: bool, scene: tuple[str, str]
) -> dict[str, FileRecord] | str:
    """Bring over one scene. Returns: the records of its files, or what is wrong with a damaged scene."""
    split, name = scene
    source, target = plan.source / split / name, out / split / name
    with disk_errors(target):
        with _unchanged(plan, scene):
            contents = {cloud: read_file(source / cloud) for cloud in CLOUDS}
        try:
            paths = {source / cloud: content for cloud, content in contents.items()}
            check_pair(source, *(check_points(parse_npy(paths[path], printable(path)), path) for path in paths))
        except DataError as error:
            return str(error)
        records = {cloud: _record_of(content) for cloud, content in contents.items()}
        if previous and previous.files[split][name] != records:
            edited = f"{printable(source)}: edited since {MANIFEST} was written"
            raise DataError(f"{edited}; restore it, or use --force to take it")
        make_folder(target)
        for cloud, content in contents.items():
            _place(source / cloud, target / cloud, content, plan.options.link, force)
    return records


@contextlib.contextmanager
def _unchanged(plan: SubsetPlan, scene: tuple[str, str]) -> Iterator[None]:
    """Check that files have the sizes of `plan`, and that nobody writes them inside the block. Raises: DataError."""
    keys = ["/".join((*scene, cloud)) for cloud in CLOUDS]
    before = [stamp(plan.source / key) for key in keys]
    yield
    for key, old in zip(keys, before, strict=True):
        path = plan.source / key
        if old is None or stamp(path) != old or old[1] != plan.sizes[key]:
            raise DataError(f"{printable(path)}: changed while the subset was made; repeat when nobody is writing it")


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and time of change in nanoseconds; None: no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _record_of(content: bytearray) -> FileRecord:
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def fault_of(path: Path, record: FileRecord) -> str | None:
    """How a file differs from its record; None: it does not."""
    if not path.exists():
        return "is missing"
    same = path.is_file() and path.stat().st_size == record.bytes and sha256_of(path) == record.sha256
    return None if same else "changed"


def _place(source: Path, target: Path, content: bytearray, link: str, force: bool) -> None:
    if os.path.lexists(target):
        if _is_placed(source, target, content, link):
            return
        if not force:
            raise DataError(f"{printable(target)}: differs from its source; remove it, or use --force to overwrite it")
    if link == "copy" or not _link(source, target, link):
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


def _link(source: Path, target: Path, link: str) -> bool:
    """Make a link in one step. Returns: False: the disk has no hard links, and `link` is auto."""
    make = os.symlink if link == "symlink" else os.link
    temporary = target.parent / f"{TEMPORARY_PREFIX}{target.name}"
    try:
        make(os.path.realpath(source), temporary)
        temporary.replace(target)
    except OSError as error:
        if link == "symlink" or error.errno not in _NO_HARD_LINK:
            raise
        if link == "hard":
            raise DiskError(f"{printable(target)}: {NO_HARD_LINKS}") from error
        return False
    finally:
        temporary.unlink(missing_ok=True)  # renaming to a hard link of the same file does nothing
    sync_folder(target.parent)
    return True


class _Damaged(Exception):
    """A scene is damaged, so the file that was started must not be kept."""


def pack_scenes(
    plan: SubsetPlan, out: Path, progress: OnProgress, threads: int | None
) -> tuple[SceneFiles, dict[str, FileRecord]]:
    """Write `out/SPLIT.packed` of every split. Returns: scenes; file name -> record. Raises: as `transfer_scenes`."""
    scenes = scene_list(plan.chosen)
    faults: list[str] = []
    records: dict[str, FileRecord] = {}
    with contextlib.closing(map_in_threads(functools.partial(_rows, plan), scenes, threads, progress)) as rows:
        for split, names in plan.chosen.items():
            target, options = packed_name(split), plan.options
            header: dict[str, Any] = {"source_kind": plan.kind, "split": split, **_ROWS}
            header |= {"seed": options.seed, "max_points": options.max_points}
            with contextlib.suppress(_Damaged):
                sound = _until_damaged(islice(rows, len(names)), faults)
                records[target] = write_packed(out / target, names, sound, header)
    refuse_damaged(faults, len(scenes))
    return {split: {name: {} for name in plan.chosen.get(split, ())} for split in SPLITS}, records


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
    with _unchanged(plan, scene):
        try:
            return pack_rows(plan.dataset(split, [name]).load(0), plan.options.max_points, plan.options.seed)
        except DataError as error:
            return str(error)
