# SPDX-License-Identifier: MIT
"""Rooms and streets with moving objects, drawn from dice: what `raycast` renders. Lengths are in metres.

World frame: x left, y up, z forward, the floor at y = 0, the camera of frame 1 above the origin.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.raycast import (
    CORNERS,
    FAR,
    IDENTITY,
    X_AXIS,
    Y_AXIS,
    Z_AXIS,
    Pose,
    Solid,
    Stage,
    Triple,
    apply,
    product,
    rotation,
)

FEWEST, MOST = 8, 20  # moving objects a scene
TRIES = 150  # objects drawn, whether there is room for them or not
CLOSEST = 3.0  # metres from the camera's plane to any object in frame 1


class Dice(random.Random):
    """Draws that are functions of `random()` alone, whose sequence Python promises to keep."""

    def between(self, low: float, high: float) -> float:
        """Uniform."""
        return low + (high - low) * self.random()

    def log_between(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return low * math.exp(self.random() * math.log(high / low))

    def whole(self, low: int, high: int) -> int:
        """Uniform whole number, both ends included."""
        return low + int((high - low + 1) * self.random())

    def pick(self, options: Sequence[Any]) -> Any:
        """One of `options`."""
        return options[self.whole(0, len(options) - 1)]

    def heading(self) -> Triple:
        """Uniform direction, unit length."""
        y, angle = self.between(-1.0, 1.0), self.between(0.0, 2.0 * math.pi)
        level = math.sqrt(1.0 - y * y)
        return level * math.cos(angle), y, level * math.sin(angle)


class Thing(NamedTuple):
    """An object to be placed: solids around its center, bounding radius, center's height if it stands."""

    solids: list[Solid]
    radius: float
    stands_at: float


class Setting(NamedTuple):
    """What surrounds the objects.

    solids: the background's, in its own frame; turn: (3, 3), to the world; width, depth, ceiling: metres free
    for objects, from -width/2 to width/2 and to `depth` in the background's frame; things: what is found
    here; eye: height of the camera; offset: of the background, to the left.
    """

    solids: list[Solid]
    turn: np.ndarray
    offset: float
    width: float
    depth: float
    ceiling: float
    eye: float
    things: tuple[Callable[[Dice], list[Solid]], ...]


class Placed(NamedTuple):
    """A thing at its place in the world. It stands on the floor unless it flies."""

    thing: Thing
    place: Triple
    flies: bool


def draw_stage(key: str) -> Stage:
    """Draw a room or a street with its objects and all motions: a function of `key`."""
    dice = Dice(key)
    setting, placed = _draw_scene(dice)
    while len(placed) < FEWEST:
        setting, placed = _draw_scene(dice)
    camera1, camera2 = _draw_cameras(dice, setting)
    solids, owners = list(setting.solids), [0] * len(setting.solids)
    background = Pose(setting.turn, np.array([setting.offset, 0.0, 0.0]))
    before, after = [background], [background]
    for thing, place, flies in placed:
        solids += thing.solids
        owners += [len(before)] * len(thing.solids)
        pose = Pose(_draw_attitude(dice, flies), np.array(place))
        before.append(pose)
        after.append(_draw_motion(dice, pose, flies))
    return Stage(
        solids,
        owners,
        [_seen_by(camera1, pose) for pose in before],
        [_seen_by(camera2, pose) for pose in after],
    )


def _seen_by(camera: Pose, pose: Pose) -> Pose:
    """`pose` (to the world) as a pose to the frame of `camera` (its own pose to the world)."""
    inverse = camera.rotation.T
    return Pose(product(inverse, pose.rotation), apply(inverse, pose.shift - camera.shift))


def _draw_cameras(dice: Dice, setting: Setting) -> tuple[Pose, Pose]:
    """Camera to world in both frames: up to 0.8 m and 4 degrees apart."""
    down, roll = math.radians(dice.between(-1.0, 8.0)), math.radians(dice.between(-3.0, 3.0))
    first = Pose(product(rotation(X_AXIS, down), rotation(Z_AXIS, roll)), np.array([0.0, setting.eye, 0.0]))
    x, y, z = dice.heading()
    angle = math.radians(4.0) * dice.between(0.1, 1.0)
    turn = rotation((0.5 * x, y, 0.3 * z), angle)
    x, y, z = dice.heading()
    shift = np.array([0.7 * x, 0.3 * y, z]) * (0.8 * math.sqrt(dice.random()))
    return first, Pose(product(first.rotation, turn), first.shift + shift)


def _draw_attitude(dice: Dice, flies: bool) -> np.ndarray:
    return rotation(dice.heading() if flies else Y_AXIS, dice.between(0.0, 2.0 * math.pi))


def _draw_motion(dice: Dice, pose: Pose, flies: bool) -> Pose:
    """The pose of frame 2: up to 2 m and 20 degrees; what stands stays on the ground."""
    x, y, z = dice.heading()
    angle = math.radians(20.0) * dice.random()
    turn = rotation((x, y, z) if flies else Y_AXIS, angle if y > 0.0 else -angle)
    x, y, z = dice.heading()
    share = dice.random()
    length = 2.0 * share * math.sqrt(share)
    shift = np.array([x, y if flies else 0.0, z]) * length
    return Pose(product(turn, pose.rotation), pose.shift + shift)


def _draw_scene(dice: Dice) -> tuple[Setting, list[Placed]]:
    """A room or a street with the objects that found a free place in view."""
    setting = dice.pick((_room, _street))(dice)
    wanted = dice.whole(FEWEST, MOST)
    placed: list[Placed] = []
    for _ in range(TRIES):
        build = dice.pick(setting.things)
        flies = build in FLYING and dice.random() < 0.6
        thing = _thing(build(dice))
        place = _draw_place(dice, setting, thing, flies)
        if _is_free(setting, placed, thing, place):
            placed.append(Placed(thing, place, flies))
        if len(placed) == wanted:
            break
    return setting, placed


def _draw_place(dice: Dice, setting: Setting, thing: Thing, flies: bool) -> Triple:
    closest = CLOSEST + thing.radius
    z = dice.log_between(closest, max(closest, min(32.0, 30.0 * thing.radius)))
    x = z * dice.between(-0.44, 0.44)
    if not flies:
        return x, thing.stands_at, z
    low, high = 0.7 * thing.radius, setting.ceiling - 0.7 * thing.radius
    return x, min(max(setting.eye + z * dice.between(-0.2, 0.2), low), max(low, high)), z


def _is_free(setting: Setting, placed: Sequence[Placed], thing: Thing, place: Triple) -> bool:
    x, _, z = apply(setting.turn.T, np.array(place) - np.array([setting.offset, 0.0, 0.0]))
    room = 0.6 * thing.radius
    if abs(x) > setting.width / 2 - room or z > setting.depth - room:
        return False
    return all(_distance(place, p.place) > 0.85 * (thing.radius + p.thing.radius) for p in placed)


def _distance(a: Triple, b: Triple) -> float:
    x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt(x * x + y * y + z * z)


def _thing(solids: list[Solid]) -> Thing:
    """Center solids that were built standing on y = 0."""
    corners = np.concatenate([apply(s.turn, CORNERS * s.half) + s.center for s in solids])
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y, z = ((low + high) / 2).tolist()
    squares = (corners - (low + high) / 2) ** 2
    radius = math.sqrt(float((squares[:, 0] + squares[:, 1] + squares[:, 2]).max()))
    moved = [s._replace(center=(s.center[0] - x, s.center[1] - y, s.center[2] - z)) for s in solids]
    return Thing(moved, radius, y - float(low[1]))


def _solid(kind: str, size: Triple, base: Triple, turn: np.ndarray = IDENTITY) -> Solid:
    """A solid of `size` (full extents) whose lowest point, before `turn`, is the middle of its base."""
    half = (size[0] / 2, size[1] / 2, size[2] / 2)
    return Solid(kind, half, (base[0], base[1] + half[1], base[2]), turn)


# Surroundings


def _wall(normal: Triple, point: Triple) -> Solid:
    """The half-space behind a wall that is seen from the side `normal` points to."""
    x, y, z = normal
    turn = IDENTITY if y == 1.0 else rotation((z, 0.0, -x) if y == 0.0 else X_AXIS, math.acos(y))
    return Solid("halfspace", (1.0, 1.0, 1.0), point, turn)


def _room(dice: Dice) -> Setting:
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
    for _ in range(dice.whole(3, 8)):
        solids.append(_fixture(dice, side, depth, ceiling))
    return Setting(
        solids,
        rotation(Y_AXIS, math.radians(dice.between(-25.0, 25.0))),
        side * dice.between(-0.3, 0.3),
        width,
        depth,
        ceiling,
        dice.between(1.2, 2.0),
        (*FURNITURE, *FURNITURE, _crate, _drum, _ball, _gadget, _figure),
    )


def _fixture(dice: Dice, side: float, depth: float, ceiling: float) -> Solid:
    """A cabinet, pillar or beam at a wall of a room."""
    size = dice.between(0.5, 3.0), dice.between(0.2, 1.0) * ceiling, dice.between(0.3, 1.2)
    base = dice.pick((0.0, 0.0, ceiling - size[1]))
    z = dice.between(5.0, depth)
    kind = dice.pick(("box", "box", "cylinder"))
    if dice.random() < 0.4:
        return _solid(kind, size, (dice.between(-side, side), base, depth))
    return _solid(kind, (size[2], size[1], size[0]), (dice.pick((-side, side)), base, z))


def _street(dice: Dice) -> Setting:
    width = dice.between(10.0, 22.0)
    solids = [_wall((0.0, 1.0, 0.0), (0.0, 0.0, 0.0))]
    for side in (-1.0, 1.0):
        z = dice.between(2.0, 8.0)
        while z < FAR:
            solids.append(_building(dice, side, width, z))
            z += 2.0 * solids[-1].half[2] + dice.between(0.0, 3.0)
    if dice.random() < 0.7:
        end = dice.between(24.0, 36.0)
        solids.append(_solid("box", (30.0, dice.between(4.0, 14.0), 4.0), (0.0, 0.0, end)))
    for _ in range(dice.whole(1, 5)):
        x = dice.pick((-1.0, 1.0)) * dice.between(0.3, 0.48) * width
        solids += dice.pick((_tree, _pole))(dice, (x, 0.0, dice.between(7.0, 30.0)))
    return Setting(
        solids,
        rotation(Y_AXIS, math.radians(dice.between(-12.0, 12.0))),
        width * dice.between(-0.2, 0.2),
        width,
        33.0,
        6.0,
        dice.between(1.4, 2.6),
        (_car, _car, _car, _van, _figure, _figure, _crate, _drum, _ball, _gadget, _gadget, _bench),
    )


def _building(dice: Dice, side: float, width: float, z: float) -> Solid:
    length, height, deep = dice.between(4.0, 14.0), dice.between(3.0, 15.0), 10.0
    x = side * (width / 2 + deep / 2 + dice.between(0.0, 2.0))
    return _solid("box", (deep, height, length), (x, 0.0, z + length / 2))


def _tree(dice: Dice, base: Triple) -> list[Solid]:
    trunk, crown = dice.between(1.5, 3.0), dice.between(1.5, 3.5)
    return [
        _solid("cylinder", (0.3, trunk + 0.5, 0.3), base),
        _solid("ellipsoid", (crown, dice.between(1.5, 3.5), crown), (base[0], trunk, base[2])),
    ]


def _pole(dice: Dice, base: Triple) -> list[Solid]:
    height = dice.between(3.0, 6.0)
    return [
        _solid("cylinder", (0.2, height, 0.2), base),
        _solid("box", (dice.between(0.3, 1.5), 0.25, 0.5), (base[0], height, base[2])),
    ]


# Objects, built standing on y = 0


def _crate(dice: Dice) -> list[Solid]:
    return [_solid("box", _draw_size(dice, 0.5, 3.5), (0.0, 0.0, 0.0))]


def _ball(dice: Dice) -> list[Solid]:
    return [_solid("ellipsoid", _draw_size(dice, 0.5, 3.0), (0.0, 0.0, 0.0))]


def _drum(dice: Dice) -> list[Solid]:
    return [_solid("cylinder", _draw_size(dice, 0.5, 3.0), (0.0, 0.0, 0.0))]


def _gadget(dice: Dice) -> list[Solid]:
    """Two to four simple solids that touch, at any angle."""
    scale = dice.log_between(0.6, 2.0)
    solids = []
    for _ in range(dice.whole(2, 4)):
        x, y, z = dice.heading()
        place = (0.4 * scale * x, 0.4 * scale * y, 0.4 * scale * z)
        turn = rotation(dice.heading(), dice.between(0.0, math.pi))
        kind = dice.pick(("box", "ellipsoid", "cylinder"))
        solids.append(_solid(kind, _draw_size(dice, 0.5 * scale, 1.2 * scale), place, turn))
    return solids


def _draw_size(dice: Dice, low: float, high: float) -> Triple:
    """Three extents of one magnitude."""
    size = dice.log_between(low, high)
    return size * dice.between(0.6, 1.0), size * dice.between(0.6, 1.0), size * dice.between(0.6, 1.0)


def _table(dice: Dice) -> list[Solid]:
    width, deep, height = dice.between(1.0, 2.6), dice.between(0.7, 1.4), dice.between(0.6, 1.1)
    kind, leg = dice.pick(("box", "cylinder")), dice.between(0.06, 0.14)
    return [
        _solid(dice.pick(("box", "box", "cylinder")), (width, 0.1, deep), (0.0, height, 0.0)),
        *_legs(kind, leg, height, 0.4 * width, 0.4 * deep),
    ]


def _legs(kind: str, thick: float, height: float, x: float, z: float) -> list[Solid]:
    return [_solid(kind, (thick, height, thick), (sx * x, 0.0, sz * z)) for sx in (-1, 1) for sz in (-1, 1)]


def _chair(dice: Dice) -> list[Solid]:
    width, seat, back = dice.between(0.5, 0.9), dice.between(0.4, 0.7), dice.between(0.5, 1.0)
    return [
        _solid("box", (width, 0.12, width), (0.0, seat, 0.0)),
        _solid("box", (width, back, 0.1), (0.0, seat, 0.45 * width)),
        *_legs("box", 0.08, seat, 0.43 * width, 0.43 * width),
    ]


def _sofa(dice: Dice) -> list[Solid]:
    width, deep, seat = dice.between(1.4, 3.0), dice.between(0.8, 1.2), dice.between(0.35, 0.55)
    arm = _solid("box", (0.25, seat + 0.3, deep), (0.5 * width, 0.0, 0.0))
    return [
        _solid("box", (width, seat, deep), (0.0, 0.0, 0.0)),
        _solid("box", (width, seat + dice.between(0.4, 0.7), 0.3), (0.0, 0.0, 0.5 * deep)),
        arm,
        arm._replace(center=(-arm.center[0], arm.center[1], arm.center[2])),
    ]


def _shelf(dice: Dice) -> list[Solid]:
    width, height, deep = dice.between(0.9, 2.4), dice.between(1.2, 2.8), dice.between(0.35, 0.6)
    boards = dice.whole(2, 4)
    sides = [_solid("box", (0.08, height, deep), (x * width / 2, 0.0, 0.0)) for x in (-1, 1)]
    gap = (height - 0.08) / (boards - 1)
    return sides + [_solid("box", (width, 0.08, deep), (0.0, i * gap, 0.0)) for i in range(boards)]


def _lamp(dice: Dice) -> list[Solid]:
    height, shade = dice.between(1.1, 2.0), dice.between(0.4, 0.9)
    return [
        _solid("cylinder", (0.5, 0.08, 0.5), (0.0, 0.0, 0.0)),
        _solid("cylinder", (0.08, height, 0.08), (0.0, 0.0, 0.0)),
        _solid(dice.pick(("cylinder", "ellipsoid")), (shade, 0.7 * shade, shade), (0.0, height, 0.0)),
    ]


def _bench(dice: Dice) -> list[Solid]:
    width = dice.between(1.4, 2.6)
    return [
        _solid("box", (width, 0.12, 0.6), (0.0, 0.45, 0.0)),
        _solid("box", (width, 0.6, 0.1), (0.0, 0.5, 0.3)),
        _solid("box", (0.12, 0.45, 0.5), (0.4 * width, 0.0, 0.0)),
        _solid("box", (0.12, 0.45, 0.5), (-0.4 * width, 0.0, 0.0)),
    ]


def _figure(dice: Dice) -> list[Solid]:
    """A person: legs, trunk, head."""
    height = dice.between(1.4, 2.0)
    leg = (0.1 * height, 0.5 * height, 0.1 * height)
    return [
        _solid("cylinder", leg, (0.07 * height, 0.0, 0.0)),
        _solid("cylinder", leg, (-0.07 * height, 0.0, 0.0)),
        _solid("ellipsoid", (0.3 * height, 0.42 * height, 0.2 * height), (0.0, 0.44 * height, 0.0)),
        _solid("ellipsoid", (0.13 * height, 0.16 * height, 0.14 * height), (0.0, 0.84 * height, 0.0)),
    ]


def _car(dice: Dice) -> list[Solid]:
    length, width, body = dice.between(3.4, 4.8), dice.between(1.6, 1.9), dice.between(0.55, 0.75)
    cabin = (0.85 * width, dice.between(0.5, 0.7), length * dice.between(0.4, 0.6))
    return [
        _solid("box", (width, body, length), (0.0, 0.25, 0.0)),
        _solid("box", cabin, (0.0, 0.25 + body, length * dice.between(-0.1, 0.1))),
        *_wheels(width, 0.32 * length, 0.65),
    ]


def _van(dice: Dice) -> list[Solid]:
    length, width, height = dice.between(4.2, 5.4), dice.between(1.8, 2.1), dice.between(1.4, 2.0)
    return [
        _solid("box", (width, height, 0.72 * length), (0.0, 0.35, -0.14 * length)),
        _solid("box", (width, 0.6 * height, 0.28 * length), (0.0, 0.35, 0.36 * length)),
        *_wheels(width, 0.32 * length, 0.8),
    ]


def _wheels(width: float, z: float, size: float) -> list[Solid]:
    turn = rotation(Z_AXIS, math.pi / 2)
    places = [(sx * 0.45 * width, sz * z) for sx in (-1, 1) for sz in (-1, 1)]
    return [Solid("cylinder", (size / 2, 0.13, size / 2), (x, size / 2, at), turn) for x, at in places]


FURNITURE = (_table, _chair, _sofa, _shelf, _lamp)
FLYING = (_crate, _ball, _drum, _gadget)
