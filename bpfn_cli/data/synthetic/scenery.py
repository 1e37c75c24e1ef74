# SPDX-License-Identifier: MIT
"""Draw scenes for `raycast`: rooms and streets with moving objects. Lengths are in metres.

World frame: x left, y up, z forward, the floor at y = 0, the camera of frame 1 above the origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.dice import Dice
from bpfn_cli.data.synthetic.objects import FLYING
from bpfn_cli.data.synthetic.raycast import Pose, Solid, Stage
from bpfn_cli.data.synthetic.rotations import CORNERS, X_AXIS, Y_AXIS, Z_AXIS, Triple, apply, product, rotation
from bpfn_cli.data.synthetic.surroundings import Setting, room, street

FEWEST, MOST = 8, 20  # moving objects per scene
TRIES = 150  # objects drawn, whether they fit or not
CLOSEST = 3.0  # metres from the camera's plane to any object in frame 1


class Thing(NamedTuple):
    """An object to place: solids around its center, bounding radius, height of its center when it stands."""

    solids: list[Solid]
    radius: float
    stands_at: float


class Placed(NamedTuple):
    """An object at its place in the world, standing on the floor or flying."""

    thing: Thing
    place: Triple
    flies: bool


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
    for thing, place, flies in placed:
        solids += thing.solids
        owners += [len(before)] * len(thing.solids)
        pose = Pose(_draw_attitude(dice, flies), np.array(place))
        before.append(pose)
        after.append(_draw_motion(dice, pose, flies))
    seen1, seen2 = (
        [_seen_by(camera, pose) for pose in poses] for camera, poses in ((camera1, before), (camera2, after))
    )
    return Stage(solids, owners, seen1, seen2)


def _seen_by(camera: Pose, pose: Pose) -> Pose:
    """Turn a pose to the world into a pose to the frame of `camera`."""
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
    """The pose in frame 2, up to 2 m and 20 degrees away; what stands stays on the ground."""
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
    setting = dice.pick((room, street))(dice)
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
    """Center solids that stand on y = 0."""
    corners = np.concatenate([apply(s.turn, CORNERS * s.half) + s.center for s in solids])
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y, z = ((low + high) / 2).tolist()
    squares = (corners - (low + high) / 2) ** 2
    radius = math.sqrt(float((squares[:, 0] + squares[:, 1] + squares[:, 2]).max()))
    moved = [s._replace(center=(s.center[0] - x, s.center[1] - y, s.center[2] - z)) for s in solids]
    return Thing(moved, radius, y - float(low[1]))
