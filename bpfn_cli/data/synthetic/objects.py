# SPDX-License-Identifier: MIT
"""Objects of synthetic scenes, drawn at random: convex solids that stand on y = 0. Lengths are in metres."""

import math
import random
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from bpfn_cli.data.synthetic.raycast import IDENTITY, Z_AXIS, Solid, Triple, rotation

Item = TypeVar("Item")


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

    def pick(self, options: Sequence[Item]) -> Item:
        """One of `options`."""
        return options[self.whole(0, len(options) - 1)]

    def heading(self) -> Triple:
        """Uniform direction, unit length."""
        y, angle = self.between(-1.0, 1.0), self.between(0.0, 2.0 * math.pi)
        level = math.sqrt(1.0 - y * y)
        return level * math.cos(angle), y, level * math.sin(angle)


def solid(kind: str, size: Triple, base: Triple, turn: np.ndarray = IDENTITY) -> Solid:
    """A solid of `size` (full extents) whose lowest point, before `turn`, is the middle of its base."""
    half = size[0] / 2, size[1] / 2, size[2] / 2
    return Solid(kind, half, (base[0], base[1] + half[1], base[2]), turn)


def _single(kind: str, largest: float, dice: Dice) -> list[Solid]:
    return [solid(kind, _draw_size(dice, 0.5, largest), (0.0, 0.0, 0.0))]


crate, ball, drum = partial(_single, "box", 3.5), partial(_single, "ellipsoid", 3.0), partial(_single, "cylinder", 3.0)


def gadget(dice: Dice) -> list[Solid]:
    """Two to four simple solids that touch, at any angle."""
    scale = dice.log_between(0.6, 2.0)
    solids = []
    for _ in range(dice.whole(2, 4)):
        x, y, z = dice.heading()
        place = 0.4 * scale * x, 0.4 * scale * y, 0.4 * scale * z
        turn = rotation(dice.heading(), dice.between(0.0, math.pi))
        kind = dice.pick(("box", "ellipsoid", "cylinder"))
        solids.append(solid(kind, _draw_size(dice, 0.5 * scale, 1.2 * scale), place, turn))
    return solids


def _draw_size(dice: Dice, low: float, high: float) -> Triple:
    """Three extents of one magnitude."""
    size = dice.log_between(low, high)
    return size * dice.between(0.6, 1.0), size * dice.between(0.6, 1.0), size * dice.between(0.6, 1.0)


def _pair(kind: str, size: Triple, x: float) -> list[Solid]:
    """Two solids on the ground, at x and at -x."""
    return [solid(kind, size, (side, 0.0, 0.0)) for side in (x, -x)]


def _legs(kind: str, thick: float, height: float, x: float, z: float) -> list[Solid]:
    return [solid(kind, (thick, height, thick), (sx * x, 0.0, sz * z)) for sx in (-1, 1) for sz in (-1, 1)]


def table(dice: Dice) -> list[Solid]:
    width, deep, height = dice.between(1.0, 2.6), dice.between(0.7, 1.4), dice.between(0.6, 1.1)
    kind, leg = dice.pick(("box", "cylinder")), dice.between(0.06, 0.14)
    return [
        solid(dice.pick(("box", "box", "cylinder")), (width, 0.1, deep), (0.0, height, 0.0)),
        *_legs(kind, leg, height, 0.4 * width, 0.4 * deep),
    ]


def chair(dice: Dice) -> list[Solid]:
    width, seat, back = dice.between(0.5, 0.9), dice.between(0.4, 0.7), dice.between(0.5, 1.0)
    return [
        solid("box", (width, 0.12, width), (0.0, seat, 0.0)),
        solid("box", (width, back, 0.1), (0.0, seat, 0.45 * width)),
        *_legs("box", 0.08, seat, 0.43 * width, 0.43 * width),
    ]


def sofa(dice: Dice) -> list[Solid]:
    width, deep, seat = dice.between(1.4, 3.0), dice.between(0.8, 1.2), dice.between(0.35, 0.55)
    return [
        solid("box", (width, seat, deep), (0.0, 0.0, 0.0)),
        solid("box", (width, seat + dice.between(0.4, 0.7), 0.3), (0.0, 0.0, 0.5 * deep)),
        *_pair("box", (0.25, seat + 0.3, deep), 0.5 * width),
    ]


def shelf(dice: Dice) -> list[Solid]:
    width, height, deep = dice.between(0.9, 2.4), dice.between(1.2, 2.8), dice.between(0.35, 0.6)
    boards = dice.whole(2, 4)
    gap = (height - 0.08) / (boards - 1)
    levels = [solid("box", (width, 0.08, deep), (0.0, i * gap, 0.0)) for i in range(boards)]
    return _pair("box", (0.08, height, deep), -width / 2) + levels


def lamp(dice: Dice) -> list[Solid]:
    height, shade = dice.between(1.1, 2.0), dice.between(0.4, 0.9)
    return [
        solid("cylinder", (0.5, 0.08, 0.5), (0.0, 0.0, 0.0)),
        solid("cylinder", (0.08, height, 0.08), (0.0, 0.0, 0.0)),
        solid(dice.pick(("cylinder", "ellipsoid")), (shade, 0.7 * shade, shade), (0.0, height, 0.0)),
    ]


def bench(dice: Dice) -> list[Solid]:
    width = dice.between(1.4, 2.6)
    return [
        solid("box", (width, 0.12, 0.6), (0.0, 0.45, 0.0)),
        solid("box", (width, 0.6, 0.1), (0.0, 0.5, 0.3)),
        *_pair("box", (0.12, 0.45, 0.5), 0.4 * width),
    ]


def figure(dice: Dice) -> list[Solid]:
    """A person: legs, trunk, head."""
    height = dice.between(1.4, 2.0)
    return [
        *_pair("cylinder", (0.1 * height, 0.5 * height, 0.1 * height), 0.07 * height),
        solid("ellipsoid", (0.3 * height, 0.42 * height, 0.2 * height), (0.0, 0.44 * height, 0.0)),
        solid("ellipsoid", (0.13 * height, 0.16 * height, 0.14 * height), (0.0, 0.84 * height, 0.0)),
    ]


def car(dice: Dice) -> list[Solid]:
    length, width, body = dice.between(3.4, 4.8), dice.between(1.6, 1.9), dice.between(0.55, 0.75)
    cabin = (0.85 * width, dice.between(0.5, 0.7), length * dice.between(0.4, 0.6))
    return [
        solid("box", (width, body, length), (0.0, 0.25, 0.0)),
        solid("box", cabin, (0.0, 0.25 + body, length * dice.between(-0.1, 0.1))),
        *_wheels(width, 0.32 * length, 0.65),
    ]


def van(dice: Dice) -> list[Solid]:
    length, width, height = dice.between(4.2, 5.4), dice.between(1.8, 2.1), dice.between(1.4, 2.0)
    return [
        solid("box", (width, height, 0.72 * length), (0.0, 0.35, -0.14 * length)),
        solid("box", (width, 0.6 * height, 0.28 * length), (0.0, 0.35, 0.36 * length)),
        *_wheels(width, 0.32 * length, 0.8),
    ]


def _wheels(width: float, z: float, size: float) -> list[Solid]:
    turn = rotation(Z_AXIS, math.pi / 2)
    places = [(sx * 0.45 * width, sz * z) for sx in (-1, 1) for sz in (-1, 1)]
    return [Solid("cylinder", (size / 2, 0.13, size / 2), (x, size / 2, at), turn) for x, at in places]


def tree(dice: Dice, base: Triple) -> list[Solid]:
    trunk, crown = dice.between(1.5, 3.0), dice.between(1.5, 3.5)
    return [
        solid("cylinder", (0.3, trunk + 0.5, 0.3), base),
        solid("ellipsoid", (crown, dice.between(1.5, 3.5), crown), (base[0], trunk, base[2])),
    ]


def pole(dice: Dice, base: Triple) -> list[Solid]:
    height = dice.between(3.0, 6.0)
    return [
        solid("cylinder", (0.2, height, 0.2), base),
        solid("box", (dice.between(0.3, 1.5), 0.25, 0.5), (base[0], height, base[2])),
    ]


FLYING = (crate, ball, drum, gadget)
INDOORS = (*2 * (table, chair, sofa, shelf, lamp), crate, drum, ball, gadget, figure)
OUTDOORS = (car, car, car, van, figure, figure, crate, drum, ball, gadget, gadget, bench)
