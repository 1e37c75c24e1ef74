# SPDX-License-Identifier: MIT
"""What stands beside a road: buildings, fences, hedges, trees, poles.

They stand on y = 0 and are long along z; the road is on their side x > 0. Lengths are in metres. Vegetation is kept
apart, because a laser enters it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.objects import Dice, solid
from bpfn_cli.data.synthetic.raycast import Y_AXIS, Solid, rotation


class Piece(NamedTuple):
    """Something beside a road."""

    hard: list[Solid]
    soft: list[Solid]  # vegetation


def building(dice: Dice, length: float) -> Piece:
    """A house whose facade is the plane x = 0, with steps, bays or balconies."""
    deep, height = dice.between(4.0, 9.0), dice.between(2.5, 12.0)
    parts = [solid("box", (deep, height, length), (-0.5 * deep, 0.0, 0.0))]
    for _ in range(dice.whole(0, 5)):
        out, wide = dice.between(0.1, 1.0), dice.between(0.3, 2.5)
        tall, low = dice.between(0.4, 3.0), dice.pick((0.0, 0.0, dice.between(0.5, 2.5)))
        z = dice.between(-0.5, 0.5) * max(0.1, length - wide)
        parts.append(solid("box", (2 * out, tall, wide), (0.0, low, z)))
    return Piece(parts, [])


def wall(dice: Dice, length: float) -> Piece:
    """A wall; some end in pillars."""
    thick, height = dice.between(0.1, 0.4), dice.between(0.5, 3.5)
    parts = [solid("box", (thick, height, length), (0.0, 0.0, 0.0))]
    if dice.random() < 0.4:
        pillar = 2.5 * thick, height + 0.15, 0.35
        parts += [solid("box", pillar, (0.0, 0.0, side * 0.5 * length)) for side in (-1, 1)]
    return Piece(parts, [])


def rail(dice: Dice, length: float) -> Piece:
    """A guard rail: one or two bars on posts."""
    top, tall, count = dice.between(0.55, 1.1), dice.between(0.15, 0.35), int(length / dice.between(2.0, 4.5))
    parts = [solid("box", (0.1, tall, length), (0.0, top - tall, 0.0))]
    if dice.random() < 0.3:
        parts.append(solid("box", (0.1, 0.1, length), (0.0, 0.5 * (top - tall), 0.0)))
    parts += [solid("box", (0.12, top, 0.12), (-0.1, 0.0, z)) for z in _spread(length, max(2, count))]
    return Piece(parts, [])


def fence(dice: Dice, length: float) -> Piece:
    """Boards with gaps between them."""
    height, count = dice.between(0.8, 2.0), max(2, int(length / dice.between(0.5, 2.0)))
    board = 0.06, height, dice.between(0.3, 0.95) * length / count
    parts = [solid("box", board, (0.0, 0.0, z)) for z in _spread(length, count)]
    parts.append(solid("box", (0.08, 0.12, length), (0.0, 0.75 * height, 0.0)))
    return Piece(parts, [])


def hedge(dice: Dice, length: float) -> Piece:
    """A cut hedge, not quite even."""
    height, thick = dice.between(0.7, 3.0), dice.between(0.5, 1.4)
    parts = [solid("box", (thick, height, length), (0.0, 0.0, 0.0))]
    for _ in range(int(length / 2.0)):
        size = 1.6 * thick, dice.between(0.6, 1.3) * height, dice.between(0.8, 2.5)
        base = dice.between(-0.4, 0.4), dice.between(0.0, 0.4) * height, dice.between(-0.5, 0.5) * length
        parts.append(solid("ellipsoid", size, base))
    return Piece([], parts)


def bushes(dice: Dice, length: float) -> Piece:
    """Bushes of all sizes."""
    parts = []
    for _ in range(max(1, int(length / dice.between(0.8, 2.5)))):
        height = dice.between(0.5, 3.5)
        size = height * dice.between(0.7, 1.4), height, height * dice.between(0.7, 1.6)
        base = dice.between(-1.5, 1.5), -0.25 * height, dice.between(-0.5, 0.5) * length
        parts.append(solid("ellipsoid", size, base, _any_heading(dice)))
    return Piece([], parts)


def tree(dice: Dice) -> Piece:
    """A trunk and its crown."""
    trunk, thick = dice.between(0.8, 3.5), dice.between(0.15, 0.6)
    crown = []
    for _ in range(dice.whole(1, 3)):
        size = dice.between(1.5, 4.5)
        base = dice.between(-0.8, 0.8), trunk + dice.between(-0.3, 0.8), dice.between(-0.8, 0.8)
        crown.append(solid("ellipsoid", (size, dice.between(1.2, 4.0), size), base))
    return Piece([solid("cylinder", (thick, trunk + 1.0, thick), (0.0, 0.0, 0.0))], crown)


def pole(dice: Dice) -> Piece:
    """A lamp post, a sign or a traffic light."""
    thick, height = dice.between(0.08, 0.3), dice.between(1.8, 6.0)
    parts = [solid("cylinder", (thick, height, thick), (0.0, 0.0, 0.0))]
    if dice.random() < 0.7:
        size = dice.between(0.3, 1.2), dice.between(0.3, 1.2), dice.between(0.05, 0.4)
        parts.append(solid("box", size, (0.0, min(height, dice.between(1.4, 3.0)), 0.0)))
    return Piece(parts, [])


def clutter(dice: Dice) -> Piece:
    """A bin, cabinet, bollard or box."""
    size = dice.between(0.15, 1.2), dice.between(0.5, 1.6), dice.between(0.15, 1.2)
    return Piece([solid(dice.pick(("box", "box", "cylinder")), size, (0.0, 0.0, 0.0), _any_heading(dice))], [])


def _spread(length: float, count: int) -> list[float]:
    """Middles of `count` equal parts of a length."""
    return [length * ((i + 0.5) / count - 0.5) for i in range(count)]


def _any_heading(dice: Dice) -> np.ndarray:
    return rotation(Y_AXIS, dice.between(0.0, math.pi))


LONG: dict[str, Callable[[Dice, float], Piece]] = {
    "building": building,
    "wall": wall,
    "rail": rail,
    "fence": fence,
    "hedge": hedge,
    "bushes": bushes,
}
SINGLE: dict[str, Callable[[Dice], Piece]] = {"tree": tree, "pole": pole, "clutter": clutter}
