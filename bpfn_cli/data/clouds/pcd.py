# SPDX-License-Identifier: MIT
"""Clouds in `.pcd`, the format of the Point Cloud Library: ascii, binary or binary_compressed.

pypcd4 1.5.1 does not read them, because it returns wrong points without an error: it cuts the fields `x y z t/s ring`
off at `/`, so that a second point (4, 5, 6) becomes (9, 4, 5), and returns one point of a file that ends after one of
two. Checks against this are most of a reader. The tests compare both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from bpfn_cli.data.clouds.cloud import CloudFile, Columns
from bpfn_cli.data.clouds.text import read_numbers
from bpfn_cli.errors import printable

_MAX_HEADER_BYTES = 1 << 16
_MAX_POINTS = 1 << 40
_TYPES = {"F": "f", "I": "i", "U": "u"}
_UNUSED = "_"  # the name of fields that only align the others


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype  # of a point; fields with a count are subarrays
    points: int
    encoding: str
    viewpoint: tuple[float, ...] | None

    @property
    def used(self) -> list[str]:
        """The fields that `binary_compressed` stores, as PCL writes it."""
        return [name for name in self.dtype.names or () if name.split(" ")[0] != _UNUSED]


def read_pcd(file: CloudFile) -> Columns:
    """All fields of the points. Bytes or lines after the last point are left out, with a note."""
    end = re.search(rb"(?m)^DATA[ \t]+(\w+)[ \t]*\r?\n", file.content[:_MAX_HEADER_BYTES])
    if end is None:
        raise file.fault("not a PCD file (a header that ends with DATA expected)")
    header = _parse_header(file.content[: end.start()].decode("latin-1"), end[1].decode("latin-1"), file)
    body = bytes(file.content[end.end() :])
    readers = {"ascii": _read_ascii, "binary": _read_binary, "binary_compressed": _read_compressed}
    if header.encoding not in readers:
        known = ", ".join(readers)
        raise file.fault(f"DATA {printable(header.encoding)[:30]} is unknown; save it as one of {known}")
    fields, trailing, note = readers[header.encoding](body, header, file)
    notes = [f"{trailing} after the last point are left out"] if trailing else []
    return Columns(fields, f"PCD {header.encoding}", (*notes, *note), header.viewpoint)


_Read = tuple[dict[str, np.ndarray], str, list[str]]  # fields; what follows the points, if anything; notes


def _parse_header(text: str, encoding: str, file: CloudFile) -> _Header:
    entries = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip() and line[0] != "#"}
    fields = entries.get("FIELDS", [])
    columns = [fields, entries.get("SIZE", []), entries.get("TYPE", []), entries.get("COUNT", ["1"] * len(fields))]
    try:
        if len(fields) > 256 or not all(0 < int(count) <= 4096 for count in columns[3]):
            raise ValueError("too many fields, or a count out of range")
        described = []
        for index, (label, size, kind, count) in enumerate(zip(*columns, strict=True)):
            shape = (int(count),) if int(count) != 1 else ()
            described.append((f"{label} {index}" if label == _UNUSED else label, f"<{_TYPES[kind]}{int(size)}", shape))
        dtype = np.dtype(described)
        (points,) = (int(value) for value in entries["POINTS"])
        viewpoint = tuple(float(value) for value in entries.get("VIEWPOINT", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise file.fault("damaged PCD header; FIELDS, SIZE, TYPE, COUNT and POINTS expected") from error
    if len(viewpoint) not in (0, 7):
        raise file.fault(f"damaged PCD header: VIEWPOINT of {len(viewpoint)} numbers, 7 expected")
    if not dtype.itemsize or not 0 <= points <= _MAX_POINTS:
        raise file.fault(f"the PCD header claims {points} points of {dtype.itemsize} bytes")
    return _Header(dtype, points, encoding, viewpoint or None)


def _read_ascii(body: bytes, header: _Header, file: CloudFile) -> _Read:
    lines = [line for line in body.splitlines() if line.strip()]
    if len(lines) < header.points:
        raise file.fault(f"truncated: {len(lines)} lines of points found, {header.points} expected; write it again")
    values, column = read_numbers(lines[: header.points], file), 0
    fields: dict[str, np.ndarray] = {}
    width = sum(header.dtype[name].shape[0] if header.dtype[name].shape else 1 for name in header.dtype.names or ())
    if header.points and values.shape[1] != width:
        found = f"{values.shape[1]} numbers per point found"
        raise file.fault(f"{found}, {width} expected; write the file again")
    for name in header.dtype.names or ():
        shape = header.dtype[name].shape
        if not shape:
            fields[name] = values[:, column] if header.points else np.empty(0)
        column += shape[0] if shape else 1
    more = len(lines) - header.points
    return fields, f"{more:,} lines" if more else "", []


def _read_binary(body: bytes, header: _Header, file: CloudFile) -> _Read:
    expected = header.points * header.dtype.itemsize
    if len(body) < expected:
        fault = f"truncated: {len(body)} bytes after the header found, {expected} expected"
        raise file.fault(f"{fault}; write it again")
    rows = np.frombuffer(body, header.dtype, header.points)
    more = len(body) - expected
    return {name: rows[name] for name in header.dtype.names or ()}, f"{more:,} bytes" if more else "", []


def _read_compressed(body: bytes, header: _Header, file: CloudFile) -> _Read:
    """All values of the first field, then those of the second: compressed, or as they are where that is smaller."""
    sizes = np.frombuffer(body[:8], "<u4") if len(body) >= 8 else np.zeros(2, "<u4")
    packed, expanded = int(sizes[0]), int(sizes[1])
    whole = header.points * header.dtype.itemsize
    stored = header.dtype.names or () if expanded == whole else header.used  # pypcd4 stores the padding, too
    itemsize = sum(header.dtype[name].itemsize for name in stored)
    if expanded != header.points * itemsize:
        if len(body) == whole != packed + 8:
            fields, trailing, _ = _read_binary(body, header, file)
            return fields, trailing, ["labelled binary_compressed, but binary; it is read as that"]
        found = f"{header.points} points of {itemsize} bytes, and {expanded} bytes when decompressed"
        raise file.fault(f"the PCD header claims {found}; write it again")
    data, more = body[8 : 8 + packed], len(body) - 8 - packed
    if more < 0:
        raise file.fault(f"truncated: {len(data)} compressed bytes found, {packed} expected; write it again")
    content, notes = expand_lzf(data, expanded), list[str]()
    if content is None or len(content) != expanded:
        if packed != expanded:
            raise file.fault("damaged compressed points; write the file again")
        content, notes = data, ["labelled binary_compressed, but not compressed; it is read as that"]
    fields, start = {}, 0
    for name in stored:
        fields[name] = np.frombuffer(content, header.dtype[name], header.points, start)
        start += header.points * header.dtype[name].itemsize
    return fields, f"{more:,} bytes" if more else "", notes


def expand_lzf(packed: bytes, size: int) -> bytes | None:
    """Decompress LZF; None if the data are damaged or longer than `size`.

    A byte below 32 is followed by that many bytes and one more. Others begin a copy of what was written before: three
    bits of length less 2 (7: the next byte is added), thirteen bits of distance less 1.
    """
    out, at = bytearray(), 0
    try:
        while at < len(packed) and len(out) <= size:
            control = packed[at]
            at += 1
            if control < 32:
                at += control + 1
                out += packed[at - control - 1 : at]
                continue
            length = control >> 5
            if length == 7:
                length += packed[at]
                at += 1
            distance, length = ((control & 31) << 8 | packed[at]) + 1, length + 2
            at += 1
            if distance > len(out):
                return None
            start = len(out) - distance
            copied = out[start : start + length]
            out += copied if distance >= length else (copied * (length // distance + 1))[:length]
    except IndexError:
        return None
    return bytes(out) if at == len(packed) and len(out) <= size else None
