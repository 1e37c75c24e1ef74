# SPDX-License-Identifier: MIT
"""HDF5 files, if h5py is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.files.regular import open_regular
from bpfn_cli.errors import DataError, DiskError, UsageError, printable

_MAX_FILE_BYTES = 1 << 40
_MAX_ROWS = 1 << 22


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An open `h5py.File`. Errors of h5py inside the block become a DataError.

    Raises: DataError: not HDF5, or damaged. DiskError: no permission. UsageError: h5py is missing.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError(f"{printable(path)}: reading HDF5 needs h5py: pip install h5py") from error
    with open_regular(path, _MAX_FILE_BYTES):
        pass  # refuses anything but a regular file
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, PermissionError):
            raise DiskError(f"{printable(path)}: no permission; change its mode") from error
        raise DataError(f"{printable(path)}: not an HDF5 log, or damaged; download it again") from error


def read_array(path: Path, group: Any, name: str) -> np.ndarray:
    """An array of one or two dimensions of numbers. Raises: DataError: missing, another type, or too large."""
    where = f"{printable(path)}: {printable(group.name)}/{name}"
    if name not in group or not hasattr(group[name], "shape"):
        raise DataError(f"{where}: missing; download the log again")
    data = group[name]
    if len(data.shape) not in (1, 2) or not 0 < data.shape[0] <= _MAX_ROWS or data.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: {data.dtype} of shape {data.shape} found, numbers of up to {_MAX_ROWS} points expected"
        )
    return np.asarray(data[()])
