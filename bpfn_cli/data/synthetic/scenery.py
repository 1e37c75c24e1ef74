# SPDX-License-Identifier: MIT
"""Draw scenes for `raycast`: rooms and streets with moving objects. Lengths are in metres, matrices are (3, 3).

World frame: x left, y up, z forward, the floor at y = 0, the camera of frame 1 above the origin.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bpfn_cli.data.synthetic import raycast
from bpfn_cli.data.synthetic.objects import FLYING, INDOORS, OUTDOORS, Dice, pole, solid, tree
from bpfn_cli.data.synthetic.raycast import X_AXIS, Y_AXIS, Z_AXIS, Pose, Solid, Stage, Triple, apply, product, rotation

FEWEST, MOST = 8, 20  # moving objects per scene
TRIES = 150  # objects drawn, whether they fit or not
CLOSEST = 3.0  # metres from the camera's plane to any object in frame 1


class Setting(NamedTuple):
    """The background of a scene."""

    solids: list[Solid]  # in the frame of the background
    turn: np.ndarray  # to the world
    offset: float  # of the background, to the left
    width: float  # free space for objects: x from -width/2 to width/2, in the frame of the background,
    depth: float  # z up to `depth`,
    ceiling: float  # y below it
    eye: float  # height of the camera
    things: tuple[Callable[[Dice], list[Solid]], ...]  # the objects found here


class Thing(NamedTuple):
    """An object."""

    solids: list[Solid]  # around its center
    radius: float  # of a sphere that bounds it
    place: Triple  # in the world
    flies: bool  # else it stands on the floor


def draw_stage(key: str) -> Stage:
    """Draw a room or a street with its objects and all motions. The result depends on `key` only."""
    dice = Dice(key)
    setting, placed = _draw_scene(dice)
    while len(placed) < FEWEST:
        setting, placed = _draw_scene(dice)
    camera1, camera2 = _draw_cameras(dice, setting)
    solids, owners = list(setting.solids), [0] * len(setting.solids)
    background = Pose(setting.turn, np.array([setting.offset, 0.0, 0.0]))
    before, after = [background], [background]
    for thing in placed:
        solids += thing.solids
        owners += [len(before)] * len(thing.solids)
        attitude = rotation(dice.heading() if thing.flies else Y_AXIS, dice.between(0.0, 2.0 * math.pi))
        before.append(Pose(attitude, np.array(thing.place)))
        after.append(_draw_motion(dice, before[-1], thing.flies))
    return Stage(solids, owners, seen_by(camera1, before), seen_by(camera2, after))


def seen_by(camera: Pose, poses: Sequence[Pose]) -> list[Pose]:
    """Turn poses to the world into poses to the frame of `camera`."""
    inverse = camera.rotation.T
    return [Pose(product(inverse, pose.rotation), apply(inverse, pose.shift - camera.shift)) for pose in poses]


def _draw_cameras(dice: Dice, setting: Setting) -> tuple[Pose, Pose]:
    """Camera to world in both frames: up to 0.8 m and 4 degrees apart."""
    down, roll = math.radians(dice.between(-1.0, 8.0)), math.radians(dice.between(-3.0, 3.0))
    first = Pose(product(rotation(X_AXIS, down), rotation(Z_AXIS, roll)), np.array([0.0, setting.eye, 0.0]))
    x, y, z = dice.heading()
    turn = rotation((0.5 * x, y, 0.3 * z), math.radians(4.0) * dice.between(0.1, 1.0))
    x, y, z = dice.heading()
    shift = np.array([0.7 * x, 0.3 * y, z]) * (0.8 * math.sqrt(dice.random()))
    return first, Pose(product(first.rotation, turn), first.shift + shift)


def _draw_motion(dice: Dice, pose: Pose, flies: bool) -> Pose:
    """The pose in frame 2, up to 2 m and 20 degrees away; what stands stays on the ground."""
    x, y, z = dice.heading()
    angle = math.radians(20.0) * dice.random()
    turn = rotation((x, y, z) if flies else Y_AXIS, angle if y > 0.0 else -angle)
    x, y, z = dice.heading()
    share = dice.random()
    length = 2.0 * share * math.sqrt(share)
    shift = np.array([x, y if flies else 0.0, z]) * length
    return Pose(product(turn, pose.rotation), pose.shift + shift)


def _draw_scene(dice: Dice) -> tuple[Setting, list[Thing]]:
    """A room or a street with the objects that found a free place in view."""
    setting = dice.pick((room, street))(dice)
    wanted = dice.whole(FEWEST, MOST)
    placed: list[Thing] = []
    for _ in range(TRIES):
        build = dice.pick(setting.things)
        flies = build in FLYING and dice.random() < 0.6
        solids, radius, stands_at = _centered(build(dice))
        thing = Thing(solids, radius, _draw_place(dice, setting, radius, None if flies else stands_at), flies)
        if _is_free(setting, placed, thing):
            placed.append(thing)
        if len(placed) == wanted:
            break
    return setting, placed


def _centered(solids: list[Solid]) -> tuple[list[Solid], float, float]:
    """Center solids that stand on y = 0. Returns: them, their bounding radius, the height of their center."""
    corners = np.concatenate([apply(s.turn, raycast.CORNERS * s.half) + s.center for s in solids])
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y, z = ((low + high) / 2).tolist()
    squares = (corners - (low + high) / 2) ** 2
    radius = math.sqrt(float((squares[:, 0] + squares[:, 1] + squares[:, 2]).max()))
    moved = [s._replace(center=(s.center[0] - x, s.center[1] - y, s.center[2] - z)) for s in solids]
    return moved, radius, y - float(low[1])


def _draw_place(dice: Dice, setting: Setting, radius: float, stands_at: float | None) -> Triple:
    """A place in view. stands_at: height of the center; None: it flies."""
    closest = CLOSEST + radius
    z = dice.log_between(closest, max(closest, min(32.0, 30.0 * radius)))
    x = z * dice.between(-0.44, 0.44)
    if stands_at is not None:
        return x, stands_at, z
    low, high = 0.7 * radius, setting.ceiling - 0.7 * radius
    return x, min(max(setting.eye + z * dice.between(-0.2, 0.2), low), max(low, high)), z


def _is_free(setting: Setting, placed: Sequence[Thing], thing: Thing) -> bool:
    x, _, z = apply(setting.turn.T, np.array(thing.place) - np.array([setting.offset, 0.0, 0.0]))
    margin = 0.6 * thing.radius
    if abs(x) > setting.width / 2 - margin or z > setting.depth - margin:
        return False
    return all(_distance(thing.place, p.place) > 0.85 * (thing.radius + p.radius) for p in placed)


def _distance(a: Triple, b: Triple) -> float:
    x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt(x * x + y * y + z * z)


def _wall(normal: Triple, point: Triple) -> Solid:
    """The half-space behind a wall; `normal` points to the side it is seen from."""
    x, y, z = normal
    turn = raycast.IDENTITY if y == 1.0 else rotation((z, 0.0, -x) if y == 0.0 else X_AXIS, math.acos(y))
    return Solid("halfspace", (1.0, 1.0, 1.0), point, turn)


def room(dice: Dice) -> Setting:
    depth = dice.between(10.0, 34.0)
    width, ceiling = depth * dice.between(0.55, 1.1), dice.between(3.0, 3.5 + depth / 10)
    side = width / 2
    solids = [
        _wall((0.0, 1.0, 0.0), (0.0, 0.0, 0.0)),
        _wall((0.0, -1.0, 0.0), (0.0, ceiling, 0.0)),
        _wall((1.0, 0.0, 0.0), (-side, 0.0, 0.0)),
        _wall((-1.0, 0.0, 0.0), (side, 0.0, 0.0)),
        _wall((0.0, 0.0, -1.0), (0.0, 0.0, depth)),
    ]
    solids += [_fixture(dice, side, depth, ceiling) for _ in range(dice.whole(3, 8))]
    turn, offset = rotation(Y_AXIS, math.radians(dice.between(-25.0, 25.0))), side * dice.between(-0.3, 0.3)
    return Setting(solids, turn, offset, width, depth, ceiling, dice.between(1.2, 2.0), INDOORS)


def _fixture(dice: Dice, side: float, depth: float, ceiling: float) -> Solid:
    """A cabinet, pillar or beam at a wall of a room."""
    size = dice.between(0.5, 3.0), dice.between(0.2, 1.0) * ceiling, dice.between(0.3, 1.2)
    base = dice.pick((0.0, 0.0, ceiling - size[1]))
    z = dice.between(5.0, depth)
    kind = dice.pick(("box", "box", "cylinder"))
    if dice.random() < 0.4:
        return solid(kind, size, (dice.between(-side, side), base, depth))
    return solid(kind, (size[2], size[1], size[0]), (dice.pick((-side, side)), base, z))


def street(dice: Dice) -> Setting:
    width = dice.between(10.0, 22.0)
    solids = [_wall((0.0, 1.0, 0.0), (0.0, 0.0, 0.0))]
    for side in (-1.0, 1.0):
        z = dice.between(2.0, 8.0)
        while z < raycast.FAR:
            solids.append(_building(dice, side, width, z))
            z += 2.0 * solids[-1].half[2] + dice.between(0.0, 3.0)
    if dice.random() < 0.7:
        end = dice.between(24.0, 36.0)
        solids.append(solid("box", (30.0, dice.between(4.0, 14.0), 4.0), (0.0, 0.0, end)))
    for _ in range(dice.whole(1, 5)):
        x = dice.pick((-1.0, 1.0)) * dice.between(0.3, 0.48) * width
        solids += dice.pick((tree, pole))(dice, (x, 0.0, dice.between(7.0, 30.0)))
    turn, offset = rotation(Y_AXIS, math.radians(dice.between(-12.0, 12.0))), width * dice.between(-0.2, 0.2)
    return Setting(solids, turn, offset, width, 33.0, 6.0, dice.between(1.4, 2.6), OUTDOORS)


def _building(dice: Dice, side: float, width: float, z: float) -> Solid:
    length, height, deep = dice.between(4.0, 14.0), dice.between(3.0, 15.0), 10.0
    x = side * (width / 2 + deep / 2 + dice.between(0.0, 2.0))
    return solid("box", (deep, height, length), (x, 0.0, z + length / 2))
