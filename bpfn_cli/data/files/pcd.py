# SPDX-License-Identifier: MIT
"""PCD point clouds: fields x, y, z, ascii or binary."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.ply import ascii_rows, axis_columns
from bpfn_cli.data.files.regular import read_file
from bpfn_cli.errors import DataError, printable

_MAX_HEADER_BYTES = 1 << 14
_TYPES = {"F": "f", "I": "i", "U": "u"}


def read_pcd(path: Path) -> np.ndarray:
    """(N, 3) float64, without the points that have no measurement. Raises: DataError: damaged, or compressed."""
    content, name = bytes(read_file(path)), printable(path)
    end = re.search(rb"(?m)^DATA[ \t]+(\w+)[ \t]*\r?\n", content[:_MAX_HEADER_BYTES])
    if end is None:
        raise DataError(f"{name}: not a PCD file (a header that ends with DATA expected)")
    dtype, points = _parse_header(content[: end.start()].decode("latin-1"), name)
    body, encoding = content[end.end() :], end[1].decode("latin-1")
    if encoding == "binary":
        expected = points * dtype.itemsize
        if len(body) != expected:
            raise DataError(f"{name}: {len(body)} bytes after the header found, {expected} expected; write it again")
        cloud = axis_columns(np.frombuffer(body, dtype))
    elif encoding == "ascii":
        names = dtype.names or ()
        widths = [int(np.prod(dtype[field].shape, dtype=int)) for field in names]
        starts = dict(zip(names, np.cumsum([0, *widths[:-1]]), strict=True))
        lines = [line for line in body.splitlines() if line.strip()]
        cloud = ascii_rows(lines, points, sum(widths), name)[:, [starts[axis] for axis in "xyz"]]
    else:
        raise DataError(f"{name}: DATA {printable(encoding)[:30]} is not supported; save it as ascii or binary")
    return cloud[~np.isnan(cloud).any(axis=1)]


def _parse_header(text: str, name: str) -> tuple[np.dtype, int]:
    """The type of a point (fields with a count are subarrays), and the number of points."""
    entries = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip() and line[0] != "#"}
    fields = entries.get("FIELDS", [])
    columns = [fields, entries.get("SIZE", []), entries.get("TYPE", []), entries.get("COUNT", ["1"] * len(fields))]
    try:
        if len({len(column) for column in columns}) != 1 or len(fields) > 256:
            raise ValueError("lines of different lengths")
        described = []
        for index, (field, size, kind, count) in enumerate(zip(*columns, strict=True)):
            if not 0 < int(count) <= 4096:
                raise ValueError("a count out of range")
            shape = (int(count),) if int(count) != 1 else ()
            described.append((f"{field} {index}" if field == "_" else field, f"<{_TYPES[kind]}{int(size)}", shape))
        dtype = np.dtype(described)
        (points,) = (int(value) for value in entries["POINTS"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: damaged PCD header; FIELDS, SIZE, TYPE, COUNT and POINTS expected") from error
    if not all(axis in fields and dtype[axis].shape == () for axis in "xyz"):
        raise DataError(f"{name}: PCD points without x, y and z")
    if not 0 <= points <= 1 << 40:
        raise DataError(f"{name}: the PCD header claims {points} points")
    return dtype, points
