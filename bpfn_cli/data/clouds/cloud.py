# SPDX-License-Identifier: MIT
"""What every reader of clouds takes and returns: a file, its columns by name, and the cloud they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bpfn_cli.errors import DataError, printable

# Names of x, y and z in files that name their columns, in any case.
_AXES = (
    ("x", "y", "z"),
    ("points:0", "points:1", "points:2"),  # ParaView
    ("points_m_xyz:0", "points_m_xyz:1", "points_m_xyz:2"),  # VeloView
)
_FEWEST_INDICES = 16  # rows from which a first column 0, 1, 2, ... is taken for row numbers

NOT_FINITE = "NaN or infinite"
AT_ORIGIN = "at (0, 0, 0)"  # what many drivers write where a ray had no return


@dataclass(frozen=True)
class CloudFile:
    """A file to read. name: printable path. content: not compressed. columns: of a file without a header, if known."""

    name: str
    content: bytearray
    columns: int | None = None

    def fault(self, text: str) -> DataError:
        """An error about this file."""
        return DataError(f"{self.name}: {text}")


@dataclass(frozen=True)
class Columns:
    """What a file holds, one row for each point.

    Attributes: by_name: each (N,). holds: such as "5 columns of float32". notes: what a user should know, one
        sentence each. viewpoint: of the sensor: translation, then rotation as a quaternion w, x, y, z.
    """

    by_name: Mapping[str, np.ndarray]
    holds: str = ""
    notes: tuple[str, ...] = ()
    viewpoint: tuple[float, ...] | None = None


def unnamed(array: np.ndarray, file: CloudFile, holds: str = "", notes: Sequence[str] = ()) -> Columns:
    """The columns of (N, 3 or more) numbers without names: x, y and z are the first three.

    Raises: DataError: fewer than three, a row number as first column, or an array of another shape, named for what it
        may be.
    """
    shape, notes = array.shape, list(notes)
    if array.dtype.kind not in "fiu":
        raise file.fault(f"{array.dtype} of shape {shape} found, floats of shape (N, 3) expected")
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or array.shape[1] < 3:
        raise file.fault(f"shape {shape} found, (N, 3) or more columns expected{_explain_shape(array.shape)}")
    if array.shape[0] <= 16 < array.shape[1]:
        raise file.fault(f"shape {shape} found, (N, 3) or more columns expected; transposed? save its transpose (.T)")
    first = array[:, 0]
    if len(first) >= _FEWEST_INDICES and first[0] in (0, 1) and np.array_equal(first, first[0] + np.arange(len(first))):
        raise file.fault("the first column numbers the rows; leave it out, or name the columns in a header")
    if array.shape != shape:
        notes.append(f"shape {shape} is read as {array.shape}")
    holds = holds or (f"the first 3 of {array.shape[1]} columns" if array.shape[1] > 3 else "")
    return Columns(dict(zip("xyz", array.T, strict=False)), holds, tuple(notes))


def _explain_shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 2 and shape[0] >= 3:
        return "; two columns are not a point in space"
    if len(shape) == 3 and shape[2] >= 3:
        return "; an image of points, or several clouds? save array.reshape(-1, 3), or each cloud in a file"
    if len(shape) == 3 and shape[1] >= 3:
        return "; several transposed clouds? save each in a file"
    return ""


@dataclass(frozen=True)
class Cloud:
    """A cloud with one row for each row of its source.

    Attributes:
        name: printable, of its source.
        points: (N, 3) metres, float32 or float64, axes of the source; 0 where not valid.
        valid: (N,) bool, False where the source has no point: NaN, infinity, or (0, 0, 0).
        left_out: why rows are not valid -> how many.
        holds, notes, viewpoint: as in `Columns`.
    """

    name: str
    points: np.ndarray
    valid: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)
    holds: str = ""
    notes: tuple[str, ...] = ()
    viewpoint: tuple[float, ...] | None = None

    @classmethod
    def of(cls, columns: Columns, name: str) -> Cloud:
        """The cloud of columns that are named x, y and z. Raises: DataError: no such columns, or no valid row."""
        axes, notes = [columns.by_name[axis] for axis in _axes_among(columns.by_name, name)], list(columns.notes)
        if any(axis.ndim != 1 or axis.dtype.kind not in "fiu" for axis in axes):
            raise DataError(f"{name}: x, y and z are not one number per point")
        single = all(axis.dtype.kind == "f" and axis.dtype.itemsize <= 4 for axis in axes)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            points = np.stack([axis.astype(np.float32 if single else np.float64) for axis in axes], axis=1)
        if any(axis.dtype == np.float16 for axis in axes):
            largest = np.abs(points[np.isfinite(points)]).max(initial=0)
            notes.append(f"float16: coordinates have steps of up to {np.spacing(np.float16(largest)):.2g} m")
        return cls.of_points(points, name, columns.holds, tuple(notes), columns.viewpoint)

    @classmethod
    def of_points(
        cls,
        points: np.ndarray,
        name: str,
        holds: str = "",
        notes: tuple[str, ...] = (),
        viewpoint: tuple[float, ...] | None = None,
    ) -> Cloud:
        """The cloud of (N, 3) floats, which are changed. Raises: DataError: no valid row."""
        if not len(points):
            raise DataError(f"{name}: empty, at least one row expected")
        finite = np.isfinite(points).all(axis=1)
        points[~finite] = 0
        valid = np.asarray(points.any(axis=1))
        counts = {NOT_FINITE: int((~finite).sum()), AT_ORIGIN: int((finite & ~valid).sum())}
        left_out = {reason: count for reason, count in counts.items() if count}
        if not valid.any():
            found = " and ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            raise DataError(f"{name}: no row is a point: {found} of {len(points):,} rows; check how it was written")
        return cls(name, points, valid, left_out, holds, notes, viewpoint)


def _axes_among(names: Mapping[str, np.ndarray], name: str) -> tuple[str, ...]:
    """The names of x, y and z: as written, or in other case."""
    lower = {one.lower(): one for one in names}
    for axes in _AXES:
        if all(axis in names for axis in axes):
            return axes
        if all(axis in lower for axis in axes):
            return tuple(lower[axis] for axis in axes)
    found = printable(", ".join(names))[:200] or "nothing"
    raise DataError(f"{name}: points without x, y and z; they have {found}")
