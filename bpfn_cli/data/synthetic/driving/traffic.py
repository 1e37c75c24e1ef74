# SPDX-License-Identifier: MIT
"""Motion in driving scenes: of the camera's own car, and of other traffic. Lengths are in metres, speeds in metres a
frame of 0.1 s; poses are to the world of `road`."""

import math
from typing import NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.driving.road import Road
from bpfn_cli.data.synthetic.driving.vehicles import MOVERS, Mover, person
from bpfn_cli.data.synthetic.objects import Dice
from bpfn_cli.data.synthetic.raycast import X_AXIS, Y_AXIS, Z_AXIS, Pose, apply, product, rotation

EYE = 1.65  # height of the camera
AXLE = 1.7  # from the camera back to the rear axle
NEAREST, FARTHEST = 6.0, 33.0  # movers along the road


class Ego(NamedTuple):
    """The camera."""

    before: Pose
    after: Pose
    speed: float


class Placed(NamedTuple):
    """A mover and its motion."""

    mover: Mover
    before: Pose
    after: Pose
    is_dense: bool  # scanned more densely than the background


class Trip(NamedTuple):
    """Where traffic goes: distance from the middle of the road to the left, heading relative to it, and speed."""

    left: float
    heading_degrees: float
    speed: float


class Traffic(NamedTuple):
    """What all movers of a scene have in common."""

    road: Road
    ego: Ego
    lane: float  # of the camera, from the middle of the road to the left
    hand: float  # 1: traffic is on the right; -1: on the left
    is_wild: bool  # everything moves freely


def draw_ego(dice: Dice, road: Road, lane: float, is_wild: bool) -> Ego:
    """The camera on its lane, looking roughly along the road, and its motion."""
    across = dice.between(-45.0, 45.0) if dice.random() < 0.12 else 0.0
    tilt = _turned(0.0, math.radians(_bell(dice, 0.6)), math.radians(_bell(dice, 0.6)))
    heading = rotation(Y_AXIS, math.radians(_bell(dice, 2.5) + across))
    height = road.height(lane, 0.0) + EYE + _bell(dice, 0.05)
    before = Pose(product(heading, tilt), np.array([lane, height, 0.0]))
    if is_wild:
        speed, turn = 0.5, rotation(dice.heading(), math.radians(4.0) * dice.random())
        x, y, z = dice.heading()
        shift = np.array([x, 0.3 * y, z]) * dice.between(0.0, 1.5)
    else:
        speed, yaw = _draw_driving(dice, road)
        turn = _turned(yaw, math.radians(_bell(dice, 0.12)), math.radians(_bell(dice, 0.1)))
        left = AXLE * math.sin(yaw) + speed * math.sin(0.5 * yaw) + _bell(dice, 0.01)
        ahead = AXLE * (math.cos(yaw) - 1.0) + speed * math.cos(0.5 * yaw)
        shift = np.array([left, _bell(dice, 0.015), ahead])
    after = Pose(product(before.rotation, turn), before.shift + apply(before.rotation, shift))
    return Ego(before, after, speed)


def draw_traffic(dice: Dice, scene: Traffic) -> list[Placed]:
    """Up to eight movers in view that neither touch each other nor what is parked."""
    placed: list[Placed] = []
    taken = list(scene.road.parked)
    wanted = dice.whole(1, 4) + (dice.whole(0, 4) if scene.is_wild or dice.random() < 0.3 else 0)
    for _ in range(4 * wanted):
        one = _draw_mover(dice, scene)
        x, _, z = one.before.shift.tolist()
        is_free = all(math.hypot(x - a, z - b) > 0.9 * (one.mover.radius + radius) for a, b, radius in taken)
        if is_free and _is_in_view(scene.ego, one):
            taken.append((x, z, one.mover.radius))
            placed.append(one)
        if len(placed) == wanted:
            break
    return placed


def _turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    return product(product(rotation(Y_AXIS, yaw), rotation(X_AXIS, pitch)), rotation(Z_AXIS, roll))


def _draw_driving(dice: Dice, road: Road) -> tuple[float, float]:
    """Speed, and yaw in a frame, radians to the left."""
    usual = dice.pick(road.kind.speeds) * dice.between(0.6, 1.3)
    case = dice.random()
    if case < 0.12:  # waits
        return 0.0, 0.0
    if case < 0.3:  # turns
        return dice.between(0.2, 1.1), math.radians(dice.between(-7.0, 7.0))
    speed = usual if case < 0.85 else dice.between(0.0, 2.6)
    return speed, road.curvature * speed + math.radians(_bell(dice, 0.35))


def _is_in_view(ego: Ego, one: Placed) -> bool:
    x, _, z = apply(ego.before.rotation.T, one.before.shift - ego.before.shift)
    z2 = apply(ego.after.rotation.T, one.after.shift - ego.after.shift)[2]
    return bool(min(z, z2) > one.mover.radius + 1.5 and abs(x) < 0.85 * z + 0.5 * one.mover.radius)


def _draw_mover(dice: Dice, scene: Traffic) -> Placed:
    build = dice.pick(MOVERS)
    mover, road = build(dice), scene.road
    trip = _draw_walk(dice, road) if build is person else _draw_trip(dice, scene)
    speed = min(trip.speed, mover.fastest)
    x, z, heading = road.at(dice.between(NEAREST, FARTHEST), trip.left)
    heading += math.radians(trip.heading_degrees + _bell(dice, 2.0))
    yaw = math.radians(dice.between(-8.0, 8.0)) if dice.random() < 0.2 else road.curvature * speed
    before = Pose(rotation(Y_AXIS, heading), np.array([x, road.height(x, z), z]))
    after = _freely(dice, before) if scene.is_wild else _driven(road, before, heading, yaw, speed)
    return Placed(mover, before, after, dice.random() < (0.75 if mover.radius > 1.0 else 0.3))


def _draw_walk(dice: Dice, road: Road) -> Trip:
    left = dice.pick((-1.0, 1.0)) * (road.half_width + dice.between(-3.0, 2.5))
    return Trip(left, dice.between(-180.0, 180.0), dice.between(0.0, 0.2))


def _draw_trip(dice: Dice, scene: Traffic) -> Trip:
    half, usual = scene.road.half_width, dice.pick(scene.road.kind.speeds) * dice.between(0.5, 1.5)
    case = dice.random()
    if case < 0.45:  # comes towards the camera
        return Trip(scene.hand * dice.between(0.15, 0.75) * half, 180.0, usual)
    if case < 0.75:  # drives ahead, in this lane or the next
        left = scene.lane + dice.between(-0.8, 0.8) + dice.pick((0.0, 0.0, -3.3, 3.3))
        return Trip(left, 0.0, max(0.0, scene.ego.speed * dice.between(0.5, 1.4) + dice.between(-0.2, 0.2)))
    if case < 0.9:  # crosses
        heading = dice.pick((-90.0, 90.0)) + dice.between(-25.0, 25.0)
        return Trip(dice.between(-12.0, 12.0), heading, min(usual, dice.between(0.2, 1.4)))
    return Trip(dice.between(-1.0, 1.0) * half, dice.between(-180.0, 180.0), dice.between(0.0, 0.9))  # maneuvers


def _driven(road: Road, before: Pose, heading: float, yaw: float, speed: float) -> Pose:
    """The pose of a vehicle a frame later; it stays on the ground."""
    x, y, z = before.shift.tolist()
    x2, z2 = x + speed * math.sin(heading + 0.5 * yaw), z + speed * math.cos(heading + 0.5 * yaw)
    rise = road.height(x2, z2) - road.height(x, z)
    return Pose(rotation(Y_AXIS, heading + yaw), np.array([x2, y + rise, z2]))


def _freely(dice: Dice, before: Pose) -> Pose:
    """Up to 2 m and 20 degrees away."""
    turn = rotation(dice.heading(), math.radians(20.0) * dice.random())
    return Pose(product(turn, before.rotation), before.shift + np.array(dice.heading()) * dice.between(0.0, 2.0))


def _bell(dice: Dice, deviation: float) -> float:
    """Nearly normal, mean 0; at most 3.5 standard deviations."""
    return deviation * math.sqrt(3.0) * (dice.random() + dice.random() + dice.random() + dice.random() - 2.0)
