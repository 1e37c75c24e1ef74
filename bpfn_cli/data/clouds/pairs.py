# SPDX-License-Identifier: MIT
"""Pairs of clouds: two files, or one with both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from bpfn_cli.data.clouds import CLOUD_FORMATS, ending_of, open_cloud_file, read_cloud, stem_of
from bpfn_cli.data.clouds.arrays import columns_of
from bpfn_cli.data.clouds.cloud import Cloud, CloudFile
from bpfn_cli.data.files.npy import npz_names, parse_npz
from bpfn_cli.data.names import CLOUDS
from bpfn_cli.errors import DataError, printable

# The first and the second cloud. `pc1` is the first beside pc2, and the second beside pc0.
PAIR_NAMES = (("pc1", "pc2"), ("pc0", "pc1"), ("pos1", "pos2"), ("points1", "points2"))
FLOW_NAMES = ("flow", "gt", "scene_flow")
VALID_NAMES = ("valid", "valid_mask1", "flow_is_valid", "mask1")
DYNAMIC_NAMES = ("dynamic", "is_dynamic")


class Clouds(NamedTuple):
    """A pair that was read.

    truth: (N, 3) flow of the first cloud, in its axes. known: (N,) bool, where it is known. dynamic: (N,) bool, which
    points move by themselves.
    """

    first: Cloud
    second: Cloud
    truth: np.ndarray | None = None
    known: np.ndarray | None = None
    dynamic: np.ndarray | None = None


class Pair(Protocol):
    """Where the two clouds of a pair are."""

    @property
    def name(self) -> str:
        """Of its outputs, without ending."""

    @property
    def inputs(self) -> list[Path]:
        """Files or folders that are read."""

    def leads_to(self, following: object) -> bool:
        """Whether the second cloud is the first one of another pair."""

    def read(self, reader: PairReader) -> Clouds:
        """Raises: DataError: missing or damaged. DiskError: no permission."""


@dataclass(frozen=True)
class CloudPair:
    """Files with two clouds. second: None: `first` is an `.npz` with both, and perhaps their flow."""

    first: Path
    second: Path | None = None

    @property
    def name(self) -> str:
        """The stem of the first file; of a `pc1.npy`, the name of its folder."""
        whole = Path(os.path.abspath(self.first))  # noqa: PTH100  (not `resolve`: a link keeps its name)
        return whole.parent.name if whole.name == CLOUDS[0] and whole.parent.name else stem_of(whole)

    @property
    def inputs(self) -> list[Path]:
        """The files that are read."""
        return [self.first] if self.second is None else [self.first, self.second]

    @property
    def frames(self) -> set[str | None]:
        """The frames of the files as their endings tell; None: an ending tells none."""
        return {CLOUD_FORMATS[ending].frame if (ending := ending_of(path)) else None for path in self.inputs}

    def leads_to(self, following: object) -> bool:
        """Whether the second cloud is the first one of another pair."""
        return isinstance(following, CloudPair) and self.second is not None and following.first == self.second

    def read(self, reader: PairReader) -> Clouds:
        """Raises: as `read_cloud` and `read_cloud_pair`."""
        if self.second is None:
            return read_cloud_pair(self.first)
        return Clouds(reader.cloud(self.first), reader.cloud(self.second))

    def __str__(self) -> str:
        return printable(self.first if self.second is None else f"{self.first} and {self.second}")


class PairReader:
    """Reads clouds. The file that was read last is not read again.

    Args: columns: of files without a header, as in `read_cloud`.
    """

    def __init__(self, columns: int | None = None) -> None:
        self.columns = columns
        self._last: tuple[Path, Cloud] | None = None

    def __call__(self, pair: Pair) -> Clouds:
        return pair.read(self)

    def cloud(self, path: Path) -> Cloud:
        """Raises: as `read_cloud`."""
        if self._last is None or self._last[0] != path:
            self._last = path, read_cloud(path, self.columns)
        return self._last[1]


def holds_pair(path: Path) -> bool:
    """Whether a file is an `.npz` with both clouds of a pair. Raises: DataError: a damaged `.npz`."""
    return path.suffix.lower() == ".npz" and any(set(names) <= set(npz_names(path)) for names in PAIR_NAMES)


def read_cloud_pair(path: Path) -> Clouds:
    """Both clouds and, if the file has it, their flow, from one `.npz`.

    Raises: DataError: not an `.npz`, no pair or several, flow of another length, or as `read_cloud`.
    """
    if path.suffix.lower() != ".npz":
        fault = "one path must be an .npz with pc1 and pc2, a scene or folder, or a list (.txt)"
        raise DataError(f"{printable(path)}: {fault}")
    file = open_cloud_file(path)
    arrays = parse_npz(file.content, file.name, lambda names: _choose(names, file), tables=True)
    first_name, second_name = next(names for names in PAIR_NAMES if set(names) <= arrays.keys())
    first, second = (_cloud(arrays[name], name, file) for name in (first_name, second_name))
    if first_name == "pc0":
        first = replace(first, notes=(*first.notes, "beside pc0, pc1 is the second cloud"))
    truth = next((arrays[name] for name in FLOW_NAMES if name in arrays), None)
    if truth is None:
        return Clouds(first, second)
    count = len(first.points)
    if truth.shape != (count, 3) or truth.dtype.kind != "f":
        found = f"flow has {len(truth)} rows" if truth.ndim == 2 else f"flow has shape {truth.shape}"
        raise file.fault(f"{found}, {first_name} {count}; one row of 3 numbers per point expected")
    known = first.valid & np.isfinite(truth).all(axis=1)
    masks = {name: arrays[name] for name in (*VALID_NAMES, *DYNAMIC_NAMES) if name in arrays}
    for name, mask in masks.items():
        if mask.shape != (count,) or mask.dtype.names:
            raise file.fault(f"{name} has shape {mask.shape}, ({count},) expected")
        if name in VALID_NAMES:
            known &= mask != 0
    dynamic = next((masks[name] != 0 for name in DYNAMIC_NAMES if name in masks), None)
    return Clouds(first, second, truth, known, dynamic)


def _cloud(array: np.ndarray, name: str, file: CloudFile) -> Cloud:
    named = replace(file, name=f"{file.name}: {name}")
    return Cloud.of(columns_of(array, named), named.name)


def _choose(names: Sequence[str], file: CloudFile) -> list[str]:
    """The arrays to read: a pair, its flow, where that is known, and what moves."""
    pairs = [pair for pair in PAIR_NAMES if set(pair) <= set(names)]
    found = printable(", ".join(names))[:200] or "nothing"
    if not pairs:
        wanted = " or ".join(f"{first} and {second}" for first, second in PAIR_NAMES)
        raise file.fault(f"no pair of arrays: {wanted} expected; it holds {found}")
    if len(pairs) > 1:
        both = " or ".join(f"{first} to {second}" for first, second in pairs)
        raise file.fault(f"several pairs: {both}; write the pair to an .npz of its own, as pc1 and pc2")
    flows = [name for name in FLOW_NAMES if name in names]
    if len(flows) > 1:
        raise file.fault(f"several flows: {', '.join(flows)}; keep the true one")
    masks = [name for name in (*VALID_NAMES, *DYNAMIC_NAMES) if name in names]
    return [*pairs[0], *flows, *(masks if flows else [])]
