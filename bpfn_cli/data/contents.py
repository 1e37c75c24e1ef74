# SPDX-License-Identifier: MIT
"""What identifies the contents of a dataset without reading all of it: names, sizes, and blocks of its files."""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from bpfn_cli.files import disk_errors, open_regular
from bpfn_cli.parallel import map_in_threads

FILES, BLOCKS = 1024, 8192  # read at most: files, and blocks of all of them
BLOCK_BYTES = 4096
_LARGEST_FILE = 1 << 44


def fingerprint(sizes: Mapping[str, int]) -> str:
    """sha256 of file names and sizes."""
    return hashlib.sha256("".join(f"{key} {size}\n" for key, size in sorted(sizes.items())).encode()).hexdigest()


def contents_sha256(root: Path, sizes: Mapping[str, int], *more: str) -> str:
    """sha256 of the names, the sizes and blocks of the contents of files, and of `more`; equal for equal copies.

    Blocks are spread evenly over each file. Of more than `FILES` files, those are read that a hash of the name chooses.

    Args: sizes: path relative to `root` -> bytes.
    Raises: DataError: a file is missing. DiskError: no permission.
    """
    digest = hashlib.sha256(fingerprint(sizes).encode())
    chosen = sorted(sizes, key=lambda key: hashlib.sha256(key.encode()).digest())[:FILES]
    read = partial(_blocks, root, BLOCKS // max(1, len(chosen)))
    for block in map_in_threads(read, chosen):
        digest.update(block)
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()


def newest_change(root: Path, sizes: Mapping[str, int]) -> str:
    """When the newest of the files was written, as ISO 8601 in UTC. sizes: as of `contents_sha256`."""
    with disk_errors(root):
        newest = max(((root / key).stat().st_mtime for key in sizes), default=0)
    return datetime.fromtimestamp(int(newest), timezone.utc).isoformat()


def _blocks(root: Path, count: int, key: str) -> bytes:
    """The sha256 of `count` blocks of a file, or of all of it if it has no more."""
    digest = hashlib.sha256()
    with open_regular(root / key, _LARGEST_FILE) as (stream, size), disk_errors(root / key):
        if size <= count * BLOCK_BYTES:
            digest.update(stream.read())
            return digest.digest()
        for index in range(count):
            stream.seek(index * (size - BLOCK_BYTES) // (count - 1))
            digest.update(stream.read(BLOCK_BYTES))
    return digest.digest()
