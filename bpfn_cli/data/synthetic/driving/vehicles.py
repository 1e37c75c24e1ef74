# SPDX-License-Identifier: MIT
"""What moves in driving scenes: cars, vans, trucks, people, cyclists. They stand on y = 0 and look along z; metres."""

import math
from collections.abc import Callable
from typing import NamedTuple

from bpfn_cli.data.synthetic.objects import Dice, figure, solid
from bpfn_cli.data.synthetic.raycast import X_AXIS, Z_AXIS, Solid, rotation

ACROSS = rotation(Z_AXIS, math.pi / 2)  # turns the axis of a cylinder from y to x


class Mover(NamedTuple):
    """Something that can move."""

    solids: list[Solid]
    radius: float  # of a circle on the ground around it
    fastest: float  # metres a frame


def car(dice: Dice) -> Mover:
    """A hatchback, sedan or estate: body, bumpers, cabin with slanted windows, wheels."""
    length, width, height = dice.between(3.5, 4.9), dice.between(1.6, 1.95), dice.between(1.38, 1.7)
    clear, belt = dice.between(0.15, 0.25), dice.between(0.52, 0.62) * height
    cabin, behind = length * dice.between(0.5, 0.68), length * dice.between(0.0, 0.14)
    middle = -0.5 * length + behind + 0.5 * cabin
    solids = [
        solid("box", (width, belt - clear, 0.94 * length), (0.0, clear, 0.0)),
        solid("box", (0.9 * width, 0.6 * (belt - clear), length), (0.0, clear + 0.08, 0.0)),
        *_cabin(dice, (0.86 * width, height - belt, cabin), belt, middle),
        *_wheels(0.95 * width, 0.31 * length, dice.between(0.58, 0.7)),
    ]
    return Mover(solids, 0.5 * length, 3.2)


def _cabin(dice: Dice, size: tuple[float, float, float], belt: float, middle: float) -> list[Solid]:
    """A roof and slanted windows on a body whose top is at `belt`; `middle` is the z of its center."""
    width, rise, length = size
    top = length * dice.between(0.45, 0.7)
    solids = [solid("box", (0.94 * width, rise, top), (0.0, belt, middle))]
    for side, share in ((1.0, dice.between(0.9, 1.2)), (-1.0, dice.between(0.5, 1.1))):
        run = 0.5 * (length - top) * share
        reach, thick = math.hypot(rise, run), 0.25 * min(rise, run)
        y = belt + 0.5 * rise - thick * run / reach
        z = middle + side * (0.5 * top + 0.5 * run - thick * rise / reach)
        turn = rotation(X_AXIS, -side * math.atan2(run, rise))
        solids.append(Solid("box", (0.47 * width, 0.5 * reach, thick), (0.0, y, z), turn))
    return solids


def van(dice: Dice) -> Mover:
    """A van or a small bus."""
    length, width, height = dice.between(4.3, 6.2), dice.between(1.8, 2.15), dice.between(1.8, 2.7)
    hood = dice.between(0.12, 0.25) * length
    solids = [
        solid("box", (width, height - 0.25, length - hood), (0.0, 0.25, -0.5 * hood)),
        solid("box", (width, 0.45 * height, hood), (0.0, 0.25, 0.5 * (length - hood))),
        *_wheels(width, 0.32 * length, 0.7),
    ]
    return Mover(solids, 0.5 * length, 3.0)


def truck(dice: Dice) -> Mover:
    """A truck with its load, or a bus."""
    length, width, height = dice.between(6.0, 13.0), dice.between(2.2, 2.55), dice.between(2.6, 3.9)
    front, gap = dice.between(1.6, 2.4), dice.pick((0.0, 0.4))
    solids = [
        solid("box", (width, height - 0.8, length - front - gap), (0.0, 0.8, -0.5 * (front + gap))),
        solid("box", (0.95 * width, dice.between(2.2, 2.9), front), (0.0, 0.4, 0.5 * (length - front))),
        solid("box", (0.5 * width, 0.4, length), (0.0, 0.5, 0.0)),
        *_wheels(width, 0.36 * length, 0.95),
    ]
    return Mover(solids, 0.5 * length, 2.6)


def person(dice: Dice) -> Mover:
    """A pedestrian."""
    return Mover(figure(dice), 0.4, 0.25)


def cyclist(dice: Dice) -> Mover:
    """A rider on a bicycle or motorcycle."""
    size, thick = dice.between(0.6, 0.72), dice.between(0.03, 0.12)
    bike = [Solid("cylinder", (size / 2, thick, size / 2), (0.0, size / 2, z), ACROSS) for z in (-0.52, 0.52)]
    bike.append(solid("box", (2 * thick, 0.3, 1.0), (0.0, 0.45, 0.0)))
    bike.append(solid("box", (0.5, 0.08, 0.1), (0.0, 0.95, 0.4)))
    for part in figure(dice):
        x, y, z = part.center
        bike.append(part._replace(center=(x, y + 0.2, z - 0.1)))
    return Mover(bike, 0.9, 0.8)


def _wheels(width: float, z: float, size: float) -> list[Solid]:
    places = [(sx * 0.45 * width, sz * z) for sx in (-1, 1) for sz in (-1, 1)]
    return [Solid("cylinder", (size / 2, 0.12, size / 2), (x, size / 2, at), ACROSS) for x, at in places]


MOVERS: tuple[Callable[[Dice], Mover], ...] = (*8 * (car,), van, van, truck, person, cyclist, cyclist)
PARKED: tuple[Callable[[Dice], Mover], ...] = (*8 * (car,), van)
