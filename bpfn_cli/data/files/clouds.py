# SPDX-License-Identifier: MIT
"""Point clouds a user brings: `.npy`, `.npz`, `.ply`, `.pcd` and `.bin`. Axes and units stay those of the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import check_points, npz_names, read_file, read_npy, read_npz
from bpfn_cli.errors import DataError, printable

_CLOUD_NAMES = ("points", "pc", "xyz")


def read_cloud(path: Path) -> np.ndarray:
    """(N, 3) float32 metres, from a file whose ending tells its format.

    `.npy`: (N, 3) or more columns, of which the first three are used.
    `.npz`: the same, the only array or the one named points, pc or xyz.
    `.ply`: properties x, y, z of the vertices, ascii or binary.
    `.pcd`: fields x, y, z, ascii or binary, not compressed. Points without a measurement (NaN) are left out.
    `.bin`: KITTI velodyne, float32 x, y, z, intensity.

    Raises: DataError: missing, damaged, unknown ending, or as `check_points`. DiskError: not permitted.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{printable(path)}: unknown ending; {', '.join(sorted(_READERS))} are read")
    return check_points(reader(path), path)


def read_cloud_pair(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """pc1 (N, 3), pc2 (M, 3) and, where the file has it, flow (N, 3): float32 metres, from one `.npz`.

    Raises: DataError: not an `.npz`, without pc1 or pc2, flow of another length, or as `check_points`.
    """
    if path.suffix.lower() != ".npz":
        raise DataError(f"{printable(path)}: one file for both clouds must be an .npz with pc1 and pc2")
    names = [name for name in ("pc1", "pc2", "flow") if name in {"pc1", "pc2", *npz_names(path)}]
    arrays = read_npz(path, names)
    pc1 = check_points(_first_three_columns(arrays["pc1"]), path, "pc1")
    pc2 = check_points(_first_three_columns(arrays["pc2"]), path, "pc2")
    if "flow" not in arrays:
        return pc1, pc2, None
    flow = check_points(arrays["flow"], path, "flow")
    if len(flow) != len(pc1):
        raise DataError(f"{printable(path)}: flow has {len(flow)} rows, pc1 {len(pc1)}; one row a point expected")
    return pc1, pc2, flow


def _first_three_columns(array: np.ndarray) -> np.ndarray:
    return array[:, :3] if array.ndim == 2 else array


def _read_npy_cloud(path: Path) -> np.ndarray:
    return _first_three_columns(read_npy(path))


def _read_npz_cloud(path: Path) -> np.ndarray:
    names = npz_names(path)
    candidates = [name for name in _CLOUD_NAMES if name in names] or (list(names) if len(names) == 1 else [])
    if not candidates:
        found = printable(", ".join(names))[:200] or "nothing"
        raise DataError(
            f"{printable(path)}: holds {found}; one array, or one named {', '.join(_CLOUD_NAMES)}, expected"
        )
    return _first_three_columns(read_npz(path, candidates[:1])[candidates[0]])


def _read_velodyne(path: Path) -> np.ndarray:
    content = read_file(path)
    if len(content) % 16:
        raise DataError(
            f"{printable(path)}: {len(content)} bytes found, a multiple of 16 expected (float32 x, y, z, intensity)"
        )
    return np.frombuffer(content, "<f4").reshape(-1, 4)[:, :3]


# --- PLY ------------------------------------------------------------------------------------------

_MAX_PLY_HEADER_BYTES = 1 << 16
_PLY_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}


@dataclass
class _PlyElement:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name, NumPy kind
    has_lists: bool = False

    def dtype(self, byte_order: str) -> np.dtype:
        return np.dtype([(name, byte_order + kind) for name, kind in self.properties])


def _read_ply(path: Path) -> np.ndarray:
    content, name = bytes(read_file(path)), printable(path)
    end = re.search(rb"\nend_header[ \t]*\r?\n", content[:_MAX_PLY_HEADER_BYTES])
    if not content.startswith(b"ply") or end is None:
        raise DataError(f"{name}: not a PLY file (it must start with ply and have an end_header)")
    byte_order, elements = _parse_ply_header(content[: end.start()].decode("latin-1"), name)
    _check_ply_elements(elements, name)
    parse = _parse_binary_vertices if byte_order else _parse_ascii_vertices
    return parse(content[end.end() :], elements, byte_order, name)


def _parse_ply_header(text: str, name: str) -> tuple[str, list[_PlyElement]]:
    byte_order: str | None = None
    elements: list[_PlyElement] = []
    for line in text.split("\n")[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in _PLY_FORMATS:
                byte_order = _PLY_FORMATS[kind]
            case ["element", element, count] if re.fullmatch("[0-9]{1,12}", count):
                elements.append(_PlyElement(element, int(count), []))
            case ["property", "list", _, _, _] if elements:
                elements[-1].has_lists = True
            case ["property", kind, label] if elements and kind in _PLY_TYPES:
                elements[-1].properties.append((label, _PLY_TYPES[kind]))
            case _:
                raise DataError(f"{name}: PLY header line not understood: {printable(line)[:60]}")
    if byte_order is None:
        raise DataError(f"{name}: PLY header without a format line ({', '.join(_PLY_FORMATS)} expected)")
    return byte_order, elements


def _check_ply_elements(elements: list[_PlyElement], name: str) -> None:
    labels = [element.name for element in elements]
    if labels.count("vertex") != 1:
        raise DataError(f"{name}: {labels.count('vertex')} vertex elements in the PLY header, one expected")
    before_and_vertex = elements[: labels.index("vertex") + 1]
    if any(element.has_lists for element in before_and_vertex):
        raise DataError(f"{name}: PLY lists in or before the vertices are not read; write the vertices first")
    for element in elements:
        properties = [label for label, _ in element.properties]
        if len(set(properties)) != len(properties):
            raise DataError(f"{name}: PLY element {printable(element.name)[:60]} has two properties of one name")
    if not {"x", "y", "z"} <= {label for label, _ in before_and_vertex[-1].properties}:
        raise DataError(f"{name}: PLY vertices without x, y and z")


def _parse_binary_vertices(body: bytes, elements: list[_PlyElement], byte_order: str, name: str) -> np.ndarray:
    """(N, 3) float64. The size the header claims is compared with the bytes there are first."""
    start = expected = 0
    open_ended = False
    for element in elements:
        if element.name == "vertex":
            vertex, start = element, expected
        if element.has_lists and element.count:
            open_ended = True
            break
        expected += element.count * element.dtype(byte_order).itemsize
    if len(body) < expected or (len(body) > expected and not open_ended):
        fault = "truncated" if len(body) < expected else "has trailing bytes"
        raise DataError(f"{name}: {fault}: {len(body)} bytes after the header found, {expected} expected")
    vertices = np.frombuffer(body, vertex.dtype(byte_order), vertex.count, start)
    with np.errstate(invalid="ignore"):  # NaN may warn here; it is refused later
        return np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)


def _parse_ascii_vertices(body: bytes, elements: list[_PlyElement], byte_order: str, name: str) -> np.ndarray:
    """(N, 3) float64, one vertex a line."""
    lines = body.splitlines()
    start = 0
    for element in elements:
        if element.name == "vertex":
            vertex = element
            break
        start += element.count
    rows = lines[start : start + vertex.count]
    if len(rows) < vertex.count:
        raise DataError(f"{name}: truncated: {len(rows)} vertex lines found, {vertex.count} expected")
    if not rows:
        return np.empty((0, 3))
    try:
        if not all(row.strip() for row in rows):
            raise ValueError("empty line")
        values = np.loadtxt(rows, dtype=np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise DataError(f"{name}: a PLY vertex line is not made of numbers alone; write the file again") from error
    if values.shape != (vertex.count, len(vertex.properties)):
        raise DataError(
            f"{name}: PLY vertices of {values.shape} found, {(vertex.count, len(vertex.properties))} expected"
        )
    labels = [label for label, _ in vertex.properties]
    return values[:, [labels.index(axis) for axis in "xyz"]]


# --- PCD ------------------------------------------------------------------------------------------

_MAX_PCD_HEADER_BYTES = 1 << 14
_PCD_TYPES = {"F": "f", "I": "i", "U": "u"}


def _read_pcd(path: Path) -> np.ndarray:
    content, name = bytes(read_file(path)), printable(path)
    end = re.search(rb"(?m)^DATA[ \t]+(\w+)[ \t]*\r?\n", content[:_MAX_PCD_HEADER_BYTES])
    if end is None:
        raise DataError(f"{name}: not a PCD file (a header that ends with DATA expected)")
    dtype, points = _parse_pcd_header(content[: end.start()].decode("latin-1"), name)
    body, encoding = content[end.end() :], end[1].decode("latin-1")
    if encoding == "binary":
        if len(body) != points * dtype.itemsize:
            expected = points * dtype.itemsize
            raise DataError(f"{name}: {len(body)} bytes after the header found, {expected} expected; write it again")
        rows = np.frombuffer(body, dtype)
        with np.errstate(invalid="ignore"):
            cloud = np.stack([rows[axis].astype(np.float64) for axis in "xyz"], axis=1)
    elif encoding == "ascii":
        cloud = _parse_ascii_pcd(body, dtype, points, name)
    else:
        raise DataError(f"{name}: DATA {printable(encoding)[:30]} is not read; save it as ascii or binary")
    return cloud[~np.isnan(cloud).any(axis=1)]


def _parse_pcd_header(text: str, name: str) -> tuple[np.dtype, int]:
    """The type of a point, counts of a field as subarrays, and how many points there are."""
    entries = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip() and line[0] != "#"}
    fields, counts = entries.get("FIELDS", []), entries.get("COUNT", ["1"] * len(entries.get("FIELDS", [])))
    sizes, types = entries.get("SIZE", []), entries.get("TYPE", [])
    try:
        if not len(fields) == len(sizes) == len(types) == len(counts) or len(fields) > 256:
            raise ValueError("lines of other lengths")
        columns = [
            (f"{field} {index}" if field == "_" else field, f"<{_PCD_TYPES[kind]}{int(size)}", (int(count),))
            for index, (field, size, kind, count) in enumerate(zip(fields, sizes, types, counts, strict=True))
        ]
        if not all(0 < shape[0] <= 4096 for _, _, shape in columns):
            raise ValueError("a count out of range")
        dtype = np.dtype([(label, kind, shape if shape != (1,) else ()) for label, kind, shape in columns])
        (points,) = (int(value) for value in entries["POINTS"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: damaged PCD header; FIELDS, SIZE, TYPE, COUNT and POINTS expected") from error
    if not all(axis in fields and dtype[axis].shape == () for axis in "xyz"):
        raise DataError(f"{name}: PCD points without x, y and z")
    if not 0 <= points <= 1 << 40:
        raise DataError(f"{name}: the PCD header claims {points} points")
    return dtype, points


def _parse_ascii_pcd(body: bytes, dtype: np.dtype, points: int, name: str) -> np.ndarray:
    """(N, 3) float64, one point a line."""
    lines = body.split()
    names = dtype.names or ()
    widths = [int(np.prod(dtype[field].shape, dtype=int)) for field in names]
    if len(lines) != points * sum(widths):
        raise DataError(f"{name}: {len(lines)} numbers found, {points * sum(widths)} expected; write it again")
    try:
        values = np.array(lines, dtype="S").astype(np.float64).reshape(points, sum(widths))
    except ValueError as error:
        raise DataError(f"{name}: a PCD point is not made of numbers alone; write the file again") from error
    starts = dict(zip(names, np.cumsum([0, *widths[:-1]]), strict=True))
    return values[:, [starts[axis] for axis in "xyz"]]


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _read_npy_cloud,
    ".npz": _read_npz_cloud,
    ".ply": _read_ply,
    ".pcd": _read_pcd,
    ".bin": _read_velodyne,
}
