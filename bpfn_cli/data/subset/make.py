# SPDX-License-Identifier: MIT
"""A share of the training scenes that shows the trends of the whole, on one machine."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bpfn_cli.data.datasets.layout import (
    Layout,
    file_sizes,
    find_layout,
    fingerprint,
    in_one_line,
    list_scenes,
    scene_names,
)
from bpfn_cli.data.datasets.opening import FlyingThings3DScenes, check_pair
from bpfn_cli.data.datasets.packed import ROW_BYTES, pack_rows, write_packed
from bpfn_cli.data.files.npy import check_points, parse_npy, read_file
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.sampling import even_rows
from bpfn_cli.data.subset.manifest import (
    MANIFEST,
    SOURCE_KINDS,
    UNFINISHED,
    Extent,
    FileRecord,
    Likeness,
    SceneFiles,
    SubsetManifest,
    SubsetOptions,
    SubsetTask,
    packed_name,
    read_manifest,
    read_task,
    stride,
)
from bpfn_cli.data.subset.stratify import choose_alike, distributions
from bpfn_cli.errors import DataError, DiskError, UsageError, printable
from bpfn_cli.files import (
    TEMPORARY_PREFIX,
    disk_errors,
    make_folder,
    remove_temporaries,
    sync_folder,
    write_atomic,
    write_json,
)
from bpfn_cli.locks import only_writer

__all__ = ["SubsetOptions", "SubsetPlan", "SubsetSummary", "make_subset", "plan_subset", "verify_subset"]

SAMPLED_SCENES = 100
SAMPLED_POINTS = 1000

_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}
_MANIFEST_BYTES_PER_FILE = 256

_REPLACE = "choose another --out, or --force to replace it"
_NOT_HARD = "cannot hold hard links of the source (another file system?); use --link copy"
_MAKE_ROOM = "free some, or choose another --out, a smaller --fraction or --link symlink"

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SubsetPlan:
    """What `make_subset` would do.

    Attributes:
        source: the folder that holds train/ and val/. kind: one of `SOURCE_KINDS`.
        available, chosen: split -> sorted scene names, in the source and in the subset.
        sizes: "split/scene/cloud" -> bytes, of all source files.
        skipped: entries of the source that are no scenes: stray files, links that lead nowhere or in a loop.
    """

    source: Path
    kind: str
    options: SubsetOptions
    available: dict[str, tuple[str, ...]]
    chosen: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    skipped: tuple[str, ...]

    @property
    def task(self) -> SubsetTask:
        """What must be equal for two runs to be the same work."""
        return SubsetTask(str(self.source), self.kind, fingerprint(self.sizes), self.options)

    @property
    def before(self) -> Extent:
        """Of the source."""
        return _extent(self.available, self.sizes)

    @property
    def after(self) -> Extent:
        """Of the subset."""
        return _extent(self.chosen, self.sizes)


@dataclass(frozen=True)
class SubsetSummary:
    """A finished subset. before, after: of the source and of the subset; skipped: as in `SubsetPlan`."""

    out: Path
    source_kind: str
    options: SubsetOptions
    before: Extent
    after: Extent
    likeness: Likeness
    already_complete: bool = False
    skipped: tuple[str, ...] = ()


def plan_subset(
    source: Path,
    options: SubsetOptions,
    *,
    known: SubsetManifest | None = None,
    progress: Progress | None = None,
    processes: int | None = None,
) -> SubsetPlan:
    """Choose the scenes; nothing is written. Method stratified reads every training scene for it.

    Args:
        source: FlyingThings3D or synthetic scenes, or a subset of them, or the folder above them.
        known: a finished subset; if it is of this source and these options, its choice is taken as it is.
    Raises:
        DataError: no such dataset, no training scenes, missing files, names that differ in case only.
        DiskError: not permitted.
    """
    layout = find_layout(source, SOURCE_KINDS)
    if layout.manifest and layout.manifest.task.options.packed:
        raise DataError(f"{printable(layout.root)}: is packed, which no subset can be taken of; name what it is of")
    splits = [split for split in SPLITS if (layout.root / split).is_dir()]
    available = {split: scene_names(layout, split) for split in splits}
    available = _without(available, options.leave_out, layout.root)
    if not available.get("train"):
        raise DataError(f"{printable(layout.root)}: no training scenes to choose from; check the path")
    if options.val_fraction is not None and not available.get("val"):
        raise DataError(f"{printable(layout.root)}: no validation scenes to choose from; leave val_fraction out")
    fractions = {"train": options.fraction, "val": options.val_fraction}
    for split, names in available.items():
        _refuse_colliding(names, layout.root / split)
    chosen = {split: _choose(names, fractions[split], options) for split, names in available.items()}
    if not chosen["train"]:
        raise DataError(
            f"{printable(layout.root)}: offset {options.offset} is beyond its {len(available['train'])} "
            "training scenes; use a smaller one"
        )
    skipped = [f"{split}/{name}" for split in splits for name in list_scenes(layout.root / split)[1]]
    sizes = file_sizes(layout.root, available)
    if options.method == "stratified":
        task = SubsetTask(str(layout.root), layout.kind, fingerprint(sizes), options)
        if known and not task.differences(known.task):
            chosen["train"] = known.names()["train"]
        else:
            every = _distributions(layout, available["train"], progress, processes)
            first = [available["train"].index(name) for name in chosen["train"]]
            chosen["train"] = tuple(available["train"][i] for i in choose_alike(every, first, options.seed))
    return SubsetPlan(layout.root, layout.kind, options, available, chosen, sizes, tuple(skipped))


def make_subset(
    source: Path,
    out: Path,
    options: SubsetOptions,
    *,
    progress: Progress | None = None,
    force: bool = False,
    processes: int | None = None,
) -> SubsetSummary:
    """Write the chosen scenes to `out/{train,val}/NAME/{pc1,pc2}.npy` (packed: `out/{train,val}.packed`), and last
    `out/subset.json`.

    A killed run completes when it is repeated, with the same bytes; a finished one returns at once.

    Args:
        progress: called with scenes done and scenes in all.
        force: write over another subset and edited files; whatever else lies in train/ and val/ is removed,
            and nothing beside them is touched.
        processes: threads that copy and hash (neither holds the interpreter lock).
    Raises:
        UsageError: `out` and `source` lie inside each other.
        DataError: as `plan_subset`; damaged scenes; a source that changes meanwhile; foreign or edited files.
        DiskError: no space, no inodes, not permitted. BusyError: another process works on `out`.
    """
    if processes is not None and processes < 1:
        raise UsageError(f"processes {processes}: use 1 or more")
    known = read_manifest(out / MANIFEST) if options.method == "stratified" and (out / MANIFEST).is_file() else None
    plan = plan_subset(source, options, known=known, progress=progress, processes=processes)
    _refuse_overlap(plan.source, out)
    make_folder(out)
    with only_writer(out):
        with disk_errors(out):
            _sweep(out)
            previous = None if force else _own_work(out, plan)
            if previous and _is_untouched(plan, out):
                (out / UNFINISHED).unlink(missing_ok=True)
                return _summary(out, previous, already_complete=True, skipped=plan.skipped)
            _refuse_full_disk(plan, out)
            write_json(out / UNFINISHED, plan.task.document())
            if force:
                (out / MANIFEST).unlink(missing_ok=True)
                _remove_foreign(out, plan.chosen, options)
        if options.packed:
            manifest = _pack(plan, out, progress, processes)
        else:
            for split in plan.chosen:
                make_folder(out / split)
            place = functools.partial(_place_scene, plan, out, previous, force)
            files = _scene_files(plan, _each(place, _scenes(plan.chosen), progress, processes))
            manifest = SubsetManifest(plan.task, plan.before, plan.after, _measure_likeness(plan), files)
            for split in plan.chosen:
                sync_folder(out / split)
        write_json(out / MANIFEST, manifest.document())
        with disk_errors(out):
            (out / UNFINISHED).unlink()
        return _summary(out, manifest, skipped=plan.skipped)


def verify_subset(out: Path, *, progress: Progress | None = None, processes: int | None = None) -> SubsetSummary:
    """Read every file of a finished subset and compare it with `subset.json`.

    Raises:
        DataError: unfinished; or files that changed, are missing, or do not belong, up to ten by name.
        DiskError: not permitted.
    """
    with disk_errors(out):
        if not os.path.lexists(out / MANIFEST):
            if (out / UNFINISHED).exists():
                raise DataError(f"{printable(out)}: unfinished; repeat the bpfn subset that began it")
            raise DataError(f"{printable(out)}: no {MANIFEST}, so not a subset; check the path")
        manifest = read_manifest(out / MANIFEST)
        foreign = _foreign(out, manifest.names(), manifest.task.options)
    check = functools.partial(_scene_faults, out, manifest, frozenset(foreign))
    found = _each(check, _scenes(manifest.names()), progress, processes)
    faults = [fault for faults in found for fault in faults]
    faults += [f"{name} {fault}" for name, record in manifest.packed.items() if (fault := _fault(out / name, record))]
    faults += [f"{path} does not belong" for path in foreign]
    if faults:
        raise DataError(f"{printable(out)}: {printable(in_one_line(faults))}; make it again with --force")
    return _summary(out, manifest)


# --- choosing -------------------------------------------------------------------------------------


def _distributions(
    layout: Layout, names: tuple[str, ...], progress: Progress | None, processes: int | None
) -> np.ndarray:
    """Of each scene, (N, 2, bins). Damaged scenes are all named before anything is said."""
    dataset = FlyingThings3DScenes(layout.kind, layout.root, "train", names)

    def measured(index: int) -> np.ndarray | str:
        try:
            return distributions(dataset.load(index))
        except DataError as error:
            return str(error)

    found = _each(measured, range(len(dataset)), progress, processes)
    faults = [one for one in found if isinstance(one, str)]
    if faults:
        raise DataError(f"{len(faults)} of {len(names)} scenes are damaged: {in_one_line(faults)}")
    return np.stack([one for one in found if not isinstance(one, str)])


def read_leave_out(path: Path) -> tuple[str, ...]:
    """The scenes a list names, "split/scene" a line, as `bpfn data check --fix-list` writes it.

    Raises: DataError: no such file, or a line of another form.
    """
    lines = read_file(path).decode("utf-8", "replace").splitlines()
    names = sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})
    for name in names:
        if name.count("/") != 1 or name.split("/")[0] not in SPLITS:
            raise DataError(f"{printable(path)}: {printable(name)[:80]} is not of the form train/NAME or val/NAME")
    return tuple(names)


def _without(available: dict[str, tuple[str, ...]], leave_out: Sequence[str], root: Path) -> dict[str, tuple[str, ...]]:
    known = {f"{split}/{name}" for split, names in available.items() for name in names}
    if unknown := [name for name in leave_out if name not in known]:
        raise DataError(f"{printable(root)}: has no scene {in_one_line(unknown)} to leave out; check the list")
    return {
        split: tuple(name for name in names if f"{split}/{name}" not in leave_out) for split, names in available.items()
    }


def _choose(names: tuple[str, ...], fraction: float | None, options: SubsetOptions) -> tuple[str, ...]:
    if fraction is None or not names:
        return names
    if options.method == "stride":
        return names[options.offset :: stride(fraction)]
    count = max(1, round(fraction * len(names)))
    return tuple(sorted(_by_hash(names, options.seed)[:count]))


def _by_hash(names: Sequence[str], key: int | str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{key}:{name}".encode()).digest())


def _refuse_colliding(names: tuple[str, ...], folder: Path) -> None:
    """Scenes that one folder of a Mac or of Windows could not both hold."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(f"{printable(folder)}: {other} and {name} are one name on some file systems; rename one")


def _extent(scenes: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> Extent:
    total = sum(sizes[key] for key in _keys(scenes))
    return Extent(len(scenes.get("train", ())), len(scenes.get("val", ())), total)


def _keys(scenes: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{split}/{name}/{cloud}" for split, name in _scenes(scenes) for cloud in CLOUDS]


def _scenes(names: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(split, name) for split in SPLITS for name in names.get(split, ())]


# --- what is there already ------------------------------------------------------------------------


def _refuse_overlap(source: Path, out: Path) -> None:
    real_source, real_out = os.path.realpath(source), os.path.realpath(out)
    if os.path.commonpath([real_source, real_out]) in {real_source, real_out}:
        raise UsageError(
            f"out {printable(out)}: it and source {printable(source)} lie inside each other; choose another"
        )


def _sweep(out: Path) -> None:
    for folder in [out, *(folder for split in SPLITS for folder in _own_folders(out / split))]:
        remove_temporaries(folder)


def _own_folders(split: Path) -> list[Path]:
    """`split` and the folders in it; nothing that is only linked there."""
    if split.is_symlink() or not split.is_dir():
        return []
    return [split, *(Path(entry.path) for entry in os.scandir(split) if entry.is_dir(follow_symlinks=False))]


def _own_work(out: Path, plan: SubsetPlan) -> SubsetManifest | None:
    """The finished subset of `plan` in `out`; None: nothing, or an unfinished one.

    Raises: DataError: anything else is there.
    """
    finished = read_manifest(out / MANIFEST) if os.path.lexists(out / MANIFEST) else None
    unfinished = read_task(out / UNFINISHED) if os.path.lexists(out / UNFINISHED) else None
    found = finished.task if finished else unfinished
    if found and (differences := plan.task.differences(found)):
        asked = printable(", ".join(differences))
        raise DataError(f"{printable(out)}: holds another subset (asked for: {asked}); {_REPLACE}")
    if finished and finished.names() != {split: plan.chosen.get(split, ()) for split in SPLITS}:
        raise DataError(f"{printable(out / MANIFEST)}: names other scenes than its options choose; {_REPLACE}")
    if foreign := _foreign(out, plan.chosen if found else {}, plan.options):
        raise DataError(f"{printable(out / foreign[0])}: not of this subset ({len(foreign)} such); {_REPLACE}")
    return finished


def _foreign(out: Path, names: Mapping[str, Sequence[str]], options: SubsetOptions) -> list[str]:
    """What lies in `out` and belongs to no subset of scenes `names`, sorted."""
    foreign: list[str] = []
    own_files = {MANIFEST, UNFINISHED} | ({packed_name(split) for split in names} if options.packed else set())
    for entry in os.scandir(out):
        if not options.packed and entry.name in names and entry.is_dir(follow_symlinks=False):
            foreign += _foreign_scenes(Path(entry.path), set(names[entry.name]), options.link)
        elif entry.name not in own_files or not entry.is_file(follow_symlinks=False):
            foreign.append(entry.name)
    return sorted(foreign)


def _foreign_scenes(folder: Path, names: set[str], link: str) -> Iterator[str]:
    for scene in os.scandir(folder):
        if scene.name not in names or not scene.is_dir(follow_symlinks=False):
            yield f"{folder.name}/{scene.name}"
            continue
        for entry in os.scandir(scene.path):
            linked = entry.is_symlink() and link == "symlink"
            if entry.name not in CLOUDS or not (linked or entry.is_file(follow_symlinks=False)):
                yield f"{folder.name}/{scene.name}/{entry.name}"


def _remove_foreign(out: Path, names: Mapping[str, Sequence[str]], options: SubsetOptions) -> None:
    of_subsets = {*SPLITS, *map(packed_name, SPLITS)}
    for path in _foreign(out, names, options):
        if path.split("/")[0] not in of_subsets:
            continue
        if (out / path).is_dir() and not (out / path).is_symlink():
            shutil.rmtree(out / path)
        else:
            (out / path).unlink()


def _is_untouched(plan: SubsetPlan, out: Path) -> bool:
    """Whether every file still looks as when `subset.json` was written; `verify_subset` reads them."""
    finished = (out / MANIFEST).stat().st_mtime_ns
    if plan.options.packed:
        return _is_packed_untouched(plan, out, finished)
    for key in _keys(plan.chosen):
        try:
            source, target = (plan.source / key).stat(), (out / key).stat()
        except OSError:
            return False
        looks = [(status.st_size, status.st_mtime_ns) for status in (source, target)]
        if looks[0] != looks[1] or target.st_mtime_ns > finished:
            return False
    return True


def _is_packed_untouched(plan: SubsetPlan, out: Path, finished: int) -> bool:
    manifest = read_manifest(out / MANIFEST)
    for path, size in [
        *((out / name, record.bytes) for name, record in manifest.packed.items()),
        *((plan.source / key, plan.sizes[key]) for key in _keys(plan.chosen)),
    ]:
        stamp = _stamp(path)
        if stamp is None or stamp[1] != size or stamp[2] > finished:
            return False
    return True


def _packed_bytes(plan: SubsetPlan) -> int:
    """At most: a row for each point that its files can hold."""
    points = [plan.sizes[key] // 12 for key in _keys(plan.chosen) if key.endswith(CLOUDS[0])]
    most = plan.options.max_points or max(points, default=0)
    return sum(min(count, most) * ROW_BYTES for count in points)


def _refuse_full_disk(plan: SubsetPlan, out: Path) -> None:
    """Before anything is written. Raises: DiskError: too few bytes or inodes, or no hard links."""
    disk, link = os.statvfs(out), plan.options.link
    if plan.options.packed:
        need, free = _packed_bytes(plan), disk.f_bavail * disk.f_frsize
        if need > free:
            advice = "free some, or choose another --out, a smaller --fraction or --max-points"
            raise DiskError(f"{printable(out)}: needs {need:,} bytes and {free:,} are free; {advice}")
        return
    one_disk = plan.source.stat().st_dev == out.stat().st_dev
    if link == "hard" and not one_disk:
        raise DiskError(f"{printable(out)}: {_NOT_HARD}")
    copies = link == "copy" or (link == "auto" and not one_disk)
    missing = [key for key in _keys(plan.chosen) if not os.path.lexists(out / key)]
    folders = len(SPLITS) + sum(not (out / split / name).exists() for split, name in _scenes(plan.chosen))
    blocks = sum(-(-plan.sizes[key] // disk.f_frsize) for key in missing) if copies else 0
    need = (blocks + folders) * disk.f_frsize + len(missing) * _MANIFEST_BYTES_PER_FILE
    free = disk.f_bavail * disk.f_frsize
    if need > free:
        raise DiskError(f"{printable(out)}: needs {need:,} bytes and {free:,} are free; {_MAKE_ROOM}")
    inodes = folders + 2 + (len(missing) if copies or link == "symlink" else 0)
    if disk.f_files and inodes > disk.f_favail:  # 0 files: the file system has no fixed number
        raise DiskError(f"{printable(out)}: needs {inodes:,} inodes and {disk.f_favail:,} are free; {_MAKE_ROOM}")


# --- writing --------------------------------------------------------------------------------------


def _place_scene(
    plan: SubsetPlan, out: Path, previous: SubsetManifest | None, force: bool, scene: tuple[str, str]
) -> dict[str, FileRecord] | str:
    """Put one scene into the subset. Returns what its files are, or, of a damaged scene, what is wrong."""
    split, name = scene
    source, target = plan.source / split / name, out / split / name
    with disk_errors(target):
        contents = {cloud: _read_still(source / cloud, plan.sizes[f"{split}/{name}/{cloud}"]) for cloud in CLOUDS}
        try:
            check_pair(source, *(_points(content, source / cloud) for cloud, content in contents.items()))
        except DataError as error:
            return str(error)
        records = {cloud: _record(content) for cloud, content in contents.items()}
        if previous and previous.files[split][name] != records:
            raise DataError(
                f"{printable(source)}: edited since {MANIFEST} was written; restore it, or --force to take it"
            )
        make_folder(target)
        for cloud, content in contents.items():
            _place(source / cloud, target / cloud, content, plan.options.link, force)
    return records


def _pack(plan: SubsetPlan, out: Path, progress: Progress | None, processes: int | None) -> SubsetManifest:
    """One file a split. Damaged scenes of all splits are named before anything is said."""
    faults: list[str] = []
    total, done = sum(len(names) for names in plan.chosen.values()), 0

    def whole_rows(split: str) -> Iterator[np.ndarray]:
        """Of each scene, until one is damaged; the others are looked at all the same."""
        nonlocal done
        dataset = FlyingThings3DScenes(plan.kind, plan.source, split, plan.chosen[split])
        for rows in _ordered(functools.partial(_still_rows, plan, dataset), range(len(dataset)), processes):
            done += 1
            if progress:
                progress(done, total)
            if isinstance(rows, str):
                faults.append(rows)
            elif not faults:
                yield rows
        if faults:
            raise _Damaged

    records: dict[str, FileRecord] = {}
    for split, names in plan.chosen.items():
        about = {
            "source_kind": plan.kind,
            "split": split,
            "frame": "x left, y up, z forward; metres",
            "columns": ["x", "y", "z", "flow x", "flow y", "flow z"],
            "seed": plan.options.seed,
            "max_points": plan.options.max_points,
        }
        with contextlib.suppress(_Damaged):
            records[packed_name(split)] = write_packed(out / packed_name(split), names, whole_rows(split), about)
    if faults:
        raise DataError(f"{len(faults)} of {total} scenes are damaged: {in_one_line(faults)}")
    after = Extent(plan.after.train_scenes, plan.after.val_scenes, sum(record.bytes for record in records.values()))
    files: SceneFiles = {split: {name: {} for name in plan.chosen.get(split, ())} for split in SPLITS}
    return SubsetManifest(plan.task, plan.before, after, _measure_likeness(plan), files, records)


class _Damaged(Exception):
    """Some scene is: the file that was begun is not to be kept."""


def _still_rows(plan: SubsetPlan, dataset: FlyingThings3DScenes, index: int) -> np.ndarray | str:
    """The rows to pack of a scene that nobody writes; of a damaged one, what is wrong.

    Raises: DataError: it changes, or is not as large as before.
    """
    name = dataset.names[index]
    folder = plan.source / dataset.split / name
    before = [_stamp(folder / cloud) for cloud in CLOUDS]
    try:
        rows = pack_rows(dataset.load(index), plan.options.max_points, plan.options.seed)
    except DataError as error:
        return str(error)
    stamps = [_stamp(folder / cloud) for cloud in CLOUDS]
    sizes = [plan.sizes[f"{dataset.split}/{name}/{cloud}"] for cloud in CLOUDS]
    if stamps != before or [stamp and stamp[1] for stamp in stamps] != sizes:
        raise DataError(f"{printable(folder)}: changed while the subset was made; repeat when it is left alone")
    return rows


def _ordered(work: Callable[[Item], Result], items: Sequence[Item], processes: int | None) -> Iterator[Result]:
    """Results in the order of `items`, few of them in memory at a time."""
    threads = processes or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _points(content: bytearray, path: Path) -> np.ndarray:
    return check_points(parse_npy(content, printable(path)), path)


def _scene_files(plan: SubsetPlan, placed: Sequence[dict[str, FileRecord] | str]) -> SceneFiles:
    faults = [result for result in placed if isinstance(result, str)]
    if faults:
        raise DataError(f"{len(faults)} of {len(placed)} scenes are damaged: {in_one_line(faults)}")
    files: SceneFiles = {split: {} for split in SPLITS}
    for (split, name), result in zip(_scenes(plan.chosen), placed, strict=True):
        if not isinstance(result, str):
            files[split][name] = result
    return files


def _record(content: bytearray) -> FileRecord:
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def _read_still(source: Path, size: int) -> bytearray:
    """The bytes of a file that nobody writes. Raises: DataError: it is not as large as before, or changes."""
    before = _stamp(source)
    content = read_file(source)
    if _stamp(source) != before or len(content) != size:
        raise DataError(f"{printable(source)}: changed while the subset was made; repeat when it is left alone")
    return content


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _place(source: Path, target: Path, content: bytearray, link: str, force: bool) -> None:
    if os.path.lexists(target):
        if _stands(source, target, content, link):
            return
        if not force:
            raise DataError(
                f"{printable(target)}: not as its source, edited perhaps; remove it, or --force to write it again"
            )
    if link == "symlink":
        _link(os.symlink, source, target)
    elif link == "copy" or not _hard_link(source, target, link):
        write_atomic(target, bytes(content))
        status = source.stat()
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))  # `_is_untouched` compares it


def _stands(source: Path, target: Path, content: bytearray, link: str) -> bool:
    """Whether a former run put this file there."""
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
            raise DiskError(f"{printable(target)}: {_NOT_HARD}") from error
        return False
    return True


def _link(make: Callable[[str, Path], None], source: Path, target: Path) -> None:
    temporary = target.parent / f"{TEMPORARY_PREFIX}{target.name}"
    try:
        make(os.path.realpath(source), temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # renaming over a hard link of the same file does nothing
    sync_folder(target.parent)


def _each(
    work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None, processes: int | None
) -> list[Result]:
    """Results in the order of `items`. After an error nothing new is begun."""
    results = []
    with ThreadPoolExecutor(processes or min(8, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                results.append(future.result())
                if progress:
                    progress(len(results), len(items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


# --- checking -------------------------------------------------------------------------------------


def _scene_faults(out: Path, manifest: SubsetManifest, foreign: frozenset[str], scene: tuple[str, str]) -> list[str]:
    """What is wrong with the files of a scene; nothing is read through what does not belong."""
    split, name = scene
    if foreign & {split, f"{split}/{name}"}:
        return []
    faults = []
    with disk_errors(out):
        for cloud, record in manifest.files[split][name].items():
            key = f"{split}/{name}/{cloud}"
            if key not in foreign and (fault := _fault(out / key, record)):
                faults.append(f"{key} {fault}")
    return faults


def _fault(path: Path, record: FileRecord) -> str | None:
    if not path.exists():
        return "is missing"
    return None if path.is_file() and _record(read_file(path)) == record else "changed"


def _summary(
    out: Path, manifest: SubsetManifest, already_complete: bool = False, skipped: tuple[str, ...] = ()
) -> SubsetSummary:
    return SubsetSummary(
        out,
        manifest.task.source_kind,
        manifest.task.options,
        manifest.before,
        manifest.after,
        manifest.likeness,
        already_complete,
        skipped,
    )


# --- how representative ---------------------------------------------------------------------------


def _measure_likeness(plan: SubsetPlan) -> Likeness:
    """Compare samples of source and subset, drawn by a hash that has nothing to do with the choice."""
    samples = [_by_hash(plan.chosen["train"], "likeness")[:SAMPLED_SCENES]]
    samples.append(_by_hash(plan.available["train"], "likeness")[:SAMPLED_SCENES])
    (lengths, depths), (all_lengths, all_depths) = (_values(plan, names) for names in samples)
    return Likeness(
        round(ks_distance(lengths, all_lengths), 6),
        round(ks_distance(depths, all_depths), 6),
        source_scenes=len(samples[1]),
        subset_scenes=len(samples[0]),
        points_per_scene=SAMPLED_POINTS,
    )


def _values(plan: SubsetPlan, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Flow lengths and depths, metres, of evenly spaced rows of each scene."""
    dataset = FlyingThings3DScenes(plan.kind, plan.source, "train", tuple(names))
    lengths, depths = [], []
    for index in range(len(dataset)):
        scene = dataset.load(index)
        rows = even_rows(len(scene.pc1), SAMPLED_POINTS)
        lengths.append(np.sqrt((scene.flow[rows] ** 2).sum(axis=1)))
        depths.append(scene.pc1[rows, 2])
    return np.concatenate(lengths), np.concatenate(depths)


def ks_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The largest gap between the distribution functions of two samples, 0 to 1 (Kolmogorov-Smirnov)."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())
