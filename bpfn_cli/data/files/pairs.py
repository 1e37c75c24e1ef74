# SPDX-License-Identifier: MIT
"""Many pairs of clouds: a folder of frames, of `.npz` pairs or of scene folders, or a list of pairs."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.clouds import ENDINGS, read_cloud, read_cloud_pair
from bpfn_cli.data.files.npy import npz_names
from bpfn_cli.data.names import CLOUDS
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors, read_file

LIST_ENDING = ".txt"
_EXPECTED = (
    "either two or more cloud files (frames), or .npz files with pc1 and pc2, or folders with pc1.npy and pc2.npy"
)

Clouds = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class CloudPair:
    """Files with two clouds. second: None: `first` is an `.npz` with both, and perhaps their flow."""

    first: Path
    second: Path | None = None

    @property
    def name(self) -> str:
        """The stem of the first file; of a `pc1.npy`, the name of its folder."""
        whole = Path(os.path.abspath(self.first))  # noqa: PTH100  (not `resolve`: a link keeps its name)
        return whole.parent.name if whole.name == CLOUDS[0] and whole.parent.name else whole.stem

    def __str__(self) -> str:
        return printable(self.first if self.second is None else f"{self.first} and {self.second}")


class PairReader:
    """Reads pairs. A file that was the second of the pair before is not read again."""

    def __init__(self) -> None:
        self._last: tuple[Path, np.ndarray] | None = None

    def __call__(self, pair: CloudPair) -> Clouds:
        """pc1, pc2 and, if known, flow: float32 metres. Raises: as `read_cloud` and `read_cloud_pair`."""
        if pair.second is None:
            return read_cloud_pair(pair.first)
        first = self._last[1] if self._last and self._last[0] == pair.first else read_cloud(pair.first)
        self._last = pair.second, read_cloud(pair.second)
        return first, self._last[1], None


def holds_many(path: Path) -> bool:
    """Whether `find_pairs` reads this path, and not `read_cloud_pair`."""
    return path.is_dir() or path.suffix.lower() == LIST_ENDING


def find_pairs(source: Path) -> list[CloudPair]:
    """The pairs of a folder, in natural order of the names, or of a list, with distinct names.

    Raises: DataError: missing, empty or mixed, a faulty line, or two pairs of one name. DiskError: no permission.
    """
    pairs = _pairs_of_folder(source) if source.is_dir() else _pairs_of_list(source)
    if twice := [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]:
        first, second = [pair.first for pair in pairs if pair.name == twice[0]][:2]
        both = f"{printable(first)} and {printable(second)}"
        raise DataError(f"{printable(source)}: {both} would both be written to {printable(twice[0])}.npy; rename one")
    return pairs


# --- folders ----------------------------------------------------------------------------------------


def _pairs_of_folder(folder: Path) -> list[CloudPair]:
    with disk_errors(folder):
        entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=_natural)
        if _is_scene(folder):
            return [CloudPair(*(folder / name for name in CLOUDS))]
        folders = [entry for entry in entries if entry.is_dir()]
        clouds = [entry for entry in entries if entry.suffix.lower() in ENDINGS and entry.is_file()]
    scenes = [entry for entry in folders if _is_scene(entry)]
    both = [cloud for cloud in clouds if _holds_pair(cloud)]
    if folders and not clouds and len(scenes) == len(folders):
        return [CloudPair(*(scene / name for name in CLOUDS)) for scene in scenes]
    if clouds and not folders and len(both) == len(clouds):
        return [CloudPair(path) for path in both]
    if len(clouds) > 1 and not folders and not both:
        return [CloudPair(*frames) for frames in pairwise(clouds)]
    counts = {
        "cloud files": len(clouds) - len(both),
        ".npz pairs": len(both),
        "folders with pc1.npy and pc2.npy": len(scenes),
        "other folders": len(folders) - len(scenes),
    }
    found = ", ".join(f"{what}: {count}" for what, count in counts.items() if count) or "no clouds"
    raise DataError(f"{printable(folder)}: found {found}; expected {_EXPECTED}")


def _is_scene(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CLOUDS)


def _holds_pair(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and {"pc1", "pc2"} <= set(npz_names(path))


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
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
            if words:
                pairs.append(_pair_of_line([path.parent / word for word in words]))
        except (ValueError, DataError) as error:  # ValueError: quotes that do not end
            raise DataError(f"{printable(path)}: line {number}: {error}") from error
    if not pairs:
        raise DataError(f"{printable(path)}: no pairs found; one a line expected: two cloud files, or one .npz")
    return pairs


def _pair_of_line(paths: Sequence[Path]) -> CloudPair:
    if len(paths) > 2:
        raise DataError(f"{len(paths)} paths found, two clouds or one .npz expected; quote names with spaces")
    for path in paths:
        if path.suffix.lower() not in ENDINGS:
            raise DataError(f"{printable(path)}: unknown ending; use one of {', '.join(ENDINGS)}")
        if not path.is_file():
            raise DataError(f"{printable(path)}: no such file; paths are relative to the list")
    if len(paths) == 1 and not _holds_pair(paths[0]):
        raise DataError(f"{printable(paths[0])}: one path found; two clouds, or an .npz with pc1 and pc2, expected")
    return CloudPair(*paths)
