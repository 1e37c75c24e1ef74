# SPDX-License-Identifier: MIT
"""Files of a flow, by their ending: numbers alone, or points with flow and color that any viewer of clouds shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import parse_npy, parse_npz
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import read_file, write_atomic
from bpfn_cli.frames import axes_of
from bpfn_cli.viewing.colors import flow_colors, flow_scale_m

FLOW = "flow"


def write_flow(path: Path, flow: np.ndarray, points: np.ndarray, frame: str) -> None:
    """Write a flow in the format of its ending, atomically; float32.

    Args: flow: (N, 3) metres. points: (N, 3) metres, float32 or float64, the cloud that moves. frame: of both.
    Raises: DiskError. UsageError: as `check_ending`.
    """
    check_ending(path)
    write_atomic(path, FLOW_FORMATS[path.suffix](flow.astype(np.float32, copy=False), points, frame))


def check_ending(path: Path) -> None:
    """Raises: UsageError: no format has this ending."""
    if path.suffix not in FLOW_FORMATS:
        raise UsageError(f"--out {printable(path)}: unknown format of a flow; use {', '.join(FLOW_FORMATS)}")


def read_flow(path: Path, rows: int) -> np.ndarray:
    """(rows, 3) float32 metres, from a `.npy`, or from the array `flow` of an `.npz`.

    Raises: DataError: missing, damaged, of another ending or shape.
    """
    name = printable(path)
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"{name}: flows are read from .npy and .npz; write it with `bpfn predict --out flow.npz`")
    content = read_file(path)
    flow = parse_npy(content, name) if path.suffix == ".npy" else parse_npz(content, name, lambda _: [FLOW])[FLOW]
    if flow.shape != (rows, 3) or flow.dtype.kind != "f":
        expected = f"({rows}, 3) floats expected, a row for each row of the first cloud"
        raise DataError(f"{name}: {flow.dtype} of shape {flow.shape} found, {expected}")
    return flow.astype(np.float32, copy=False)


def _npy(flow: np.ndarray, points: np.ndarray, frame: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, flow, allow_pickle=False)
    return buffer.getvalue()


def _npz(flow: np.ndarray, points: np.ndarray, frame: str) -> bytes:
    """Without the second cloud: readers would take the flow of a pair for the true one."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pc1=points, flow=flow)
    return buffer.getvalue()


def _ply(flow: np.ndarray, points: np.ndarray, frame: str) -> bytes:
    kind = "double" if points.dtype == np.float64 else "float"
    names = {**dict.fromkeys("xyz", kind), **dict.fromkeys(_FLOW_FIELDS, "float")}
    colors = dict.fromkeys(("red", "green", "blue"), "uchar")
    properties = "".join(f"property {kind} {name}\n" for name, kind in {**names, **colors}.items())
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(flow)}\n{properties}end_header\n"
    tints = _tints(flow, frame)
    return header.encode() + _table(flow, points, {name: tints[:, at] for at, name in enumerate(colors)})


def _pcd(flow: np.ndarray, points: np.ndarray, frame: str) -> bytes:
    size = points.dtype.itemsize
    red, green, blue = _tints(flow, frame).astype(np.uint32).T
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
        f"FIELDS x y z {' '.join(_FLOW_FIELDS)} rgb\nSIZE {size} {size} {size} 4 4 4 4\nTYPE F F F F F F F\n"
        f"COUNT 1 1 1 1 1 1 1\nWIDTH {len(flow)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(flow)}\nDATA binary\n"
    )
    packed = (red << 16 | green << 8 | blue).view(np.float32)  # as PCL packs colors
    return header.encode() + _table(flow, points, {"rgb": packed})


_FLOW_FIELDS = ("flow_x", "flow_y", "flow_z")
FLOW_FORMATS: dict[str, Callable[[np.ndarray, np.ndarray, str], bytes]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".ply": _ply,
    ".pcd": _pcd,
}


def _table(flow: np.ndarray, points: np.ndarray, colors: dict[str, np.ndarray]) -> bytes:
    """Rows of x, y, z, the flow and the color, little-endian."""
    columns = {**dict(zip("xyz", points.T, strict=True)), **dict(zip(_FLOW_FIELDS, flow.T, strict=True)), **colors}
    rows = np.empty(len(flow), [(name, column.dtype.newbyteorder("<")) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    return rows.tobytes()


def _tints(flow: np.ndarray, frame: str) -> np.ndarray:
    return flow_colors(flow @ axes_of(frame).T, flow_scale_m([flow]))
