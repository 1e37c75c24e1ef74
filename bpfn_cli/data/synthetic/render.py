# SPDX-License-Identifier: MIT
"""Render synthetic scenes and write them in the FT3D_s layout."""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.datasets.flyingthings3d import RECORD
from bpfn_cli.data.files.points import write_points
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.records import OutputRecord, read_record
from bpfn_cli.data.synthetic.options import MOST_SCENES, SceneKey, SceneOptions
from bpfn_cli.data.synthetic.raycast import RenderedPair, Stage, pinhole, render_pair
from bpfn_cli.data.synthetic.scenery import draw_stage
from bpfn_cli.errors import DataError, DiskError, UsageError, printable
from bpfn_cli.files import disk_errors, is_temporary, make_folder
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import map_in_processes
from bpfn_cli.progress import OnProgress
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, MAX_DEPTH_M

FORMAT = 1  # increase it with every change of the scenes: equal records promise equal bytes
ENOUGH = 0.28  # share of the pixels that must be within the depth cut: 9,072 points at height 135

_REPLACE = "choose another --out, or replace"


@dataclass(frozen=True)
class SyntheticOptions(SceneOptions):
    """What to render. Raises: UsageError: a value out of range."""

    height: int = 135  # image rows, 16:9; the camera is scaled with it

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("height", 27, 1080)

    def record(self) -> dict[str, Any]:
        """What the record of a folder says about its scenes."""
        camera = pinhole(self.height)
        lens = {"focal": camera.focal, "cx": camera.cx, "cy": camera.cy}
        return {"format": FORMAT, "kind": "synthetic", **asdict(self), "width": camera.width, "camera": lens}

    def render(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As `render_scene`."""
        return render_scene(self.seed, index, split, self.height)


def render_scene(seed: int, index: int, split: str, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene, with the same bytes on every machine.

    Returns: pc1, pc2: (N, 3) float32 metres, internal frame; rows correspond, and every point is visible in both
        frames. At least `ENOUGH` of the pixels are within 35 m in both.
    Raises: UsageError: no such split, or a value out of range.
    """
    pair = render_stage(seed, index, split, height)[1]
    return pair.points1[pair.visible].astype(np.float32), pair.points2[pair.visible].astype(np.float32)


def render_stage(seed: int, index: int, split: str, height: int) -> tuple[Stage, RenderedPair]:
    """As `render_scene`, but the scene itself and everything frame 1 sees."""
    SyntheticOptions(seed=seed, height=height, train=index)  # checks the ranges
    if split not in SPLITS:
        raise UsageError(f"synthetic split '{printable(split)}': use train or val")
    camera = pinhole(height)
    for attempt in itertools.count():
        stage = draw_stage(f"{FORMAT} {seed} {split} {index} {attempt}")
        pair = render_pair(stage, camera)
        depths = np.maximum(pair.points1[pair.visible, 2], pair.points2[pair.visible, 2])
        if np.count_nonzero(depths < MAX_DEPTH_M) >= ENOUGH * camera.width * camera.height:
            break
    return stage, pair


def write_synthetic(
    folder: Path, options: SceneOptions, processes: int, progress: OnProgress = None, *, force: bool = False
) -> None:
    """Write the scenes to `folder/{train,val}/NNNNNNN/{pc1,pc2}.npy`, on-disk axes of FT3D_s, then the record.

    Repeating a killed call completes it; repeating a finished one does nothing. The bytes do not depend on `processes`.

    Args: force: first remove synthetic scenes made with other options, finished or not.
    Raises:
        UsageError: the folder holds other options or other files, `processes` is below 1, or `hidden` is `vanish`.
        BusyError: another process writes there. DiskError. OutOfMemoryError: a worker process was killed.
    """
    if processes < 1:
        raise UsageError(f"processes {processes}: use 1 or more")
    if not options.rows_correspond:
        raise UsageError("--hidden vanish: the rows of written clouds must correspond; use it with --live")
    record, settings = OutputRecord(folder, RECORD), options.record()
    if _is_finished(record, settings, force):
        return
    with only_writer(make_folder(folder)):
        if _is_finished(record, settings, force):  # another process has just finished it
            return
        if force:
            _remove_scenes(record)
        _check_leftovers(record, options, settings)
        record.start(settings)
        scenes = options.scenes()
        missing = [scene for scene in scenes if not _is_written(folder, scene)]
        write = partial(_write_scene, folder, options)
        write_scenes(write, missing, len(scenes) - len(missing), processes, progress)
        record.finish(settings)


def write_scenes(
    write: Callable[[SceneKey], None], missing: list[SceneKey], written: int, processes: int, progress: OnProgress
) -> None:
    """Write the scenes that are missing. written: number of scenes that an earlier run has written."""
    total = written + len(missing)
    if progress and written:
        progress(written, total)
    for done, _ in enumerate(map_in_processes(write, missing, processes), start=written + 1):
        if progress:
            progress(done, total)


def holds_settings(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a record exists and equals `settings`. Raises: DiskError: it cannot be read."""
    try:
        return read_record(path, "") == settings
    except DataError:
        return False


def _is_finished(record: OutputRecord, settings: Mapping[str, Any], force: bool) -> bool:
    """Whether the folder holds these scenes. Raises: UsageError: it holds others, and `force` is not set."""
    if not os.path.lexists(record.finished):
        return False
    if holds_settings(record.finished, settings):
        with contextlib.suppress(DiskError):  # a kill may have left it; a finished folder may be read-only
            record.remove_partial()
        return True
    if force:
        return False
    others = f"{printable(record.finished)}: the folder holds scenes made with other options"
    raise UsageError(f"{others}; {_REPLACE} them with --force")


def _check_leftovers(record: OutputRecord, options: SceneOptions, settings: Mapping[str, Any]) -> None:
    """Sweep an empty folder, or what a killed run with these options left. Raises: UsageError: anything else."""
    counts: dict[str, int] = {}
    if os.path.lexists(record.partial):
        if not holds_settings(record.partial, settings):
            other = f"{printable(record.partial)}: an unfinished run with other options"
            raise UsageError(f"{other}; {_REPLACE} it with --force")
        counts = {split: getattr(options, split) for split in SPLITS}
    with disk_errors(record.folder):
        for entry in filter(is_temporary, list(_own_entries(record, counts))):
            Path(entry.path).unlink(missing_ok=True)


def _remove_scenes(record: OutputRecord) -> None:
    """Remove synthetic scenes of any options, their record last. Raises: UsageError: other files among them."""
    if not any(os.path.lexists(path) for path in (record.finished, record.partial)):
        return
    with disk_errors(record.folder):
        entries = list(_own_entries(record, dict.fromkeys(SPLITS, MOST_SCENES + 1)))
        if record.finished.exists():
            record.finished.replace(record.partial)  # from here on the folder is unfinished, whatever happens
        for entry in reversed(entries):  # a folder after its contents
            if entry.is_dir(follow_symlinks=False):
                Path(entry.path).rmdir()
            elif Path(entry.path) not in (record.finished, record.partial):
                Path(entry.path).unlink()
        record.partial.unlink()


def _own_entries(record: OutputRecord, counts: Mapping[str, int], folder: str = "") -> Iterator[os.DirEntry[str]]:
    """Entries below, a folder before its contents. counts: of scenes, per split. Raises: UsageError: other entries."""
    with os.scandir(folder or record.folder) as entries:
        for entry in entries:
            if not is_temporary(entry) and not _is_own(entry, record, counts):
                advice = "choose another --out, or use --force to replace scenes made with other options"
                raise UsageError(f"{printable(entry.path)}: not part of these synthetic scenes; {advice}")
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _own_entries(record, counts, entry.path)


def _is_own(entry: os.DirEntry[str], record: OutputRecord, counts: Mapping[str, int]) -> bool:
    path = Path(entry.path)
    split, *scene = path.relative_to(record.folder).parts
    if entry.is_file(follow_symlinks=False):
        return path in {record.finished, record.partial} or (len(scene) == 2 and scene[1] in CLOUDS)
    if not entry.is_dir(follow_symlinks=False) or split not in counts or len(scene) > 1:
        return False
    return not scene or (re.fullmatch("[0-9]{7}", scene[0]) is not None and int(scene[0]) < counts[split])


def _is_written(folder: Path, scene: SceneKey) -> bool:
    split, index = scene
    with disk_errors(folder):
        return all((folder / split / f"{index:07d}" / cloud).is_file() for cloud in CLOUDS)


def _write_scene(folder: Path, options: SceneOptions, scene: SceneKey) -> None:
    split, index = scene
    clouds = options.render(split, index)
    target = make_folder(folder / split / f"{index:07d}")
    for name, cloud in zip(CLOUDS, clouds, strict=True):
        write_points(target / name, cloud * FLYINGTHINGS3D_AXES)
