# SPDX-License-Identifier: MIT
"""A scene of a raw download: how it is read, how it is written, and whether it is written already."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bpfn_cli.data.files.archives import RawFiles
from bpfn_cli.data.files.npy import npy_shape
from bpfn_cli.data.files.points import check_points, write_points
from bpfn_cli.data.names import CLOUDS
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import make_folder, remove_temporaries


@dataclass(frozen=True)
class ScenePair:
    """The two clouds of a scene, (N, 3) and (M, 3).

    Attributes:
        flow, valid: (N, 3) and (N,) bool, with occlusion only, where the rows of pc1 and pc2 do not correspond.
        dropped: number of damaged points that were left out.
    """

    pc1: np.ndarray
    pc2: np.ndarray
    flow: np.ndarray | None = None
    valid: np.ndarray | None = None
    dropped: int = 0

    def checked(self, label: str) -> ScenePair:
        """The same pair. Raises: DataError: as `check_points`; blames `label`."""
        path = Path(label)
        return replace(self, pc1=check_points(self.pc1, path, "pc1"), pc2=check_points(self.pc2, path, "pc2"))


class RawScene(Protocol):
    """A scene that is read from a raw download and written to the output."""

    def prepared_points(self) -> int | None:
        """Number of points of pc1 if the scene is written completely, else None."""

    def read(self) -> ScenePair:
        """Read the scene. Raises: DataError: missing or damaged maps. DiskError: not permitted."""

    def write(self, pair: ScenePair) -> None:
        """Write the scene; a kill leaves it complete or `prepared_points` None. Raises: DiskError."""


@dataclass(frozen=True)
class FolderScene:
    """Base of scenes that are written as a folder with two clouds, pc2 last: with both files, it is complete."""

    folder: Path

    def prepared_points(self) -> int | None:
        """See `RawScene`."""
        try:
            shape1, shape2 = (npy_shape(self.folder / cloud) for cloud in CLOUDS)
        except DataError:
            return None
        return shape1[0] if shape1 == shape2 and len(shape1) == 2 else None

    def write(self, pair: ScenePair) -> None:
        """See `RawScene`."""
        remove_temporaries(make_folder(self.folder))
        for cloud, points in zip(CLOUDS, (pair.pc1, pair.pc2), strict=True):
            write_points(self.folder / cloud, points)


@dataclass(frozen=True)
class Preparation:
    """The scenes of one raw download, ready to be prepared.

    Attributes:
        source: the raw download. out: the folder to write.
        settings: kept in the record; the output holds scenes of these settings only.
        notes: lines for the user.
    """

    source: Path
    out: Path
    scenes: Sequence[RawScene]
    settings: Mapping[str, object]
    notes: tuple[str, ...] = ()


def numbered_files(folder: RawFiles, form: str) -> list[str]:
    """Sorted numbers of the files named like `form`, such as NNNNNN_10.png.

    Raises: DataError: no folder, no such file, or another file with the same ending.
    """
    pattern = re.sub("N+", lambda digits: rf"(\d{{{len(digits[0])}}})", re.escape(form))
    files = [name for name in folder.names() if name.endswith(Path(form).suffix) and not name.startswith(".")]
    matches = {file: re.fullmatch(pattern, file, re.ASCII) for file in files}
    if strange := sorted(file for file, match in matches.items() if match is None):
        raise DataError(f"{folder.label(strange[0])}: not a scene name; {form} expected")
    if not files:
        raise DataError(f"{printable(folder.name)}: no scenes found; {form} expected")
    return sorted(match[1] for match in matches.values() if match)
