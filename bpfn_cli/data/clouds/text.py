# SPDX-License-Identifier: MIT
"""Clouds in text files: `.xyz`, `.txt`, `.csv`; one point a line, with or without a line of column names."""

import re
import warnings
from collections.abc import Sequence

import numpy as np

from bpfn_cli.data.clouds.cloud import CloudFile, Columns, unnamed
from bpfn_cli.errors import printable

_COMMENT = re.compile(rb"[ \t]*(#|//|$)")
_SEPARATORS = (";", ",", "\t", None)  # None: blanks
_MOST_HEADER_LINES = 64
_UNIT = re.compile(r"\s*[(\[]\s*(.*?)\s*[)\]]$")  # behind the name of a column
_METRES = ("", "m", "meter", "meters", "metre", "metres")


def read_text(file: CloudFile) -> Columns:
    """Numbers separated by commas, semicolons, tabs or blanks; x, y and z by name, or the first three columns.

    Raises: DataError: a line that is not numbers, lines of different lengths, or coordinates in another unit.
    """
    lines = [line.strip() for line in bytes(file.content).splitlines() if not _COMMENT.match(line)]
    if not lines:
        raise file.fault("empty, at least one line of numbers expected")
    separator = _separator_of(lines[0], lines[-1])
    if separator == ";" and b"," in lines[-1]:
        raise file.fault("numbers with decimal commas; write decimal points")
    header = _words(lines[0], separator)
    if all(map(_is_number, header)):
        header = _commented_header(file.content, separator, len(header))
    else:
        lines = lines[1:]
    names = _names(header)
    _refuse_units(header, names, file)
    if separator:  # an empty field is how tables write NaN
        lines = [_without_gaps(line, separator.encode()) for line in lines]
    rows = read_numbers(lines, file, separator)
    if not names:
        return unnamed(rows, file)
    if len(names) != rows.shape[1]:
        raise file.fault(f"{len(names)} column names and {rows.shape[1]} numbers in a line; write it again")
    if len(set(names)) != len(names):
        raise file.fault("two columns of one name; write it again")
    return Columns(dict(zip(names, rows.T, strict=True)), f"{len(names)} named columns" if len(names) > 3 else "")


def looks_like_cloud(content: bytes) -> bool:
    """Whether text begins as a cloud: with a line of three or more numbers, perhaps after one that names x, y and z."""
    lines = [line for line in content.splitlines()[:_MOST_HEADER_LINES] if not _COMMENT.match(line)]
    named = bool(lines) and len(_axes(_words(lines[0], _separator_of(lines[0])))) == 3
    numbers = lines[named : named + 1]
    if not numbers:
        return False
    words = _words(numbers[0], _separator_of(numbers[0]))
    return len(words) >= 3 and all(map(_is_number, words))


def read_numbers(lines: Sequence[bytes], file: CloudFile, separator: str | None = None) -> np.ndarray:
    """(lines, numbers in a line) float64. Raises: DataError: not numbers, or lines of different lengths."""
    if not lines:
        return np.empty((0, 3))
    try:
        if not all(line.strip() for line in lines):
            raise ValueError("empty line")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = np.loadtxt(lines, dtype=np.float64, comments=None, ndmin=2, delimiter=separator)
    except (ValueError, Warning) as error:
        raise file.fault(_first_fault(lines, separator)) from error
    if len(values) != len(lines):
        raise file.fault(f"{len(values):,} points in {len(lines):,} lines; one a line expected")
    return values


def _first_fault(lines: Sequence[bytes], separator: str | None) -> str:
    """Which line does not consist of as many numbers as the first one that is not empty."""
    count = next((len(_words(line, separator)) for line in lines if line.strip()), 0)
    for number, words in enumerate((_words(line, separator) for line in lines), start=1):
        if len(words) != count or not all(map(_is_number, words)):
            found = printable(lines[number - 1].decode("latin-1"))[:60]
            return f"point {number:,} is '{found}'; {count} numbers in each line expected; write it again"
    return "a point does not consist of numbers only; write the file again"


def _without_gaps(line: bytes, separator: bytes) -> bytes:
    return separator.join(word if word.strip() else b"nan" for word in line.split(separator))


def _separator_of(*lines: bytes) -> str | None:
    return next(one for one in _SEPARATORS if one is None or all(one.encode() in line for line in lines))


def _words(line: bytes, separator: str | None) -> list[str]:
    """The words of a line, without quotes; a unit such as [m] belongs to the word before."""
    text = re.sub(r" +(?=[(\[])", "", line.strip().decode("utf-8-sig", "replace"))
    return [printable(word.strip().strip("\"'").strip()) for word in text.split(separator)]


def _names(header: Sequence[str]) -> list[str]:
    """Column names without units."""
    return [_UNIT.sub("", word) for word in header]


def _axes(header: Sequence[str]) -> set[str]:
    """Those of x, y and z that a header names."""
    return {"x", "y", "z"} & {name.lower() for name in _names(header)}


def _refuse_units(header: Sequence[str], names: Sequence[str], file: CloudFile) -> None:
    """Raises: DataError: x, y or z in another unit than metres."""
    for word, name in zip(header, names, strict=True):
        unit = _UNIT.search(word)
        if unit and name.lower() in ("x", "y", "z") and unit[1].lower() not in _METRES:
            raise file.fault(f"coordinates in {unit[1]}; convert them to metres")


def _commented_header(content: bytearray, separator: str | None, count: int) -> list[str]:
    """The column names in the first comment, with units, if it has x, y and z and one name for each column."""
    first = bytes(content[:4096]).splitlines()[0] if content else b""
    for header in (_words(first.lstrip(b"#/; \t"), one) for one in {separator, None}):
        if len(header) == count and len(_axes(header)) == 3:
            return header
    return []


def _is_number(word: str) -> bool:
    """Whether a word is a number, or an empty field."""
    try:
        float(word or "nan")
    except ValueError:
        return False
    return True
