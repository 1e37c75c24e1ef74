# SPDX-License-Identifier: MIT
"""A split of a dataset in one file with shuffled rows: a training sample is two windows of a scene.

    magic (8 bytes), length of the header (uint64), header (JSON), zeros up to a multiple of 64,
    rows: float32 (sum N, 6): pc1 and flow, metres, x left, y up, z forward; scene after scene,
    offsets: int64 (scenes + 1): the first row of each scene, then the number of rows.

All numbers are little-endian. pc2 is pc1 + flow, so only scenes whose clouds correspond row by row can be packed.
The rows of a scene are shuffled when it is packed: any window of them is a uniform sample of its points.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.contents import contents_sha256
from bpfn_cli.data.datasets.base import SceneDataset
from bpfn_cli.data.files.points import MAX_COORDINATE_M
from bpfn_cli.data.names import check_scene_name
from bpfn_cli.data.subset.manifest import FileRecord
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import atomic_stream, disk_errors, open_regular
from bpfn_cli.frames import INTERNAL
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import Scene

COLUMNS = 6
ROW_BYTES = 4 * COLUMNS
MAX_PACKED_BYTES = 1 << 44

_MAGIC = b"BPFNPACK"
_VERSION = 1
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class PackedScenes(SceneDataset):
    """A packed split."""

    file: Path
    first_byte: int  # of the rows
    offsets: np.ndarray  # (scenes + 1,) rows

    @property
    def frame(self) -> str:
        """Packed scenes are as `load` returns them."""
        return INTERNAL

    def load(self, index: int) -> Scene:
        """All points; the order of the rows is that of the file."""
        start, end = self.offsets[index : index + 2].tolist()
        with open_regular(self.file, MAX_PACKED_BYTES) as (stream, _):
            rows = self._rows(stream.fileno(), start, end - start)
        return self._scene(index, rows, rows[:, :3] + rows[:, 3:])

    def sample(self, index: int, points: int, generator: np.random.Generator, least: int | None = None) -> Scene:
        """Two windows of rows; each starts at random and wraps around at the end of the scene."""
        start, end = self.offsets[index : index + 2].tolist()
        if end - start < points:
            return super().sample(index, points, generator, least)
        offsets = generator.integers(end - start, size=2).tolist()
        with open_regular(self.file, MAX_PACKED_BYTES) as (stream, _):
            first, second = (self._window(stream.fileno(), start, end, points, offset) for offset in offsets)
        return self._scene(index, first, second[:, :3] + second[:, 3:])

    def identity(self) -> str:
        """sha256 of the size and of blocks of the file, which begins with the names of the scenes."""
        with disk_errors(self.file):
            return contents_sha256(self.file.parent, {self.file.name: self.file.stat().st_size})

    def _scene(self, index: int, rows: np.ndarray, pc2: np.ndarray) -> Scene:
        pc1, flow = np.ascontiguousarray(rows[:, :3]), np.ascontiguousarray(rows[:, 3:])
        if not (np.abs(rows) <= MAX_COORDINATE_M).all():  # also false for NaN
            where = f"{printable(self.file)}: scene {printable(self.names[index])}"
            fault = f"holds NaN, infinity or coordinates beyond {MAX_COORDINATE_M:.0f} m"
            raise DataError(f"{where} {fault}; check it with bpfn subset --verify, and pack it again")
        return self._labeled(Scene(self.names[index], pc1, pc2, flow, self.format.camera))

    def _window(self, descriptor: int, start: int, end: int, points: int, offset: int) -> np.ndarray:
        at_end = min(points, end - start - offset)
        rows = self._rows(descriptor, start + offset, at_end)
        return rows if at_end == points else np.concatenate([rows, self._rows(descriptor, start, points - at_end)])

    def _rows(self, descriptor: int, start: int, count: int) -> np.ndarray:
        content, size, first_byte = b"", count * ROW_BYTES, self.first_byte + start * ROW_BYTES
        while len(content) < size:  # a read may be short; at the end of the file it is empty
            more = os.pread(descriptor, size - len(content), first_byte + len(content))
            if not more:
                raise DataError(f"{printable(self.file)}: became shorter while it was read; copy it again")
            content += more
        return np.frombuffer(content, "<f4").reshape(count, COLUMNS)


def open_packed(file: Path, scenes: SceneDataset) -> PackedScenes:
    """The packed split in `file`, as the dataset `scenes`. Raises: DataError: damaged. DiskError: no permission."""
    names, first_byte, offsets = read_index(file)
    return PackedScenes(scenes.format, scenes.root, scenes.split, names, file, first_byte, offsets, label=scenes.label)


def pack_rows(scene: Scene, max_points: int | None, seed: int) -> np.ndarray:
    """(N, 6) float32 rows of a scene, at most `max_points`, shuffled by `seed` and the scene's name."""
    order = keyed_generator("pack", seed, scene.name).permutation(len(scene.pc1))[:max_points]
    return np.concatenate([scene.pc1[order], scene.truth[order]], axis=1, dtype=np.float32)


def write_packed(
    path: Path, names: Sequence[str], rows: Iterable[np.ndarray], extra: dict[str, Any] | None = None
) -> FileRecord:
    """Write a packed split atomically, and return the size and hash of the file. Raises: DiskError.

    Args: rows: (N, 6) for each of the scenes `names`. extra: further entries of the header, for people.
    """
    header = json.dumps({"format": _VERSION, "kind": "packed", **(extra or {}), "scenes": list(names)}).encode()
    digest, size, offsets = hashlib.sha256(), 0, [0]

    def parts() -> Iterator[bytes]:
        yield (_MAGIC + len(header).to_bytes(8, "little") + header).ljust(_first_byte(len(header)), b"\0")
        for part in rows:
            yield np.ascontiguousarray(part, "<f4").tobytes()
            offsets.append(offsets[-1] + len(part))
        yield np.array(offsets, "<i8").tobytes()

    with atomic_stream(path) as stream:
        for content in parts():
            size += stream.write(content)
            digest.update(content)
    return FileRecord(size, digest.hexdigest())


def read_index(path: Path) -> tuple[tuple[str, ...], int, np.ndarray]:
    """Scene names of a packed split, first byte of its rows, offsets (scenes + 1,). Raises: DataError: damaged."""
    with open_regular(path, MAX_PACKED_BYTES) as (stream, size), disk_errors(path):
        prefix = stream.read(16)
        if len(prefix) < 16 or not prefix.startswith(_MAGIC):
            raise DataError(f"{printable(path)}: not a packed split; make it with bpfn subset --packed")
        length = int.from_bytes(prefix[8:], "little")
        if length > min(_MAX_HEADER_BYTES, size):
            raise _damaged(path, f"its header claims {length} bytes")
        names = _parse_names(stream.read(length), path)
        first_byte, offset_bytes = _first_byte(length), 8 * (len(names) + 1)
        row_bytes = size - first_byte - offset_bytes
        if row_bytes < 0 or row_bytes % ROW_BYTES:
            raise _damaged(path, f"{size} bytes cannot hold its {len(names)} scenes")
        stream.seek(size - offset_bytes)
        offsets = np.frombuffer(stream.read(offset_bytes), "<i8")
    rows = row_bytes // ROW_BYTES
    if len(offsets) != len(names) + 1 or offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) <= 0).any():
        raise _damaged(path, "its offsets do not match its rows")
    return names, first_byte, offsets


def _parse_names(header: bytes, path: Path) -> tuple[str, ...]:
    try:
        document = json.loads(header)
        names = document["scenes"]
        if document["format"] != _VERSION or document["kind"] != "packed" or not isinstance(names, list):
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "its header is invalid") from error
    checked = tuple(check_scene_name(name if isinstance(name, str) else "", path) for name in names)
    if len(set(checked)) != len(checked):
        raise _damaged(path, "duplicate scene name")
    return checked


def _first_byte(header_length: int) -> int:
    return -(-(16 + header_length) // _ALIGNMENT) * _ALIGNMENT


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{printable(path)}: damaged: {what}; copy it again, or repeat bpfn subset --packed --force")
