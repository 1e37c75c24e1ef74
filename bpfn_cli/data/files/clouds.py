# SPDX-License-Identifier: MIT
"""Point clouds supplied by the user: `.npy`, `.npz`, `.ply`, `.pcd`, `.bin`. Axes and units are those of the file."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import npz_names, read_npy, read_npz
from bpfn_cli.data.files.points import check_points
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import read_file

_CLOUD_NAMES = ("points", "pc", "xyz")
_MAX_HEADER_BYTES = 1 << 16
_PCD_TYPES = {"F": "f", "I": "i", "U": "u"}
_PLY_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
_C_NAMES = ("char", "uchar", "short", "ushort", "int", "uint", "float", "double")
_PLY_TYPES = {**dict(zip(_C_NAMES, _KINDS, strict=True)), **{np.dtype(kind).name: kind for kind in _KINDS}}


def read_cloud(path: Path) -> np.ndarray:
    """(N, 3) float32 metres, from a file whose ending names its format.

    `.npy`: (N, 3) or more columns, of which the first three are used.
    `.npz`: the same; the only array, or the one named points, pc or xyz.
    `.ply`: vertex properties x, y, z; ascii or binary.
    `.pcd`: fields x, y, z; ascii or binary, not compressed. Points without a measurement (NaN) are dropped.
    `.bin`: KITTI velodyne: float32 x, y, z, intensity.

    Raises: DataError: missing, damaged, unknown ending, or as `check_points`. DiskError: no permission.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{printable(path)}: unknown ending; use one of {', '.join(ENDINGS)}")
    return check_points(reader(path), path)


def read_cloud_pair(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """pc1 (N, 3), pc2 (M, 3) and, if the file has it, flow (N, 3): float32 metres, from one `.npz`.

    Raises: DataError: not an `.npz`, pc1 or pc2 missing, flow of another length, or as `check_points`.
    """
    if path.suffix.lower() != ".npz":
        raise DataError(f"{printable(path)}: one path must be an .npz with pc1 and pc2, a folder, or a list (.txt)")
    arrays = read_npz(path, ["pc1", "pc2", *({"flow"} & set(npz_names(path)))])
    pc1, pc2 = (check_points(_first_three_columns(arrays[name]), path, name) for name in ("pc1", "pc2"))
    if "flow" not in arrays:
        return pc1, pc2, None
    flow = check_points(arrays["flow"], path, "flow")
    if len(flow) != len(pc1):
        raise DataError(f"{printable(path)}: flow has {len(flow)} rows, pc1 {len(pc1)}; one row per point expected")
    return pc1, pc2, flow


def _first_three_columns(array: np.ndarray) -> np.ndarray:
    return array[:, :3] if array.ndim == 2 else array


def _read_npz_cloud(path: Path) -> np.ndarray:
    names = npz_names(path)
    candidates = [name for name in _CLOUD_NAMES if name in names] or (list(names) if len(names) == 1 else [])
    if not candidates:
        found, wanted = printable(", ".join(names))[:200] or "nothing", ", ".join(_CLOUD_NAMES)
        raise DataError(f"{printable(path)}: holds {found}; one array, or one named {wanted}, expected")
    return _first_three_columns(read_npz(path, candidates[:1])[candidates[0]])


def _read_velodyne(path: Path) -> np.ndarray:
    content = read_file(path)
    if len(content) % 16:
        expected = "a multiple of 16 expected (float32 x, y, z, intensity)"
        raise DataError(f"{printable(path)}: {len(content)} bytes found, {expected}")
    return np.frombuffer(content, "<f4").reshape(-1, 4)[:, :3]


def _read_pcd(path: Path) -> np.ndarray:
    content, name = bytes(read_file(path)), printable(path)
    end = re.search(rb"(?m)^DATA[ \t]+(\w+)[ \t]*\r?\n", content[:_MAX_HEADER_BYTES])
    if end is None:
        raise DataError(f"{name}: not a PCD file (a header that ends with DATA expected)")
    dtype, points = _parse_pcd_header(content[: end.start()].decode("latin-1"), name)
    body, encoding = content[end.end() :], end[1].decode("latin-1")
    if encoding == "binary":
        expected = points * dtype.itemsize
        if len(body) != expected:
            raise DataError(f"{name}: {len(body)} bytes after the header found, {expected} expected; write it again")
        cloud = _axes(np.frombuffer(body, dtype))
    elif encoding == "ascii":
        cloud = _axes_of_text([line for line in body.splitlines() if line.strip()], points, dtype, name)
    else:
        raise DataError(f"{name}: DATA {printable(encoding)[:30]} is not supported; save it as ascii or binary")
    return cloud[~np.isnan(cloud).any(axis=1)]


def _parse_pcd_header(text: str, name: str) -> tuple[np.dtype, int]:
    """The type of a point (fields with a count are subarrays), and the number of points."""
    entries = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip() and line[0] != "#"}
    fields = entries.get("FIELDS", [])
    columns = [fields, entries.get("SIZE", []), entries.get("TYPE", []), entries.get("COUNT", ["1"] * len(fields))]
    try:
        if len(fields) > 256 or not all(0 < int(count) <= 4096 for count in columns[3]):
            raise ValueError("too many fields, or a count out of range")
        described = []
        for index, (label, size, kind, count) in enumerate(zip(*columns, strict=True)):
            shape = (int(count),) if int(count) != 1 else ()
            described.append((f"{label} {index}" if label == "_" else label, f"<{_PCD_TYPES[kind]}{int(size)}", shape))
        dtype = np.dtype(described)
        (points,) = (int(value) for value in entries["POINTS"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: damaged PCD header; FIELDS, SIZE, TYPE, COUNT and POINTS expected") from error
    if not all(axis in fields and dtype[axis].shape == () for axis in "xyz"):
        raise DataError(f"{name}: PCD points without x, y and z")
    if not 0 <= points <= 1 << 40:
        raise DataError(f"{name}: the PCD header claims {points} points")
    return dtype, points


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]] = field(default_factory=list)  # name, NumPy type
    has_lists: bool = False

    @property
    def labels(self) -> list[str]:
        return [label for label, _ in self.properties]

    def dtype(self, byte_order: str) -> np.dtype:
        return np.dtype([(name, byte_order + kind) for name, kind in self.properties])


def _read_ply(path: Path) -> np.ndarray:
    content, name = bytes(read_file(path)), printable(path)
    end = re.search(rb"\nend_header[ \t]*\r?\n", content[:_MAX_HEADER_BYTES])
    if not content.startswith(b"ply") or end is None:
        raise DataError(f"{name}: not a PLY file (it must start with ply and have an end_header)")
    byte_order, elements = _parse_ply_header(content[: end.start()].decode("latin-1"), name)
    vertex, body = elements[_vertex_position(elements, name)], content[end.end() :]
    if byte_order:
        start = _first_vertex_byte(len(body), elements, byte_order, name)
        return _axes(np.frombuffer(body, vertex.dtype(byte_order), vertex.count, start))
    first = sum(element.count for element in elements[: elements.index(vertex)])  # one vertex per line
    return _axes_of_text(body.splitlines()[first : first + vertex.count], vertex.count, vertex.dtype("<"), name)


def _parse_ply_header(text: str, name: str) -> tuple[str, list[_Element]]:
    byte_order: str | None = None
    elements: list[_Element] = []
    for line in text.split("\n")[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in _PLY_FORMATS:
                byte_order = _PLY_FORMATS[kind]
            case ["element", element, count] if re.fullmatch("[0-9]{1,12}", count):
                elements.append(_Element(element, int(count)))
            case ["property", "list", _, _, _] if elements:
                elements[-1].has_lists = True
            case ["property", kind, label] if elements and kind in _PLY_TYPES:
                elements[-1].properties.append((label, _PLY_TYPES[kind]))
            case _:
                raise DataError(f"{name}: unknown PLY header line: {printable(line)[:60]}")
    if byte_order is None:
        raise DataError(f"{name}: PLY header without a format line ({', '.join(_PLY_FORMATS)} expected)")
    return byte_order, elements


def _vertex_position(elements: list[_Element], name: str) -> int:
    """Where the vertices are among the elements, all of which are checked."""
    names = [element.name for element in elements]
    if names.count("vertex") != 1:
        raise DataError(f"{name}: {names.count('vertex')} vertex elements in the PLY header, one expected")
    position = names.index("vertex")
    if any(element.has_lists for element in elements[: position + 1]):
        raise DataError(f"{name}: PLY lists in or before the vertices are not supported; write the vertices first")
    for element in elements:
        if len(set(element.labels)) != len(element.labels):
            raise DataError(f"{name}: PLY element {printable(element.name)[:60]} has a duplicate property")
    if not {"x", "y", "z"} <= set(elements[position].labels):
        raise DataError(f"{name}: PLY vertices without x, y and z")
    return position


def _first_vertex_byte(size: int, elements: list[_Element], byte_order: str, name: str) -> int:
    """Where the vertices start in a binary body of `size` bytes, which must fit the header."""
    start = expected = 0
    open_ended = False
    for element in elements:
        if element.name == "vertex":
            start = expected
        if element.has_lists and element.count:
            open_ended = True
            break
        expected += element.count * element.dtype(byte_order).itemsize
    if size < expected or (size > expected and not open_ended):
        fault = "truncated" if size < expected else "has trailing bytes"
        raise DataError(f"{name}: {fault}: {size} bytes after the header found, {expected} expected")
    return start


def _axes(rows: np.ndarray) -> np.ndarray:
    """Fields x, y and z of a structured array as (N, 3) float64."""
    with np.errstate(invalid="ignore"):  # NaN may cause a warning here; it is handled later
        return np.stack([rows[axis].astype(np.float64) for axis in "xyz"], axis=1)


def _axes_of_text(lines: list[bytes], rows: int, dtype: np.dtype, name: str) -> np.ndarray:
    """x, y and z as (rows, 3) float64, from lines with the numbers of a `dtype` each."""
    if len(lines) != rows:
        fault = "truncated" if len(lines) < rows else "has trailing lines"
        raise DataError(f"{name}: {fault}: {len(lines)} lines of points found, {rows} expected")
    if not rows:
        return np.empty((0, 3))
    labels = [label for label in dtype.names or () for _ in range(dtype[label].shape[0] if dtype[label].shape else 1)]
    try:
        if not all(line.strip() for line in lines):
            raise ValueError("empty line")
        values = np.loadtxt(lines, dtype=np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise DataError(f"{name}: a point does not consist of numbers only; write the file again") from error
    if values.shape != (rows, len(labels)):
        found = values.shape[1]
        raise DataError(f"{name}: {found} numbers per point found, {len(labels)} expected; write the file again")
    return values[:, [labels.index(axis) for axis in "xyz"]]


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": lambda path: _first_three_columns(read_npy(path)),
    ".npz": _read_npz_cloud,
    ".ply": _read_ply,
    ".pcd": _read_pcd,
    ".bin": _read_velodyne,
}
ENDINGS = tuple(sorted(_READERS))
