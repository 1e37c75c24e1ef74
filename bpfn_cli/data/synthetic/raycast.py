# SPDX-License-Identifier: MIT
"""Two-frame ray casting of rigid convex solids with NumPy: depth, motion and visibility, all exact.

Every solid (half-space, box, ellipsoid, elliptic cylinder) is an affine image of a unit shape. A ray
`t * (sx, sy, 1)` with slopes sx = x/z, sy = y/z meets it in one interval of depths t. The affine map keeps the
interval, so intersections are computed in unit coordinates and give the depth directly. Only the rays inside the
bounds of its image are tested.

Camera frames: x left, y up, z forward. All arithmetic is float64, element by element: BLAS and `einsum` round
differently per machine.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Triple = tuple[float, float, float]

IDENTITY = np.eye(3)
CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))  # of the unit cube
X_AXIS, Y_AXIS, Z_AXIS = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
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
    """A convex solid in the frame of its object: an image of a unit shape.

    Shapes: "box" (max |x_i| <= 1), "ellipsoid" (|x| <= 1), "cylinder" (x^2 + z^2 <= 1, |y| <= 1), "halfspace" (y <= 0).
    """

    kind: str
    half: Triple  # extents, metres
    center: Triple
    turn: np.ndarray  # (3, 3) rotation from unit axes to the object's axes


class Pose(NamedTuple):
    """`outer = rotation @ inner + shift`; (3, 3) and (3,), metres."""

    rotation: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Stage:
    """A scene before rendering. Object 0 is the background: it moves only with the camera."""

    solids: Sequence[Solid]
    owners: Sequence[int]  # the object of each solid
    poses1: Sequence[Pose]  # of each object, to the camera in frame 1
    poses2: Sequence[Pose]  # and in frame 2


@dataclass(frozen=True)
class RenderedPair:
    """Everything frame 1 sees, hidden in frame 2 or not: N pixels that hit something, in row-major order."""

    pixels: np.ndarray  # (N,) flat index v * width + u of frame 1
    owners: np.ndarray  # (N,) object hit
    points1: np.ndarray  # (N, 3) float64 metres, camera frame 1
    points2: np.ndarray  # (N, 3) the same points of the same objects in camera frame 2
    visible: np.ndarray  # (N,) bool: inside image 2, within FAR, and the first hit of its exact ray there


class Body(NamedTuple):
    """A solid as one camera sees it."""

    kind: str
    owner: int
    inverse: list[list[float]]  # rows of the map from camera directions to unit coordinates
    eye: list[float]  # the camera in unit coordinates
    slopes: tuple[float, float, float, float] | None  # sx low, high, sy low, high of its image; None: it may fill all
    nearest: float  # smallest depth of its bounding box, metres


def rotation(axis: Triple, angle: float) -> np.ndarray:
    """(3, 3) rotation by `angle` radians about `axis`, any length but zero (Rodrigues)."""
    length = math.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
    x, y, z = axis[0] / length, axis[1] / length, axis[2] / length
    c, s = math.cos(angle), math.sin(angle)
    k = 1.0 - c
    return np.array(
        [
            [c + x * x * k, x * y * k - z * s, x * z * k + y * s],
            [x * y * k + z * s, c + y * y * k, y * z * k - x * s],
            [x * z * k - y * s, y * z * k + x * s, c + z * z * k],
        ]
    )


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product of (..., 3, 3) and (..., 3, 3)."""
    return a[..., :, 0:1] * b[..., 0:1, :] + a[..., :, 1:2] * b[..., 1:2, :] + a[..., :, 2:3] * b[..., 2:3, :]


def apply(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(..., 3, 3) matrices times (..., 3) vectors."""
    return a[..., 0] * x[..., 0:1] + a[..., 1] * x[..., 1:2] + a[..., 2] * x[..., 2:3]


def render_pair(stage: Stage, camera: Pinhole) -> RenderedPair:
    """Cast frame 1, move every hit to frame 2 with its object, and test whether it is hidden there."""
    depth, owner = cast_image(bodies_in_view(stage, stage.poses1), camera)
    pixels = np.flatnonzero(depth <= FAR)
    owners, z = owner.ravel()[pixels], depth.ravel()[pixels]
    rows, columns = np.divmod(pixels, camera.width)
    points1 = np.stack(((camera.cx - columns) / camera.focal * z, (camera.cy - rows) / camera.focal * z, z), axis=1)
    points2 = move_points(points1, owners, stage)
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


def cast_rays(bodies: Sequence[Body], sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First hits of the rays (sx, sy, 1), both (N,), `sx` ascending. Returns: (N,) depth, as `cast_image`; owner."""
    depth, owner = np.full(len(sx), np.inf), np.zeros(len(sx), np.int16)
    for body in bodies:
        low_x, high_x, low_y, high_y = body.slopes or (-math.inf, math.inf, -math.inf, math.inf)
        first, last = np.searchsorted(sx, (low_x, high_x))
        rows = np.arange(first, last)
        if body.slopes is not None:
            sy_here = sy[first:last]
            rows = rows[(sy_here >= low_y) & (sy_here <= high_y) & (depth[first:last] > body.nearest)]
        if len(rows):
            near, hit = _hits(body, sx[rows], sy[rows], depth[rows])
            rows = rows[hit]
            depth[rows], owner[rows] = near[hit], body.owner
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
            unit = inverse[i].tolist(), eyes[i].tolist()
            bodies.append(Body(solid.kind, int(owners[i]), *unit, image, float(nearest[i])))
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


def move_points(points: np.ndarray, owners: np.ndarray, stage: Stage) -> np.ndarray:
    """Move (N, 3) points from camera frame 1 to camera frame 2, each with its object."""
    (rotations1, shifts1), (rotations2, shifts2) = _stacked(stage.poses1), _stacked(stage.poses2)
    turns = product(rotations2, rotations1.transpose(0, 2, 1))
    shifts = shifts2 - apply(turns, shifts1)
    return apply(turns[owners], points) + shifts[owners]


def _stacked(poses: Sequence[Pose]) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (N, 3, 3) and shifts (N, 3)."""
    return np.stack([pose.rotation for pose in poses]), np.stack([pose.shift for pose in poses])


def _window(body: Body, camera: Pinhole) -> tuple[slice, slice]:
    """Rows and columns of the pixels that may see `body`."""
    low_x, high_x, low_y, high_y = body.slopes or (-math.inf, math.inf, -math.inf, math.inf)
    rows = _pixels_between(camera.cy - camera.focal * high_y, camera.cy - camera.focal * low_y, camera.height)
    return rows, _pixels_between(camera.cx - camera.focal * high_x, camera.cx - camera.focal * low_x, camera.width)


def _pixels_between(low: float, high: float, size: int) -> slice:
    first = math.ceil(min(max(low, 0.0), size))
    return slice(first, max(first, math.floor(min(max(high, -1.0), size - 1)) + 1))


def _hits(body: Body, sx: np.ndarray, sy: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth where each ray enters `body`; whether that is in front of the camera and before `limit`."""
    near, far = INTERVALS[body.kind](body, sx, sy)
    hit = (near > 0.0) & (near < limit)
    return near, hit if far is None else hit & (near <= far)


def _direction(body: Body, axis: int, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """One unit coordinate of direction (sx, sy, 1), never zero."""
    a, b, c = body.inverse[axis]
    return a * sx + (b * sy + c) + TINY


def _halfspace(body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, None]:
    return -body.eye[1] / _direction(body, 1, sx, sy), None


def _slab(body: Body, axis: int, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths where the rays enter and leave |coordinate| <= 1."""
    inverse = 1.0 / _direction(body, axis, sx, sy)
    middle, half = inverse * -body.eye[axis], np.abs(inverse)
    return middle - half, middle + half


def _box(body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    near, far = _slab(body, 0, sx, sy)
    for axis in (1, 2):
        low, high = _slab(body, axis, sx, sy)
        np.maximum(near, low, out=near)
        np.minimum(far, high, out=far)
    return near, far


def _round(axes: tuple[int, ...], body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _cylinder(body: Body, sx: np.ndarray, sy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    near, far = _round((0, 2), body, sx, sy)
    low, high = _slab(body, 1, sx, sy)
    return np.maximum(near, low), np.minimum(far, high)


INTERVALS: dict[str, Callable[[Body, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]]] = {
    "halfspace": _halfspace,
    "box": _box,
    "ellipsoid": partial(_round, (0, 1, 2)),
    "cylinder": _cylinder,
}
