# SPDX-License-Identifier: MIT
"""Synthetic scenes in the FT3D_s layout: `scenery` draws them, `raycast` renders them, this writes them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.files.npy import read_file, write_points
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.synthetic.raycast import RenderedPair, Stage, pinhole, render_pair
from bpfn_cli.data.synthetic.scenery import draw_stage
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors, is_temporary, make_folder, write_json
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import map_in_processes
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, MAX_DEPTH_M

RECORD = "synthetic.json"  # stands in the folder once it is finished
PARTIAL = RECORD + ".partial"  # until then
FORMAT = 1  # raise it with every change of the scenes: equal records promise equal bytes
ENOUGH = 0.28  # of the pixels must remain inside the cut: 9,072 points at height 135

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SyntheticOptions:
    """What to render. `train`, `val`: scenes; `height`: pixels, the camera is scaled with it, 16:9.

    Raises: UsageError: a value out of range.
    """

    train: int = 400
    val: int = 40
    seed: int = 0
    height: int = 135

    def __post_init__(self) -> None:
        """Check every value."""
        for name, low, high in (
            ("train", 0, 9_999_999),
            ("val", 0, 9_999_999),
            ("seed", 0, 2**32 - 1),
            ("height", 27, 1080),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise UsageError(f"synthetic {name} is {value!r}; choose a whole number from {low} to {high}")
        if self.train + self.val == 0:
            raise UsageError("synthetic train and val are both 0; ask for at least one scene")


def render_scene(seed: int, index: int, split: str, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene, the same bytes wherever it is done.

    Returns: pc1, pc2: (N, 3) float32 metres, internal frame, rows correspond; every point is visible in both
        frames. At least `ENOUGH` of the pixels lie within 35 m in both.
    Raises: UsageError: no such split, or a value out of range.
    """
    _, pair = render_chosen(seed, index, split, height)
    return pair.points1[pair.visible].astype(np.float32), pair.points2[pair.visible].astype(np.float32)


def render_chosen(seed: int, index: int, split: str, height: int) -> tuple[Stage, RenderedPair]:
    """As `render_scene`: the scene, and all that frame 1 sees."""
    SyntheticOptions(seed=seed, height=height, train=index)
    if split not in SPLITS:
        raise UsageError(f"synthetic split is '{printable(split)}'; choose train or val")
    camera = pinhole(height)
    for attempt in itertools.count():
        stage = draw_stage(f"{FORMAT} {seed} {split} {index} {attempt}")
        pair = render_pair(stage, camera)
        depths = np.maximum(pair.points1[pair.visible, 2], pair.points2[pair.visible, 2])
        if np.count_nonzero(depths < MAX_DEPTH_M) >= ENOUGH * camera.width * camera.height:
            break
    return stage, pair


def is_synthetic(folder: Path) -> bool:
    """Whether `folder` is a finished dataset of `write_synthetic`.

    Raises: DataError: its record is damaged, so nobody can tell; DiskError: it cannot be read.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return False
    record = _read_record(path)
    if record is None:
        raise DataError(f"{printable(path)}: damaged record of synthetic scenes; make the folder again")
    return record.get("kind") == "synthetic"


def write_synthetic(
    folder: Path,
    options: SyntheticOptions,
    processes: int,
    progress: Progress | None = None,
    *,
    force: bool = False,
) -> None:
    """Write the scenes to `folder/{train,val}/NNNNNNN/{pc1,pc2}.npy`, on-disk axes of FT3D_s, and the record.

    The record is written last. Repeating a killed call completes it; repeating a finished one does nothing.
    Bytes do not depend on `processes`. With `force`, synthetic scenes of other options are removed first,
    finished or not.

    Raises:
        UsageError: the folder holds other options or other files, or `processes` is below 1.
        BusyError: another process writes there. DiskError: it cannot be written.
        OutOfMemoryError: a worker process was killed.
    """
    if processes < 1:
        raise UsageError(f"processes is {processes}; choose 1 or more")
    record = _record(options)
    if _is_finished(folder, record, force):
        return
    with only_writer(make_folder(folder)):
        if _is_finished(folder, record, force):  # by another process, since the line above
            return
        if force:
            _remove_scenes(folder)
        _check_leftovers(folder, options, record)
        write_json(folder / PARTIAL, record)
        _write_missing(folder, options, processes, progress)
        write_json(folder / RECORD, record)
        with disk_errors(folder):
            (folder / PARTIAL).unlink(missing_ok=True)


def _record(options: SyntheticOptions) -> dict[str, Any]:
    camera = pinhole(options.height)
    lens = {"focal": camera.focal, "cx": camera.cx, "cy": camera.cy}
    return {
        "format": FORMAT,
        "kind": "synthetic",
        **asdict(options),
        "width": camera.width,
        "camera": lens,
    }


def _read_record(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None where it is no such thing. Raises: DiskError: it cannot be read."""
    try:
        record = json.loads(read_file(path))
    except (DataError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_finished(folder: Path, record: dict[str, Any], force: bool) -> bool:
    """Whether the folder holds these scenes. Raises: UsageError: it holds others, which are not to be replaced."""
    if not os.path.lexists(folder / RECORD):
        return False
    if _read_record(folder / RECORD) != record:
        if force:
            return False
        raise UsageError(
            f"{printable(folder / RECORD)}: the folder holds scenes of other options; "
            "choose another --out, or --force to replace them"
        )
    with contextlib.suppress(OSError):  # a kill may have come between the record and this line
        (folder / PARTIAL).unlink()
    return True


def _check_leftovers(folder: Path, options: SyntheticOptions, record: dict[str, Any]) -> None:
    """Accept an empty folder or what a killed run of the same options left; sweep its temporary files.

    Raises: UsageError: anything else.
    """
    resuming = os.path.lexists(folder / PARTIAL)
    if resuming and _read_record(folder / PARTIAL) != record:
        raise UsageError(
            f"{printable(folder / PARTIAL)}: an unfinished run of other options; "
            "choose another --out, or --force to replace it"
        )
    temporary = []
    with disk_errors(folder):
        for entry in _entries(folder):
            if is_temporary(entry):
                temporary.append(entry.path)
            elif not (resuming and _is_ours(entry, folder, options)):
                raise _foreign(entry)
        for path in temporary:
            Path(path).unlink(missing_ok=True)


def _remove_scenes(folder: Path) -> None:
    """Remove synthetic scenes of any options, and their record last. Raises: UsageError: other files among them."""
    if not any(os.path.lexists(folder / name) for name in (RECORD, PARTIAL)):
        return
    with disk_errors(folder):
        entries = list(_entries(folder))
        for entry in entries:
            if not (is_temporary(entry) or _is_ours(entry, folder, None)):
                raise _foreign(entry)
        if (folder / RECORD).exists():
            (folder / RECORD).replace(folder / PARTIAL)  # from here on it is unfinished, whatever happens
        for entry in reversed(entries):  # a folder after what it holds
            if entry.is_dir(follow_symlinks=False):
                Path(entry.path).rmdir()
            elif entry.name not in (RECORD, PARTIAL):
                Path(entry.path).unlink()
        (folder / PARTIAL).unlink()


def _foreign(entry: os.DirEntry[str]) -> UsageError:
    return UsageError(
        f"{printable(entry.path)}: not of these synthetic scenes; "
        "choose another --out, or --force to replace scenes of other options"
    )


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Everything below `folder`, a folder before what it holds; links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)


def _is_ours(entry: os.DirEntry[str], folder: Path, options: SyntheticOptions | None) -> bool:
    """Whether it belongs to scenes of these options, or of any."""
    path = Path(entry.path)
    parts = path.relative_to(folder).parts
    if entry.is_file(follow_symlinks=False):
        return parts in {(PARTIAL,), (RECORD,)} or (len(parts) == 3 and parts[2] in CLOUDS)
    if not entry.is_dir(follow_symlinks=False) or parts[0] not in SPLITS:
        return False
    if len(parts) == 1:
        return True
    index = int(parts[1]) if parts[1].isdecimal() else -1
    count = 10**7 if options is None else getattr(options, parts[0])
    return 0 <= index < count and path == _scene_folder(folder, parts[0], index)


def _write_missing(folder: Path, options: SyntheticOptions, processes: int, progress: Progress | None) -> None:
    scenes = [(split, index) for split in SPLITS for index in range(getattr(options, split))]
    missing = [scene for scene in scenes if not _is_written(_scene_folder(folder, *scene))]
    done = len(scenes) - len(missing)
    if progress and done:
        progress(done, len(scenes))
    for _ in map_in_processes(partial(_write_scene, folder, options), missing, processes):
        done += 1
        if progress:
            progress(done, len(scenes))


def _scene_folder(folder: Path, split: str, index: int) -> Path:
    return folder / split / f"{index:07d}"


def _is_written(scene: Path) -> bool:
    with disk_errors(scene):
        return all((scene / cloud).is_file() for cloud in CLOUDS)


def _write_scene(folder: Path, options: SyntheticOptions, scene: tuple[str, int]) -> None:
    split, index = scene
    clouds = render_scene(options.seed, index, split, options.height)
    place = make_folder(_scene_folder(folder, split, index))
    for name, cloud in zip(CLOUDS, clouds, strict=True):
        write_points(place / name, cloud * FLYINGTHINGS3D_AXES)
