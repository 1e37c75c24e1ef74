# SPDX-License-Identifier: MIT
"""Clouds in `.npy` and `.npz`: (N, 3) or more columns, a structured array, or arrays x, y and z."""

import math

import numpy as np

from bpfn_cli.data.clouds.cloud import CloudFile, Columns, unnamed
from bpfn_cli.data.files.npy import parse_npy, parse_npz
from bpfn_cli.errors import printable

_CLOUD_NAMES = ("points", "pc", "xyz", "pos", "position", "coords")
_COORDINATES = ("x", "y", "z")


def read_npy_cloud(file: CloudFile) -> Columns:
    """An array of three or more columns, or with fields x, y and z."""
    return columns_of(parse_npy(file.content, file.name, tables=True), file)


def read_npz_cloud(file: CloudFile) -> Columns:
    """The only array, the first one named as in `_CLOUD_NAMES`, or arrays x, y and z."""
    arrays = parse_npz(file.content, file.name, lambda names: _choose(names, file), tables=True)
    if len(arrays) == 1:
        return columns_of(next(iter(arrays.values())), file)
    if len({array.shape for array in arrays.values()}) != 1:
        raise file.fault("x, y and z differ in shape; one value per point expected")
    return Columns({name: array.reshape(-1) for name, array in arrays.items()})


def columns_of(array: np.ndarray, file: CloudFile) -> Columns:
    """The columns of an array. Raises: DataError: as `unnamed`."""
    if array.dtype.names is None:
        return unnamed(array, file)
    if math.prod(array.shape) != max(array.shape, default=0):
        raise file.fault(f"a table of shape {array.shape}; save array.reshape(-1)")
    table = array.reshape(-1)
    for name in _CLOUD_NAMES:
        if name in array.dtype.names and table[name].shape[1:] == (3,):
            holds = f"field {name} of {len(array.dtype.names)}"
            return Columns(dict(zip(_COORDINATES, table[name].T, strict=True)), holds)
    return Columns({name: table[name] for name in array.dtype.names}, f"a table of {len(array.dtype.names)} fields")


def _choose(names: tuple[str, ...], file: CloudFile) -> list[str]:
    if chosen := [name for name in _CLOUD_NAMES if name in names]:
        return chosen[:1]
    if set(_COORDINATES) <= set(names):
        return list(_COORDINATES)
    if len(names) == 1:
        return list(names)
    found, wanted = printable(", ".join(names))[:200] or "nothing", ", ".join(_CLOUD_NAMES)
    raise file.fault(f"holds {found}; one array, one named {wanted}, or x, y and z expected")
