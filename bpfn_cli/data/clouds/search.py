# SPDX-License-Identifier: MIT
"""The pairs that a path stands for: a scene or all scenes of a dataset, a folder, or a list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bpfn_cli.data.clouds import CLOUD_FORMATS, ending_of
from bpfn_cli.data.clouds.listing import holds_many, pairs_in, refuse_equal_names
from bpfn_cli.data.clouds.pairs import CloudPair, Pair
from bpfn_cli.data.clouds.scenes import find_scenes
from bpfn_cli.errors import DataError, UsageError, printable


@dataclass(frozen=True)
class Source:
    """The pairs of a path.

    Attributes: many: write a folder of results, not a file. frame: of the clouds, as `axes_of` takes it; None: the user
        says. origin: who says so: the dataset or the ending.
    """

    pairs: list[Pair]
    many: bool
    frame: str | None = None
    origin: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether all files are floats without a header."""
        endings = [ending_of(path) for pair in self.pairs for path in pair.inputs]
        return all(ending is not None and CLOUD_FORMATS[ending].is_plain for ending in endings)


def find_source(first: Path, second: Path | None, *, known_frame: bool) -> Source:
    """The pairs of one or two paths, with distinct names.

    Args: known_frame: the user gives the frame, so `first` is read as it is, not as a scene of a dataset.
    Raises: DataError: missing, empty or mixed, a faulty line, or two pairs of one name. UsageError: a folder and a
        second path, or clouds of several frames. DiskError: no permission.
    """
    if second is not None:
        if first.is_dir():
            raise UsageError(f"{printable(first)}: holds many pairs; leave out {printable(second)}")
        return _of_files([CloudPair(first, second)], many=False, known_frame=known_frame)
    scenes = None if known_frame else find_scenes(first)
    if scenes:
        dataset, one = scenes[0].scenes, Path(scenes[0].scenes.names[scenes[0].index])
        refuse_equal_names(scenes, first)
        is_one = first.is_file() or (len(scenes) == 1 and one.name == first.resolve().name)
        return Source([*scenes], not is_one, dataset.frame, f"of {dataset.format.title} scenes")
    if not first.exists():
        raise DataError(f"{printable(first)}: no such file or folder; check the path")
    if holds_many(first):
        pairs = pairs_in(first)
        refuse_equal_names(pairs, first)
        return _of_files(pairs, many=True, known_frame=known_frame)
    return _of_files([CloudPair(first)], many=False, known_frame=known_frame)


def _of_files(pairs: list[CloudPair], *, many: bool, known_frame: bool) -> Source:
    frames = set[str | None]().union(*(pair.frames for pair in pairs))
    if len(frames) == 1:
        frame = frames.pop()
        return Source([*pairs], many, frame, "by the ending" if frame else "")
    if not known_frame:
        names = [*sorted(frame for frame in frames if frame), *(["an unknown one"] if None in frames else [])]
        raise UsageError(f"some clouds are in frame {' and others in '.join(names)}; give --frame")
    return Source([*pairs], many)
