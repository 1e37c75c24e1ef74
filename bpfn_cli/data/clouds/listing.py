# SPDX-License-Identifier: MIT
"""The pairs of clouds in a folder, in a list, or in one file."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from bpfn_cli.data.clouds import TEXT_ENDINGS, ending_of, first_bytes, unknown_ending
from bpfn_cli.data.clouds.pairs import CloudPair, Pair, holds_pair
from bpfn_cli.data.clouds.text import looks_like_cloud
from bpfn_cli.data.names import CLOUDS
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors, read_file

LIST_ENDING = ".txt"
_LOOKED_AT_BYTES = 1 << 16  # of a text, to tell a cloud from a list
_EXPECTED = (
    "either two or more cloud files of one kind (frames), or .npz files with pc1 and pc2, or folders with pc1.npy and "
    "pc2.npy"
)


def holds_many(path: Path) -> bool:
    """Whether a path is a folder, or a list of pairs. Raises: DataError: missing."""
    return path.is_dir() or (path.suffix.lower() == LIST_ENDING and not _begins_as_cloud(path))


def pairs_in(path: Path) -> list[CloudPair]:
    """The pairs of a folder, of a list, or of an `.npz` with both clouds.

    Raises: DataError: missing, empty or mixed, or a faulty line. DiskError: no permission.
    """
    if not path.exists():
        raise DataError(f"{printable(path)}: no such file or folder; check the path")
    if not holds_many(path):
        return [CloudPair(path)]
    return _pairs_of_folder(path) if path.is_dir() else _pairs_of_list(path)


def refuse_equal_names(pairs: Sequence[Pair], source: Path) -> None:
    """Raises: DataError: two pairs of one name."""
    if twice := [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]:
        first, second = [pair.inputs[0] for pair in pairs if pair.name == twice[0]][:2]
        both = f"{printable(first)} and {printable(second)}"
        raise DataError(f"{printable(source)}: {both} would both be written to {printable(twice[0])}.npy; rename one")


def _begins_as_cloud(path: Path) -> bool:
    return looks_like_cloud(first_bytes(path, _LOOKED_AT_BYTES))


# --- folders ----------------------------------------------------------------------------------------


def _pairs_of_folder(folder: Path) -> list[CloudPair]:
    with disk_errors(folder):
        entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=_natural)
        if _is_scene(folder):
            return [CloudPair(*(folder / name for name in CLOUDS))]
        folders = [entry for entry in entries if entry.is_dir()]
        files = {entry: ending for entry in entries if (ending := ending_of(entry)) and entry.is_file()}
    # Text beside other clouds is about them: times, poses, calibration.
    numbers = {entry for entry, ending in files.items() if ending not in TEXT_ENDINGS}
    clouds = {entry: ending for entry, ending in files.items() if entry in numbers or _is_text_cloud(entry, numbers)}
    scenes = [entry for entry in folders if _is_scene(entry)]
    both = [cloud for cloud in clouds if holds_pair(cloud)]
    if folders and not clouds and len(scenes) == len(folders):
        return [CloudPair(*(scene / name for name in CLOUDS)) for scene in scenes]
    if clouds and not folders and len(both) == len(clouds):
        return [CloudPair(path) for path in both]
    endings = Counter(ending for cloud, ending in clouds.items() if cloud not in both)
    if len(clouds) > 1 and not folders and not both and len(endings) == 1:
        return [CloudPair(*frames) for frames in pairwise(clouds)]
    counts = {
        **{f"{ending} files": count for ending, count in endings.items()},
        ".npz pairs": len(both),
        "folders with pc1.npy and pc2.npy": len(scenes),
        "other folders": len(folders) - len(scenes),
    }
    found = ", ".join(f"{what}: {count}" for what, count in counts.items() if count) or "no clouds"
    raise DataError(f"{printable(folder)}: found {found}; expected {_EXPECTED}")


def _is_text_cloud(entry: Path, others: set[Path]) -> bool:
    return not others and _begins_as_cloud(entry)


def _is_scene(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CLOUDS)


def _natural(path: Path) -> tuple[list[str | int], str]:
    """The name with its numbers as numbers, so that frame 9 comes before frame 10."""
    words = re.split("([0-9]+)", path.name)
    return [int(word) if index % 2 else word for index, word in enumerate(words)], path.name


# --- lists ------------------------------------------------------------------------------------------


def _pairs_of_list(path: Path) -> list[CloudPair]:
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: not UTF-8 text; one pair of paths a line expected") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
            if words:
                found.append(_paths_of_line([path.parent / word for word in words]))
        except (ValueError, DataError) as error:  # ValueError: quotes that do not end
            raise DataError(f"{printable(path)}: line {number}: {error}") from error
    if not found:
        raise DataError(f"{printable(path)}: no pairs found; one a line expected: two cloud files, or one .npz")
    frames = [paths[0] for paths in found if len(paths) == 1 and not holds_pair(paths[0])]
    if not frames:
        return [CloudPair(*paths) for paths in found]
    if len(frames) == len(found) > 1:
        return [CloudPair(*both) for both in pairwise(frames)]
    fault = "one path found; two clouds, or an .npz with pc1 and pc2, expected (or one frame on every line)"
    raise DataError(f"{printable(path)}: {printable(frames[0])}: {fault}")


def _paths_of_line(paths: list[Path]) -> list[Path]:
    if len(paths) > 2:
        raise DataError(f"{len(paths)} paths found, two clouds or one .npz expected; quote names with spaces")
    for path in paths:
        if ending_of(path) is None:
            raise unknown_ending(path)
        if not path.is_file():
            raise DataError(f"{printable(path)}: no such file; paths are relative to the list")
    return paths
