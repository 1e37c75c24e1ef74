# SPDX-License-Identifier: MIT
"""Two-frame ray casting of rigid convex solids with NumPy: depth, motion and visibility, all exact.

Every solid (half-space, box, ellipsoid, elliptic cylinder) is an affine image of a unit shape. A ray
`t * (sx, sy, 1)` with slopes sx = x/z, sy = y/z meets it in one interval of depths t. The affine map keeps the
interval, so intersections are computed in unit coordinates and give the depth directly. Only the rays inside the
bounds of its image are tested.

Camera frames: x left, y up, z forward. All arithmetic is element-wise float64 (see `rotations`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.rotations import CORNERS, Triple, apply, product

FULL_HEIGHT, FULL_FOCAL = 540, 1050.0  # FlyingThings3D, pixels
FAR = 40.0  # metres; beyond it is sky
SAME_SURFACE = 1e-6  # relative depth; a point is hidden by a hit that is nearer by more than this
TINY = 1e-300  # instead of a zero divisor: the quotient is huge, finite and has the right sign


class Pinhole(NamedTuple):
    """FlyingThings3D's camera at any resolution, in pixels: u = cx - focal x/z, v = cy - focal y/z."""

    width: int
    height: int
    focal: float
    cx: float
    cy: float


def pinhole(height: int) -> Pinhole:
    """The camera of an image `height` pixels high: 1050 px, (479.5, 269.5) at 540."""
    width = height * 16 // 9
    return Pinhole(width, height, FULL_FOCAL * height / FULL_HEIGHT, (width - 1) / 2, (height - 1) / 2)


class Solid(NamedTuple):
    """A convex solid in the frame of its object.

    Attributes:
        kind: "box" (max |x_i| <= 1), "ellipsoid" (|x| <= 1), "cylinder" (x^2 + z^2 <= 1, |y| <= 1) or
            "halfspace" (y <= 0), in unit coordinates.
        half, center: half extents and center, metres.
        turn: (3, 3) rotation from unit axes to the object's axes.
    """

    kind: str
    half: Triple
    center: Triple
    turn: np.ndarray


class Pose(NamedTuple):
    """`outer = rotation @ inner + shift`; (3, 3) and (3,), metres."""

    rotation: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Stage:
    """A scene before rendering. Object 0 is the background: it moves only with the camera.

    Attributes:
        solids: all solids; owners: the object of each.
        poses1, poses2: object frame to camera frame, in frame 1 and 2; one per object.
    """

    solids: Sequence[Solid]
    owners: Sequence[int]
    poses1: Sequence[Pose]
    poses2: Sequence[Pose]


@dataclass(frozen=True)
class RenderedPair:
    """Everything frame 1 sees, hidden in frame 2 or not: N pixels that hit something, in row-major order.

    Attributes:
        pixels: (N,) flat index v * width + u of frame 1.
        owners: (N,) object hit.
        points1: (N, 3) float64 metres, camera frame 1.
        points2: (N, 3) float64 metres, camera frame 2: the same point of the same object.
        visible: (N,) bool: inside image 2, within FAR, and the first hit of its exact ray there.
    """

    pixels: np.ndarray
    owners: np.ndarray
    points1: np.ndarray
    points2: np.ndarray
    visible: np.ndarray


class Body(NamedTuple):
    """A solid as one camera sees it.

    Attributes:
        inverse: rows of the map from camera directions to unit coordinates. eye: the camera in unit coordinates.
        slopes: bounds (sx low, sx high, sy low, sy high) of its image; None: it may fill the whole image.
        nearest: smallest depth of its bounding box, metres.
    """

    kind: str
    owner: int
    inverse: list[list[float]]
    eye: list[float]
    slopes: tuple[float, float, float, float] | None
    nearest: float


def render_pair(stage: Stage, camera: Pinhole) -> RenderedPair:
    """Cast frame 1, move every hit to frame 2 with its object, and test whether it is hidden there."""
    depth, owner = cast_image(bodies_in_view(stage, stage.poses1), camera)
    pixels = np.flatnonzero(depth <= FAR)
    owners, z = owner.ravel()[pixels], depth.ravel()[pixels]
    rows, columns = np.divmod(pixels, camera.width)
    points1 = np.stack(((camera.cx - columns) / camera.focal * z, (camera.cy - rows) / camera.focal * z, z), axis=1)
    points2 = _move(points1, owners, stage)
    return RenderedPair(pixels, owners, points1, points2, _visible(points2, stage, camera))


def cast_image(bodies: Sequence[Body], camera: Pinhole) -> tuple[np.ndarray, np.ndarray]:
    """First hit of every pixel's ray. Returns: (H, W) depth in metres, infinite without a hit; (H, W) owner."""
    sx = (camera.cx - np.arange(camera.width)) / camera.focal
    sy = ((camera.cy - np.arange(camera.height)) / camera.focal)[:, None]
    depth = np.full((camera.height, camera.width), np.inf)
    owner = np.zeros((camera.height, camera.width), np.int16)
    for body in bodies:
        window = _window(body, camera)
        near, hit = _hits(body, sx[window[1]], sy[window[0]], depth[window])
        np.copyto(depth[window], near, where=hit)
        np.copyto(owner[window], body.owner, where=hit)
    return depth, owner


def hidden(bodies: Sequence[Body], sx: np.ndarray, sy: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Whether ray (sx, sy, 1) hits a body before `depth`, metres. All arrays are (N,)."""
    limit = depth * (1.0 - SAME_SURFACE)
    result = np.zeros(len(depth), bool)
    for body in bodies:
        if body.slopes is None:
            result |= _hits(body, sx, sy, limit)[1]
            continue
        low_x, high_x, low_y, high_y = body.slopes
        rays = np.flatnonzero((sx >= low_x) & (sx <= high_x) & (sy >= low_y) & (sy <= high_y) & (limit > body.nearest))
        result[rays] |= _hits(body, sx[rays], sy[rays], limit[rays])[1]
    return result


def bodies_in_view(stage: Stage, poses: Sequence[Pose]) -> list[Body]:
    """Transform all solids into a camera frame and bound their images; those behind the camera are left out."""
    owners = np.array(stage.owners)
    rotations, shifts = (values[owners] for values in _stacked(poses))
    half = np.array([solid.half for solid in stage.solids])
    turns = product(rotations, np.stack([solid.turn for solid in stage.solids]))
    centers = apply(rotations, np.array([solid.center for solid in stage.solids])) + shifts
    inverse = turns.transpose(0, 2, 1) / half[:, :, None]
    eyes = -apply(inverse, centers)
    corners = centers[:, None] + apply(turns[:, None], CORNERS * half[:, None])
    nearest, farthest = corners[..., 2].min(axis=1), corners[..., 2].max(axis=1)
    slopes = corners[..., :2] / np.maximum(corners[..., 2:], TINY)
    low, high = slopes.min(axis=1) - 1e-9, slopes.max(axis=1) + 1e-9
    bodies = []
    for i, solid in enumerate(stage.solids):
        endless = solid.kind == "halfspace"
        if farthest[i] > 0.0 or endless:
            bounds = float(low[i, 0]), float(high[i, 0]), float(low[i, 1]), float(high[i, 1])
            image = bounds if nearest[i] > 0.0 and not endless else None
            owner, depth = int(owners[i]), float(nearest[i])
            bodies.append(Body(solid.kind, owner, inverse[i].tolist(), eyes[i].tolist(), image, depth))
    return bodies


def _visible(points: np.ndarray, stage: Stage, camera: Pinhole) -> np.ndarray:
    """Which points (N, 3) of frame 2 its camera sees."""
    x, y, z = points.T
    ahead = np.maximum(z, TINY)
    sx, sy = x / ahead, y / ahead
    u, v = camera.cx - camera.focal * sx, camera.cy - camera.focal * sy
    visible = (z > 0.0) & (z <= FAR)
    visible &= (u >= 0) & (u <= camera.width - 1) & (v >= 0) & (v <= camera.height - 1)
    rays = np.flatnonzero(visible)
    visible[rays] = ~hidden(bodies_in_view(stage, stage.poses2), sx[rays], sy[rays], z[rays])
    return visible


def _move(points: np.ndarray, owners: np.ndarray, stage: Stage) -> np.ndarray:
    """Move (N, 3) points from camera frame 1 to camera frame 2, each with its object."""
    (rotations1, shifts1), (rotations2, shifts2) = _stacked(stage.poses1), _stacked(stage.poses2)
    turns = product(rotations2, rotations1.transpose(0, 2, 1))
    shifts = shifts2 - apply(turns, shifts1)
    x, y, z = points.T
    moved = np.empty_like(points)
    for axis in range(3):
        row = turns[:, axis]
        moved[:, axis] = row[owners, 0] * x + row[owners, 1] * y + row[owners, 2] * z + shifts[owners, axis]
    return moved


def _stacked(poses: Sequence[Pose]) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (N, 3, 3) and shifts (N, 3)."""
    return np.stack([pose.rotation for pose in poses]), np.stack([pose.shift for pose in poses])


def _window(body: Body, camera: Pinhole) -> tuple[slice, slice]:
    """Rows and columns of the pixels that may see `body`."""
    if body.slopes is None:
        return slice(0, camera.height), slice(0, camera.width)
    low_x, high_x, low_y, high_y = body.slopes
    return (
        _pixels_between(camera.cy - camera.focal * high_y, camera.cy - camera.focal * low_y, camera.height),
        _pixels_between(camera.cx - camera.focal * high_x, camera.cx - camera.focal * low_x, camera.width),
    )


def _pixels_between(low: float, high: float, size: int) -> slice:
    first = math.ceil(min(max(low, 0.0), size))
    return slice(first, max(first, math.floor(min(max(high, -1.0), size - 1)) + 1))


def _hits(body: Body, sx: np.ndarray, sy: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth where each ray enters `body`; whether that is in front of the camera and before `limit`."""
    near, far = INTERVALS[body.kind](body, sx, sy)
    hit = near < limit
    hit &= near > 0.0
    if far is not None:
        hit &= near <= far
    return near, hit


def _direction(body: Body, axis: int, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """One unit coordinate of direction (sx, sy, 1), never zero."""
    a, b, c = body.inverse[axis]
    direction = a * sx + (b * sy + c)
    direction += TINY
    return direction


def _halfspace(body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, None]:
    return -body.eye[1] / _direction(body, 1, sx, sy), None


def _slab(body: Body, axis: int, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths where the rays enter and leave |coordinate| <= 1."""
    inverse = 1.0 / _direction(body, axis, sx, sy)
    middle = inverse * -body.eye[axis]
    np.abs(inverse, out=inverse)
    return middle - inverse, middle + inverse


def _box(body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    near, far = _slab(body, 0, sx, sy)
    for axis in (1, 2):
        low, high = _slab(body, axis, sx, sy)
        np.maximum(near, low, out=near)
        np.minimum(far, high, out=far)
    return near, far


def _round(body: Body, axes: tuple[int, ...], sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths where the rays enter and leave: sum over `axes` of coordinate^2 <= 1. NaN where they miss."""
    eye = [body.eye[axis] for axis in axes]
    directions = [_direction(body, axis, sx, sy) for axis in axes]
    slope, square = _dot(eye, directions), np.maximum(_dot(directions, directions), TINY)
    with np.errstate(invalid="ignore"):  # a negative discriminant is a miss; comparing NaN says so
        root = np.sqrt(slope * slope - square * (_dot(eye, eye) - 1.0))
    return (-slope - root) / square, (root - slope) / square


def _dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    """Scalar product from left to right; `sum` of floats rounds differently in some versions of Python."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = total + x * y
    return total


def _ellipsoid(body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _round(body, (0, 1, 2), sx, sy)


def _cylinder(body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    near, far = _round(body, (0, 2), sx, sy)
    low, high = _slab(body, 1, sx, sy)
    return np.maximum(near, low), np.minimum(far, high)


INTERVALS: dict[str, Callable[[Body, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]]] = {
    "halfspace": _halfspace,
    "box": _box,
    "ellipsoid": _ellipsoid,
    "cylinder": _cylinder,
}
