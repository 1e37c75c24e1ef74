# SPDX-License-Identifier: MIT
"""Point clouds supplied by the user: one reader a file, and here the table of the readers.

Every format keeps all rows. Rows without a point are marked, whatever the format: see `Cloud`.
"""

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bpfn_cli.data.clouds.arrays import read_npy_cloud, read_npz_cloud
from bpfn_cli.data.clouds.binary import read_binary, read_nuscenes
from bpfn_cli.data.clouds.cloud import Cloud, CloudFile, Columns
from bpfn_cli.data.clouds.las import read_las
from bpfn_cli.data.clouds.pcd import read_pcd
from bpfn_cli.data.clouds.ply import read_ply
from bpfn_cli.data.clouds.text import read_text
from bpfn_cli.data.files.npy import DAMAGE, MAX_PACKING, MAX_UNQUESTIONED_BYTES
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import MAX_FILE_BYTES, open_regular, read_file

_GZIP, _GZIP_START = ".gz", b"\x1f\x8b\x08"
_NOT_GZIP = "not a gzip file, or damaged; compress it again"


@dataclass(frozen=True)
class CloudFormat:
    """How files of one ending are read.

    Attributes: frame: of the coordinates, if every file of this ending has the same; None: the user says.
        is_plain: floats without a header, so a user can give the number of columns.
    """

    read: Callable[[CloudFile], Columns]
    frame: str | None = None
    is_plain: bool = False


CLOUD_FORMATS: dict[str, CloudFormat] = {
    ".npy": CloudFormat(read_npy_cloud),
    ".npz": CloudFormat(read_npz_cloud),
    ".ply": CloudFormat(read_ply),
    ".pcd": CloudFormat(read_pcd),
    ".pcd.bin": CloudFormat(read_nuscenes, frame="nuscenes", is_plain=True),
    ".bin": CloudFormat(read_binary, is_plain=True),
    ".las": CloudFormat(read_las),
    ".laz": CloudFormat(read_las),
    ".xyz": CloudFormat(read_text),
    ".txt": CloudFormat(read_text),
    ".csv": CloudFormat(read_text),
}
TEXT_ENDINGS = (".xyz", ".txt", ".csv")


def ending_of(path: Path) -> str | None:
    """The key of `CLOUD_FORMATS` that a name ends with, in any case and before `.gz`; None: not a cloud."""
    name = path.name.lower().removesuffix(_GZIP)
    found = [ending for ending in CLOUD_FORMATS if name.endswith(ending) and name != ending]
    return max(found, key=len, default=None)


def stem_of(path: Path) -> str:
    """The name without the ending of its format and `.gz`."""
    ending, name = ending_of(path), path.name
    name = name[: -len(_GZIP)] if name.lower().endswith(_GZIP) else name
    return name[: -len(ending)] if ending else path.stem


def unknown_ending(path: Path) -> DataError:
    """The error for a file that is no cloud."""
    endings = ", ".join(CLOUD_FORMATS)
    return DataError(f"{printable(path)}: unknown ending; use one of {endings}, or one of them with {_GZIP}")


def read_cloud(path: Path, columns: int | None = None) -> Cloud:
    """The cloud of a file, whose ending names its format.

    Args: columns: in a file without a header; None: as its statistics tell.
    Raises: DataError: missing, damaged, unknown ending, no x, y and z, or no valid row. UsageError: `columns` for
        another format, or a library is missing. DiskError: no permission.
    """
    ending = ending_of(path)
    if ending is None:
        raise unknown_ending(path)
    reader = CLOUD_FORMATS[ending]
    if columns is not None and not reader.is_plain:
        raise UsageError(f"--columns {columns}: {printable(path)} names its columns itself; it is for .bin files")
    file = open_cloud_file(path, columns)
    return Cloud.of(reader.read(file), file.name)


def open_cloud_file(path: Path, columns: int | None = None) -> CloudFile:
    """The content of a file, decompressed. Raises: DataError: missing, or damaged. DiskError: no permission."""
    file = CloudFile(printable(path), read_file(path), columns)
    if path.name.lower().endswith(_GZIP):
        return replace(file, content=_decompressed(file))
    _refuse_gzip(file.content, path)
    return file


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, decompressed. Raises: as `open_cloud_file`."""
    with open_regular(path) as (stream, _):
        if not path.name.lower().endswith(_GZIP):
            content = stream.read(count)
            _refuse_gzip(content, path)
            return content
        try:
            with gzip.GzipFile(fileobj=stream) as decompressed:
                return decompressed.read(count)
        except (gzip.BadGzipFile, *DAMAGE) as error:
            raise DataError(f"{printable(path)}: {_NOT_GZIP}") from error


def _refuse_gzip(content: bytes | bytearray, path: Path) -> None:
    if content.startswith(_GZIP_START):
        raise DataError(f"{printable(path)}: is compressed with gzip; add {_GZIP} to its name")


def _decompressed(file: CloudFile) -> bytearray:
    largest = min(MAX_FILE_BYTES, max(MAX_UNQUESTIONED_BYTES, MAX_PACKING * len(file.content)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(file.content)) as stream:
            content = bytearray(stream.read(largest + 1))
    except (OSError, *DAMAGE) as error:
        raise file.fault(_NOT_GZIP) from error
    if len(content) > largest:
        raise file.fault(f"{len(file.content)} bytes expand to more than {largest}; refused as a zip bomb")
    return content
