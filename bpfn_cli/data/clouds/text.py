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


def read_text(file: CloudFile) -> Columns:
    """Numbers separated by commas, semicolons, tabs or blanks; x, y and z by name, or the first three columns.

    Raises: DataError: a line that is not numbers, or lines of different lengths.
    """
    lines = [line.strip() for line in bytes(file.content).splitlines() if not _COMMENT.match(line)]
    if not lines:
        raise file.fault("empty, at least one line of numbers expected")
    separator = _separator_of(lines[0], lines[-1])
    if separator == ";" and b"," in lines[-1]:
        raise file.fault("numbers with decimal commas; write decimal points")
    names = _words(lines[0], separator)
    if all(map(_is_number, names)):
        names = _commented_names(file.content, separator, len(names))
    else:
        lines = lines[1:]
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
    named = bool(lines) and {"x", "y", "z"} <= {word.lower() for word in _words(lines[0], _separator_of(lines[0]))}
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
    """The words of a line, without quotes and units, such as [m]."""
    words = line.strip().decode("utf-8-sig", "replace").split(separator)
    return [printable(re.sub(r"\s*[(\[].*[)\]]$", "", word.strip().strip("\"'").strip())) for word in words]


def _commented_names(content: bytearray, separator: str | None, count: int) -> list[str]:
    """The column names in the first comment, if it has x, y and z and one name for each column."""
    first = bytes(content[:4096]).splitlines()[0] if content else b""
    for names in (_words(first.lstrip(b"#/; \t"), one) for one in {separator, None}):
        if len(names) == count and {"x", "y", "z"} <= {name.lower() for name in names}:
            return names
    return []


def _is_number(word: str) -> bool:
    """Whether a word is a number, or an empty field."""
    try:
        float(word or "nan")
    except ValueError:
        return False
    return True
