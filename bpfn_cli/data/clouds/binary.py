# SPDX-License-Identifier: MIT
"""Clouds in `.bin`: floats without a header. Their type and number of columns are found from their statistics.

Values of one column are alike, and those of other columns differ. So the mutual information between a value and its
index modulo C is largest if C is the number of columns, or a multiple of it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from bpfn_cli.data.clouds.cloud import CloudFile, Columns, unnamed
from bpfn_cli.errors import DataError

NUSCENES_COLUMNS = 5  # x, y, z, intensity, ring
_TYPES = {"<f4": "float32", "<f8": "float64", ">f4": "big-endian float32", ">f8": "big-endian float64"}
_MOST_COLUMNS = 16
_OFFERED = range(3, 9)  # as candidates, if the statistics do not decide
_MOST_VALUES = 1 << 18  # looked at
_LARGEST_SIZE = 33 * 4 + 4  # in `_bins`
_USUAL = (1e-7, 1e12)  # magnitude of values other than 0; bytes of another type are often beyond it
_LEAST_USUAL = 0.85  # share of them; float64 that was float32 before has about 70 % when it is read as float32
_SAME_SHARE = 0.02
_FARTHEST_M, _LEAST_NEAR = 1e7, 0.99  # coordinates, of maps too
_SURE, _POSSIBLE = 0.75, 0.6  # of the largest information; fewer columns have up to 55 % of it, the right ones 97 %
_LEAST_INFORMATION = 0.05  # nats
_UNLIKE = 3  # times larger
_CORRELATED = 0.5
_any_bits = functools.partial(np.errstate, invalid="ignore", over="ignore")  # for values that may be no floats


def read_nuscenes(file: CloudFile) -> Columns:
    """`.pcd.bin` of nuScenes: five columns of float32. Raises: DataError: as `read_binary`, or of another number."""
    if file.columns:
        return read_binary(file)
    statistics = _statistics_of(file)
    if statistics.columns not in (None, NUSCENES_COLUMNS):
        fault = f"{statistics.columns} columns by their statistics, but nuScenes has 5"
        raise file.fault(f"{fault}; give their number with --columns")
    read = _rows(replace(file, columns=NUSCENES_COLUMNS), statistics)
    return replace(read, holds=f"{read.holds}, as nuScenes has them")


def read_binary(file: CloudFile) -> Columns:
    """Rows of `file.columns` floats, or of as many as their statistics tell.

    Raises: DataError: not floats, a size that is not whole rows, a number of columns that is not clear, or one that
        gives no coordinates.
    """
    return _rows(file, _statistics_of(file))


@dataclass(frozen=True)
class _Statistics:
    """What the values of a file tell. kind: a key of `_TYPES`. columns: None: they do not tell."""

    kind: str
    values: np.ndarray
    columns: int | None


def _statistics_of(file: CloudFile) -> _Statistics:
    kind = _kind_of(file)
    values = np.frombuffer(file.content, kind, len(file.content) // np.dtype(kind).itemsize)
    return _Statistics(kind, values, _count_columns(values))


def _rows(file: CloudFile, statistics: _Statistics) -> Columns:
    """Raises: as `read_binary`."""
    kind, values, found = statistics.kind, statistics.values, statistics.columns
    columns, size = file.columns or found, values.itemsize
    if columns is None:
        raise _undecided(values, file, kind)
    if len(file.content) % (columns * size):
        expected = f"a multiple of {columns * size} expected ({columns} columns of {_TYPES[kind]})"
        raise file.fault(f"{len(file.content):,} bytes found, {expected}; truncated, or give the right --columns")
    with _any_bits():
        rows = values.reshape(-1, columns).astype(np.dtype(kind).newbyteorder("="))
        near = np.abs(rows[:, :3]) < _FARTHEST_M
    if (near | ~np.isfinite(rows[:, :3])).mean() < _LEAST_NEAR:
        advice = "write x, y, z, intensity as little-endian float32"
        raise file.fault(f"{columns} columns of {_TYPES[kind]} that do not begin with coordinates; {advice}")
    how = "" if file.columns else ", by their statistics (--columns sets another number)"
    notes = [f"{found} columns by their statistics, but read as {columns}"] if found not in (None, columns) else []
    return unnamed(rows, file, f"{columns} columns of {_TYPES[kind]}{how}", notes)


def _kind_of(file: CloudFile) -> str:
    """The type of the values, a key of `_TYPES`."""
    if not file.content:
        raise file.fault("empty, at least one row expected")
    shares = {kind: _usual_share(_first_values(file.content, kind)) for kind in _TYPES}
    best = max(shares.values())
    if best < _LEAST_USUAL:
        raise file.fault("not float32 or float64 in any byte order; write x, y, z, intensity as little-endian float32")
    kinds = [kind for kind, share in shares.items() if share >= best - _SAME_SHARE]
    # Doubles with few digits are also valid floats, every second of them 0.
    for single, double, low in (("<f4", "<f8", 0), (">f4", ">f8", 1)):
        halves = _first_values(file.content, single)
        if kinds[0] == single and double in kinds and len(halves) > 1:
            with _any_bits():
                if (halves[low::2] == 0).all():
                    return double
    return kinds[0]


def _first_values(content: bytearray, kind: str) -> np.ndarray:
    return np.frombuffer(content, kind, min(len(content) // np.dtype(kind).itemsize, _MOST_VALUES))


def _usual_share(values: np.ndarray) -> float:
    """The share of the values other than 0 that are NaN, infinite or of a usual magnitude."""
    with _any_bits():
        size = np.abs(values[values != 0])
        usual = ~np.isfinite(size) | ((size > _USUAL[0]) & (size < _USUAL[1]))
    return float(usual.mean()) if len(usual) else 0.0


def _count_columns(values: np.ndarray) -> int | None:
    """The number of columns; None: the statistics do not tell."""
    values = values[:_MOST_VALUES]
    index = np.flatnonzero(_not_in_empty_rows(values))
    bins = _bins(values[index])
    known = {columns: _information(bins, index % columns, columns) for columns in range(3, _MOST_COLUMNS + 1)}
    largest = max(known.values())
    possible = [columns for columns, information in known.items() if information >= _POSSIBLE * largest]
    if largest == 0 or known[found := possible[0]] < _SURE * largest:
        return None
    if found % 2 == 0 and found >= 6 and _are_alike(*_alternate_rows(values, found // 2)):
        return None  # perhaps half as many, and every second row is of another scanner
    if 2 * found in _OFFERED and _are_unlike(*_alternate_rows(values, found)):
        return None  # perhaps twice as many, and every second row is colors, or the same point in another cloud
    return found


def _alternate_rows(values: np.ndarray, columns: int) -> np.ndarray:
    """(2, N, 3): the coordinates of the rows 0, 2, 4, ..., and of the rows 1, 3, 5, ..."""
    used = values[: len(values) // (2 * columns) * 2 * columns].astype(np.float64)
    with _any_bits():
        used = np.nan_to_num(used, nan=0, posinf=0, neginf=0).clip(-_FARTHEST_M, _FARTHEST_M)
    return np.moveaxis(used.reshape(-1, 2, columns)[..., :3], 1, 0)


def _are_unlike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether one kind is much larger, or a row is much nearer to the one before than to the next one."""
    pairs = [(np.abs(first), np.abs(second)), (np.abs(second - first), np.abs(second[:-1] - first[1:]))]
    sizes = np.array([[one.mean(axis=0) for one in pair] for pair in pairs])
    return bool((sizes.max(axis=1) > _UNLIKE * sizes.min(axis=1)).any())


def _are_alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether both kinds are of one size, or two of their coordinates correlate, as of rays in one direction."""
    with np.errstate(invalid="ignore"):  # a column that is constant
        correlations = [np.corrcoef(one, other)[0, 1] for one, other in zip(first.T, second.T, strict=True)]
    return not _are_unlike(first, second) or sum(one > _CORRELATED for one in correlations) >= 2


def _undecided(values: np.ndarray, file: CloudFile, kind: str) -> DataError:
    rows = {columns: len(values) // columns for columns in _OFFERED if len(values) % columns == 0}
    found = ", ".join(f"{columns} ({count:,} points)" for columns, count in rows.items()) or "none that fits the size"
    advice = "give their number with --columns"
    return file.fault(f"{len(values):,} values of {_TYPES[kind]} in an unknown number of columns: {found}; {advice}")


def _bins(values: np.ndarray) -> np.ndarray:
    """Small numbers, equal for similar values: by sign, order of magnitude, and whether they are whole."""
    with _any_bits():
        value = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
        mantissa, exponent = np.frexp(np.abs(value))
        size = np.where(value == 0, 0, (exponent.clip(-12, 20) + 13) * 4 + (mantissa * 8 - 4).astype(int))
        # Rings and colors are whole numbers, coordinates are not.
        return (np.where(value < 0, -size, size) + _LARGEST_SIZE) * 2 + (value == np.rint(value))


def _information(bins: np.ndarray, column: np.ndarray, columns: int) -> float:
    """Mutual information in nats of the values in `bins` and their column; 0 if it may be chance."""
    if not len(bins):
        return 0.0
    table = np.bincount(bins * columns + column, minlength=(bins.max() + 1) * columns).reshape(-1, columns)
    share = table[table.any(axis=1)] / len(bins)
    expected = share.sum(axis=0) * share.sum(axis=1, keepdims=True)
    filled = share > 0
    information = float((share[filled] * np.log(share[filled] / expected[filled])).sum())
    # Twice the information of independent values, times their number, is distributed as chi-square.
    freedom = (len(share) - 1) * (columns - 1)
    chance = (freedom + 5 * np.sqrt(2 * freedom)) / (2 * len(bins))
    return information if information - chance > _LEAST_INFORMATION else 0.0


def _not_in_empty_rows(values: np.ndarray) -> np.ndarray:
    """Without runs of three zeros or more: rays without a return, whose places may be periodic."""
    with _any_bits():
        zero = values == 0
    run = zero[:-2] & zero[1:-1] & zero[2:]
    empty = np.zeros(len(values), bool)
    for start in range(3):
        empty[start : len(values) - 2 + start] |= run
    return ~empty
