# SPDX-License-Identifier: MIT
"""Clouds in `.ply`: the properties of the vertices, ascii or binary.

trimesh 5.2.0 does not read them, because it returns wrong points without an error: it applies the length of the first
list to all, so that with vertex lists of 1, 2 and 0 values the second point is wrong, and returns three points of an
ascii file of two vertices and a face that claims nine. It refuses binary meshes of triangles and quads. The tests
compare both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from bpfn_cli.data.clouds.cloud import CloudFile, Columns
from bpfn_cli.data.clouds.text import read_numbers
from bpfn_cli.errors import printable

_MAX_HEADER_BYTES = 1 << 16
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
_OTHER_KINDS = ("i8", "u8", "f2")  # not in the format, but trimesh writes them
_C_NAMES = ("char", "uchar", "short", "ushort", "int", "uint", "float", "double")
_TYPES = {
    **dict(zip(_C_NAMES, _KINDS, strict=True)),
    **{np.dtype(kind).name: kind for kind in (*_KINDS, *_OTHER_KINDS)},
}
_LENGTHS = dict(zip(_KINDS[:6], "bBhHiI", strict=True))  # types of the length of a list: codes of the module struct


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str  # NumPy type of the values
    count_kind: str = ""  # NumPy type of the length of a list; "": one value


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(one.count_kind for one in self.properties)

    @property
    def least_bytes(self) -> int:
        """Of one row in a binary file: with empty lists."""
        return sum(np.dtype(one.count_kind or one.kind).itemsize for one in self.properties)

    def dtype(self, byte_order: str) -> np.dtype:
        """Of the values outside lists."""
        return np.dtype([(one.name, byte_order + one.kind) for one in self.properties if not one.count_kind])


def read_ply(file: CloudFile) -> Columns:
    """The properties of the vertices but lists. Bytes after the last element are left out, with a note."""
    end = re.search(rb"\nend_header[ \t]*\r?\n", file.content[:_MAX_HEADER_BYTES])
    if not file.content.startswith(b"ply") or end is None:
        raise file.fault("not a PLY file (it must start with ply and have an end_header)")
    byte_order, elements = _parse_header(file.content[: end.start()].decode("latin-1"), file)
    body = bytes(file.content[end.end() :])
    position = _vertex_position(elements, file)
    vertex, before, after = elements[position], elements[:position], elements[position + 1 :]
    if not byte_order:
        lines = body.splitlines()
        first = sum(element.count for element in before)  # one row per line
        rows = _read_ascii(lines[first : first + vertex.count], vertex, file)
        expected = sum(element.count for element in elements)
        if len(lines) < expected:
            raise file.fault(f"truncated: {len(lines)} lines after the header found, {expected} expected")
        trailing = sum(1 for line in lines[expected:] if line.strip())
        notes = [f"{trailing:,} lines after the last element are left out"] if trailing else []
        return Columns(rows, "PLY ascii", tuple(notes))
    start = 0
    for element in before:
        start, _ = _walk(body, start, element, byte_order, file)
    start, packed = _walk(body, start, vertex, byte_order, file)
    for element in after:
        start, _ = _walk(body, start, element, byte_order, file)
    table = np.frombuffer(packed, vertex.dtype(byte_order), vertex.count)
    notes = [f"{len(body) - start:,} bytes after the last element are left out"] if len(body) > start else []
    return Columns({name: table[name] for name in table.dtype.names or ()}, "PLY binary", tuple(notes))


def _parse_header(text: str, file: CloudFile) -> tuple[str, list[_Element]]:
    byte_order: str | None = None
    elements: list[_Element] = []
    for line in text.split("\n")[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in _FORMATS:
                byte_order = _FORMATS[kind]
            case ["element", element, count] if re.fullmatch("[0-9]{1,12}", count):
                elements.append(_Element(element, int(count)))
            case ["property", "list", count_kind, kind, label] if (
                elements and kind in _TYPES and _TYPES.get(count_kind) in _LENGTHS
            ):
                elements[-1].properties.append(_Property(label, _TYPES[kind], _TYPES[count_kind]))
            case ["property", kind, label] if elements and kind in _TYPES:
                elements[-1].properties.append(_Property(label, _TYPES[kind]))
            case _:
                raise file.fault(f"unknown PLY header line: {printable(line)[:60]}")
    if byte_order is None:
        raise file.fault(f"PLY header without a format line ({', '.join(_FORMATS)} expected)")
    return byte_order, elements


def _vertex_position(elements: list[_Element], file: CloudFile) -> int:
    """Where the vertices are among the elements, all of which are checked."""
    names = [element.name for element in elements]
    if names.count("vertex") != 1:
        raise file.fault(f"{names.count('vertex')} vertex elements in the PLY header, one expected")
    for element in elements:
        labels = [one.name for one in element.properties]
        if len(set(labels)) != len(labels):
            raise file.fault(f"PLY element {printable(element.name)[:60]} has a duplicate property")
        if not labels and element.count:
            raise file.fault(f"PLY element {printable(element.name)[:60]} has no property")
    return names.index("vertex")


# --- binary -----------------------------------------------------------------------------------------


def _walk(body: bytes, start: int, element: _Element, byte_order: str, file: CloudFile) -> tuple[int, bytes]:
    """Where the rows of an element end that start at a byte of the body, and the bytes outside its lists."""
    least = element.count * element.least_bytes
    if start + least > len(body):
        fault = f"{len(body)} bytes after the header found, {start + least} expected"
        raise file.fault(f"truncated: {fault}; write it again")
    if not element.has_lists:
        return start + least, body[start : start + least]
    kept, at, steps = bytearray(), start, _steps(element, byte_order)
    try:
        for _ in range(element.count):
            for size, length, item in steps:
                if length is None:
                    kept += body[at : at + size]
                    at += size
                    continue
                (count,) = length.unpack_from(body, at)
                at += size + count * item
                if count < 0:
                    raise file.fault("a PLY list of negative length; write it again")
    except struct.error as error:
        raise file.fault("truncated in a PLY list; write it again") from error
    if at > len(body):
        raise file.fault(f"truncated: {len(body)} bytes after the header found, {at} expected; write it again")
    return at, bytes(kept)


def _steps(element: _Element, byte_order: str) -> list[tuple[int, struct.Struct | None, int]]:
    """How to walk a row: (bytes, None, 0) of values, (bytes and layout of the length, bytes of an item) of a list."""
    steps: list[tuple[int, struct.Struct | None, int]] = []
    for is_list, group in groupby(element.properties, key=lambda one: bool(one.count_kind)):
        if not is_list:
            steps.append((sum(np.dtype(one.kind).itemsize for one in group), None, 0))
            continue
        for one in group:
            length = struct.Struct(byte_order + _LENGTHS[one.count_kind])
            steps.append((length.size, length, np.dtype(one.kind).itemsize))
    return steps


# --- ascii ------------------------------------------------------------------------------------------


def _read_ascii(lines: Sequence[bytes], vertex: _Element, file: CloudFile) -> dict[str, np.ndarray]:
    """The values outside lists, from one line for each vertex."""
    if len(lines) != vertex.count:
        fault = f"{len(lines)} lines of points found, {vertex.count} expected"
        raise file.fault(f"truncated: {fault}; write it again")
    if vertex.has_lists:
        lines = [_without_lists(line, vertex, file) for line in lines]
    labels = [one.name for one in vertex.properties if not one.count_kind]
    values = read_numbers(lines, file)
    if vertex.count and values.shape[1] != len(labels):
        found = f"{values.shape[1]} numbers per point found"
        raise file.fault(f"{found}, {len(labels)} expected; write the file again")
    return {label: values[:, column] if vertex.count else np.empty(0) for column, label in enumerate(labels)}


def _without_lists(line: bytes, vertex: _Element, file: CloudFile) -> bytes:
    words, at, kept = line.split(), 0, []
    try:
        for one in vertex.properties:
            if one.count_kind:
                at += 1 + int(words[at])
            else:
                kept.append(words[at])
                at += 1
    except (ValueError, IndexError):
        at = -1
    if at != len(words):
        raise file.fault("a vertex does not have the numbers that its lists announce; write the file again")
    return b" ".join(kept)
