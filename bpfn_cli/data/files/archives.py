# SPDX-License-Identifier: MIT
"""Files of a raw download: in a folder, or still in its `.zip` or `.tar`.

Archives are read in place, which needs random access: a compressed `.tar` is refused.
"""

from __future__ import annotations

import functools
import os
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bpfn_cli.data.files.npy import ZIP_FAULTS
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import MAX_FILE_BYTES, disk_errors, open_regular, read_file

_ZIP, _TAR = ".zip", ".tar"
_COMPRESSED_TARS = (".tar.bz2", ".tar.gz", ".tar.xz", ".tbz2", ".tgz", ".txz")
_MAX_ARCHIVE_BYTES = 1 << 44
_MAX_MEMBERS = 1 << 21


@dataclass(frozen=True)
class RawFiles:
    """Files in the folder `root`, or in the folder `inside` ("" or ending in a slash) of the archive `root`."""

    root: Path
    inside: str = ""

    @property
    def name(self) -> str:
        """Path to show."""
        return str(self.root / self.inside)

    @property
    def is_archive(self) -> bool:
        return is_archive(self.root)

    def below(self, folder: str) -> RawFiles:
        return RawFiles(self.root, f"{self.inside}{folder}/") if self.is_archive else RawFiles(self.root / folder)

    def has_folder(self, folder: str) -> bool:
        """Whether a subfolder exists. Raises: as `names`."""
        if not self.is_archive:
            return (self.root / folder).is_dir()
        return any(name.startswith(f"{self.inside}{folder}/") for name in _members(self.root))

    def has(self, name: str) -> bool:
        """Whether a file exists. Raises: as `names`."""
        return f"{self.inside}{name}" in _members(self.root) if self.is_archive else (self.root / name).exists()

    def names(self) -> list[str]:
        """Sorted names of the files here. Raises: DataError: no such folder, or not a readable archive. DiskError."""
        if self.is_archive:
            inside = [name[len(self.inside) :] for name in _members(self.root) if name.startswith(self.inside)]
            if not inside:
                raise DataError(f"{printable(self.name)}: no such folder in the archive; give the whole raw download")
            return sorted(name for name in inside if "/" not in name)
        with disk_errors(self.root):
            if not self.root.is_dir():
                raise DataError(f"{printable(self.root)}: no such folder; give the one that holds the raw download")
            return sorted(entry.name for entry in os.scandir(self.root))

    def label(self, name: str) -> str:
        """Path of a file for errors."""
        return printable(self.root / f"{self.inside}{name}")

    def read(self, name: str) -> bytearray:
        """The bytes of a file. Raises: DataError: missing or damaged. DiskError: no permission."""
        if not self.is_archive:
            return read_file(self.root / name)
        member = _members(self.root).get(f"{self.inside}{name}")
        if member is None:
            raise DataError(f"{self.label(name)}: no such file in the archive; download it again")
        if member.size > MAX_FILE_BYTES:
            raise DataError(f"{self.label(name)}: {member.size} bytes, more than the limit of {MAX_FILE_BYTES}")
        content = _read_zipped(self.root, member) if self.root.suffix == _ZIP else _read_tarred(self.root, member)
        if len(content) != member.size:
            raise DataError(f"{self.label(name)}: {len(content)} of {member.size} bytes found; download it again")
        return content


def is_archive(path: Path) -> bool:
    """Whether a path names an archive with random access. Raises: DataError: a compressed tar, which has none."""
    if path.name.endswith(_COMPRESSED_TARS):
        other = "or, to save disk space, only decompress it (bunzip2, gunzip, unxz) and give the .tar"
        raise DataError(f"{printable(path)}: a compressed tar has no random access; unpack it (tar xf), {other}")
    return path.suffix in {_ZIP, _TAR} and not path.is_dir()


def find_folder(root: Path, wanted: str) -> RawFiles | None:
    """The place of the folder `wanted` in a raw download: at the top, or in the top folder of an archive."""
    files = RawFiles(root)
    if not files.is_archive:
        return files if (root / wanted).is_dir() else None
    for name in _members(root):
        parts = PurePosixPath(name).parts
        for depth in (0, 1):
            if len(parts) > depth + 1 and parts[depth] == wanted:
                return RawFiles(root, "".join(f"{part}/" for part in parts[:depth]))
    return None


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    offset: int = 0  # of the data, in a tar


def _members(archive: Path) -> Mapping[str, _Member]:
    try:
        status = archive.stat()
    except FileNotFoundError as error:
        raise DataError(f"{printable(archive)}: no such file; check the path") from error
    return _read_members(archive, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_members(archive: Path, size: int, changed: int) -> Mapping[str, _Member]:
    with open_regular(archive, _MAX_ARCHIVE_BYTES):
        pass  # refuses anything but a regular file
    try:
        if archive.suffix == _ZIP:
            with zipfile.ZipFile(archive) as opened:
                found = [_Member(entry.filename, entry.file_size) for entry in opened.infolist() if not entry.is_dir()]
        else:
            with tarfile.open(archive, "r:") as tar:
                found = [_Member(entry.name, entry.size, entry.offset_data) for entry in tar if entry.isreg()]
    except (tarfile.TarError, *ZIP_FAULTS) as error:
        kind = archive.suffix
        raise DataError(f"{printable(archive)}: not a readable {kind}, or damaged; download it again") from error
    if len(found) > _MAX_MEMBERS:
        raise DataError(f"{printable(archive)}: {len(found)} files, at most {_MAX_MEMBERS} are read")
    return {entry.name.removeprefix("./"): entry for entry in found}


def _read_zipped(archive: Path, member: _Member) -> bytearray:
    try:
        with _opened_zip(archive, os.getpid()).open(member.name) as stream:
            return bytearray(stream.read(member.size + 1))
    except ZIP_FAULTS as error:
        name = printable(member.name)
        raise DataError(f"{printable(archive)}: {name} is damaged; download the archive again") from error


@functools.lru_cache(maxsize=4)
def _opened_zip(archive: Path, process: int) -> zipfile.ZipFile:
    """Each process keeps it open: reading the index of a large archive takes a second."""
    return zipfile.ZipFile(archive)


def _read_tarred(archive: Path, member: _Member) -> bytearray:
    with open_regular(archive, _MAX_ARCHIVE_BYTES) as (stream, _):
        stream.seek(member.offset)
        return bytearray(stream.read(member.size))
