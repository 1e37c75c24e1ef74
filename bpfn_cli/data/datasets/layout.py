# SPDX-License-Identifier: MIT
"""Where scenes lie on disk: which kind of dataset a folder is, and which scenes it has."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfn_cli.data.datasets.argoverse2 import ENDINGS as LOG_ENDINGS
from bpfn_cli.data.datasets.argoverse2 import LOG_KIND
from bpfn_cli.data.datasets.occluded import ENDING as OCCLUDED_ENDING
from bpfn_cli.data.datasets.occluded import OCCLUDED_KINDS, occluded_kind
from bpfn_cli.data.names import CLOUDS, SPLITS, check_scene_name
from bpfn_cli.data.subset.manifest import (
    MANIFEST,
    SubsetManifest,
    packed_name,
    read_manifest,
)
from bpfn_cli.data.synthetic.render import is_synthetic
from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.files import disk_errors, explain

FLYINGTHINGS3D_FOLDER = "FlyingThings3D_subset_processed_35m"
KITTI_FOLDERS = ("KITTI_processed_occ_final", "kitti_processed")
KINDS = ("flyingthings3d", "synthetic", "kitti", *OCCLUDED_KINDS, LOG_KIND)

_RECORDS = (MANIFEST, "synthetic.json", "prepared.json")  # each written last; NAME.partial stands until then
_KITTI_NAME = re.compile(r"000[01][0-9]{2}")
_LEADS_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class Layout:
    """A dataset that was found.

    Attributes:
        root: the folder that holds train/ and val/, or KITTI's scenes.
        kind: one of `KINDS`; of a subset, the kind of its source.
        manifest: of a subset.
    """

    root: Path
    kind: str
    manifest: SubsetManifest | None = None


def find_layout(path: Path, kinds: Sequence[str] = KINDS) -> Layout:
    """The dataset of one of `kinds` that `path` is, or holds under its usual name.

    Raises:
        DataError: none or several are there, or only raw downloads, or an unfinished subset.
        DiskError: not permitted.
    """
    with disk_errors(path):
        if not path.is_dir():
            raise DataError(f"{printable(path)}: no such folder; check the path")
        usual = [path / name for name in (FLYINGTHINGS3D_FOLDER, *KITTI_FOLDERS)]
        below = [root for root in usual if _kind(root) in kinds]
        for roots in ([path] if _has_splits(path) else [], below, [path]):
            found = [root for root in roots if _kind(root) in kinds]
            if len(found) > 1:
                both = " and ".join(root.name for root in found)
                raise DataError(f"{printable(path)}: holds both {both}; name one of them")
            if found:
                return _layout(found[0])
        raise DataError(f"{printable(path)}: {_what_was_looked_for(path, kinds)}")


def scene_names(layout: Layout, split: str = "") -> tuple[str, ...]:
    """Sorted names of the scenes of a split; KITTI has no splits.

    Raises: DataError: no such folder, an unusable name, or other scenes than `subset.json` names.
    """
    if layout.manifest and layout.manifest.task.options.packed:
        return layout.manifest.names().get(split, ())
    names, _ = list_scenes(layout.root / split)
    if layout.kind == "kitti":
        for name in names:
            if not _KITTI_NAME.fullmatch(name):
                raise DataError(
                    f"{printable(layout.root)}: {printable(name)} is no KITTI scene; names have 6 digits, "
                    "000000 to 000199 (for FlyingThings3D, give the folder that holds train/ and val/)"
                )
    if layout.manifest:
        _refuse_other_scenes(names, layout, split)
    return names


def list_scenes(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sorted names of the scene folders in `folder`, and of what else lies there.

    Hidden entries are not looked at. A link that leads nowhere or back above itself is no scene.
    """
    scenes: list[str] = []
    others: list[str] = []
    with disk_errors(folder):
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: no such folder; check the path")
        here = os.path.realpath(folder)
        for entry in os.scandir(folder):
            if not entry.name.startswith("."):
                (scenes if _is_scene(entry, here) else others).append(entry.name)
    return tuple(sorted(check_scene_name(name, folder) for name in scenes)), tuple(sorted(others))


def file_sizes(root: Path, scenes: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Bytes of every "split/scene/cloud" file; every one is looked at before anything is said.

    Raises: DataError: files that are missing or not regular, up to ten by name. DiskError: not permitted.
    """
    sizes: dict[str, int] = {}
    faults = []
    for split, names in scenes.items():
        for name in names:
            for cloud in CLOUDS:
                key = f"{split}/{name}/{cloud}".lstrip("/")
                size = _regular_size(root / key)
                if isinstance(size, str):
                    faults.append(f"{printable(key)} {size}")
                else:
                    sizes[key] = size
    if faults:
        raise DataError(f"{printable(root)}: {in_one_line(faults)}; fetch or prepare them again")
    return sizes


def fingerprint(sizes: Mapping[str, int]) -> str:
    """sha256 of file names and sizes."""
    lines = "".join(f"{key} {sizes[key]}\n" for key in sorted(sizes))
    return hashlib.sha256(lines.encode()).hexdigest()


def in_one_line(faults: Sequence[str], separator: str = ", ") -> str:
    """The first ten of them, and how many more there are."""
    more = len(faults) - _NAMED_IN_ERRORS
    return separator.join(faults[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


def _has_splits(path: Path) -> bool:
    return any((path / split).is_dir() or (path / packed_name(split)).exists() for split in SPLITS)


def _kind(root: Path) -> str | None:
    if not root.is_dir() or _raw_download(root):
        return None
    if _has_splits(root) or _is_unfinished(root):
        return "synthetic" if is_synthetic(root) else "flyingthings3d"
    if root.name in KITTI_FOLDERS:
        return "kitti"
    for entry in sorted(root.iterdir()):
        if (entry / CLOUDS[0]).exists():
            return "kitti"
        if entry.suffix in LOG_ENDINGS and entry.is_file():
            return LOG_KIND
        if entry.suffix == OCCLUDED_ENDING and (kind := occluded_kind(entry.stem)) and entry.is_file():
            return kind
    return None


def scene_files(layout: Layout) -> tuple[Path, ...]:
    """Sorted files of a dataset that has no folder a scene: one a scene, or one a log.

    Raises: DataError: a name that cannot be. DiskError: not permitted.
    """
    with disk_errors(layout.root):
        entries = sorted(path for path in layout.root.iterdir() if not path.name.startswith(".") and path.is_file())
    if layout.kind == LOG_KIND:
        return tuple(path for path in entries if path.suffix in LOG_ENDINGS)
    files = tuple(path for path in entries if path.suffix == OCCLUDED_ENDING)
    for path in files:
        check_scene_name(path.stem, layout.root)
        if occluded_kind(path.stem) != layout.kind:
            raise DataError(f"{printable(path)}: not the name of a scene of {layout.kind}; move it elsewhere")
    return files


def _layout(root: Path) -> Layout:
    if os.path.lexists(root / MANIFEST):
        manifest = read_manifest(root / MANIFEST)
        return Layout(root, manifest.task.source_kind, manifest)
    kind = _kind(root)
    assert kind is not None  # the caller asked
    if _is_unfinished(root):
        raise DataError(f"{printable(root)}: unfinished; repeat the command that began it")
    if any((root / packed_name(split)).exists() for split in SPLITS):
        raise DataError(f"{printable(root)}: packed scenes without their {MANIFEST}; fetch it too")
    return Layout(root, kind)


def _is_unfinished(root: Path) -> bool:
    return any((root / f"{record}.partial").exists() and not (root / record).exists() for record in _RECORDS)


def _raw_download(path: Path) -> str | None:
    if any((path / split / "disparity").is_dir() for split in SPLITS):
        return "flyingthings3d"
    if (path / "training" / "disp_occ_0").is_dir():
        return "kitti"
    return None


def _what_was_looked_for(path: Path, kinds: Sequence[str]) -> str:
    if raw := _raw_download(path):
        return f"a raw download; run `bpfn prepare {raw}` on it first"
    looked_for = "train/ and val/ with NNNNNNN/pc1.npy (FlyingThings3D, synthetic or a subset)"
    usual = [FLYINGTHINGS3D_FOLDER]
    if "kitti" in kinds:
        looked_for += ", NNNNNN/pc1.npy (KITTI), TRAIN_A_NNNN_left_NNNN-0.npz or NNNNNN.npz (with occlusion), .h5 logs"
        usual += KITTI_FOLDERS
    return f"no dataset; looked for {looked_for}, or a folder named {' or '.join(usual)}"


def _is_scene(entry: os.DirEntry[str], here: str) -> bool:
    try:
        if not entry.is_dir():
            return False
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return False
        raise
    if not entry.is_symlink():
        return True
    target = os.path.realpath(entry.path)
    return os.path.commonpath([here, target]) != target


def _refuse_other_scenes(names: tuple[str, ...], layout: Layout, split: str) -> None:
    assert layout.manifest
    _refuse_escape(layout.root, layout.root / split)
    for name in names:
        _refuse_escape(layout.root, layout.root / split / name)
    expected, found = set(layout.manifest.files[split]), set(names)
    if expected != found:
        missing, foreign = sorted(expected - found), sorted(found - expected)
        faults = [f"{name} is missing" for name in missing] + [f"{name} is not of it" for name in foreign]
        raise DataError(
            f"{printable(layout.root / split)}: not the scenes of {MANIFEST}: "
            f"{in_one_line([printable(fault) for fault in faults])}; repeat bpfn subset"
        )


def _refuse_escape(root: Path, folder: Path) -> None:
    """A scene of a subset lies inside it, whatever links say."""
    if not folder.is_symlink():
        return
    inside, target = os.path.realpath(root), os.path.realpath(folder)
    if os.path.commonpath([inside, target]) != inside:
        raise DataError(f"{printable(folder)}: a link out of the subset; make the subset again with --force")


def _regular_size(path: Path) -> int | str:
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return "is missing"
        raise DiskError(f"{printable(path)}: {explain(error)}") from error
    return status.st_size if stat.S_ISREG(status.st_mode) else "is not a regular file"
