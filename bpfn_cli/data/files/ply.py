# SPDX-License-Identifier: MIT
"""PLY point clouds: x, y, z of the vertices, ascii or binary."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.data.files.regular import read_file
from bpfn_cli.errors import DataError, printable

_MAX_HEADER_BYTES = 1 << 16
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_TYPES = {
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
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name, NumPy type
    has_lists: bool = False

    def dtype(self, byte_order: str) -> np.dtype:
        return np.dtype([(name, byte_order + kind) for name, kind in self.properties])


def read_ply(path: Path) -> np.ndarray:
    """(N, 3) float64. Raises: DataError: damaged, or without x, y and z."""
    content, name = bytes(read_file(path)), printable(path)
    end = re.search(rb"\nend_header[ \t]*\r?\n", content[:_MAX_HEADER_BYTES])
    if not content.startswith(b"ply") or end is None:
        raise DataError(f"{name}: not a PLY file (it must start with ply and have an end_header)")
    byte_order, elements = _parse_header(content[: end.start()].decode("latin-1"), name)
    _check_elements(elements, name)
    parse = _parse_binary if byte_order else _parse_ascii
    return parse(content[end.end() :], elements, byte_order, name)


def _parse_header(text: str, name: str) -> tuple[str, list[_Element]]:
    byte_order: str | None = None
    elements: list[_Element] = []
    for line in text.split("\n")[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in _FORMATS:
                byte_order = _FORMATS[kind]
            case ["element", element, count] if re.fullmatch("[0-9]{1,12}", count):
                elements.append(_Element(element, int(count), []))
            case ["property", "list", _, _, _] if elements:
                elements[-1].has_lists = True
            case ["property", kind, label] if elements and kind in _TYPES:
                elements[-1].properties.append((label, _TYPES[kind]))
            case _:
                raise DataError(f"{name}: unknown PLY header line: {printable(line)[:60]}")
    if byte_order is None:
        raise DataError(f"{name}: PLY header without a format line ({', '.join(_FORMATS)} expected)")
    return byte_order, elements


def _check_elements(elements: list[_Element], name: str) -> None:
    labels = [element.name for element in elements]
    if labels.count("vertex") != 1:
        raise DataError(f"{name}: {labels.count('vertex')} vertex elements in the PLY header, one expected")
    up_to_vertex = elements[: labels.index("vertex") + 1]
    if any(element.has_lists for element in up_to_vertex):
        raise DataError(f"{name}: PLY lists in or before the vertices are not supported; write the vertices first")
    for element in elements:
        properties = [label for label, _ in element.properties]
        if len(set(properties)) != len(properties):
            raise DataError(f"{name}: PLY element {printable(element.name)[:60]} has a duplicate property")
    if not {"x", "y", "z"} <= {label for label, _ in up_to_vertex[-1].properties}:
        raise DataError(f"{name}: PLY vertices without x, y and z")


def _parse_binary(body: bytes, elements: list[_Element], byte_order: str, name: str) -> np.ndarray:
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
    return axis_columns(np.frombuffer(body, vertex.dtype(byte_order), vertex.count, start))


def _parse_ascii(body: bytes, elements: list[_Element], byte_order: str, name: str) -> np.ndarray:
    """One vertex per line; `byte_order` is not used."""
    position = [element.name for element in elements].index("vertex")
    start, vertex = sum(element.count for element in elements[:position]), elements[position]
    rows = body.splitlines()[start : start + vertex.count]
    labels = [label for label, _ in vertex.properties]
    values = ascii_rows(rows, vertex.count, len(labels), name)
    return values[:, [labels.index(axis) for axis in "xyz"]]


def axis_columns(rows: np.ndarray) -> np.ndarray:
    """Fields x, y and z of a structured array as (N, 3) float64."""
    with np.errstate(invalid="ignore"):  # NaN may cause a warning here; it is handled later
        return np.stack([rows[axis].astype(np.float64) for axis in "xyz"], axis=1)


def ascii_rows(lines: list[bytes], rows: int, columns: int, name: str) -> np.ndarray:
    """(rows, columns) float64 from lines of numbers. Raises: DataError: other lines or numbers than these."""
    if len(lines) != rows:
        fault = "truncated" if len(lines) < rows else "has trailing lines"
        raise DataError(f"{name}: {fault}: {len(lines)} lines of points found, {rows} expected")
    if not rows:
        return np.empty((0, columns))
    try:
        if not all(line.strip() for line in lines):
            raise ValueError("empty line")
        values = np.loadtxt(lines, dtype=np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise DataError(f"{name}: a point does not consist of numbers only; write the file again") from error
    if values.shape != (rows, columns):
        raise DataError(f"{name}: {values.shape[1]} numbers per point found, {columns} expected; write the file again")
    return values
