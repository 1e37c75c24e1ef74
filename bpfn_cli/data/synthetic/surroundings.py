# SPDX-License-Identifier: MIT
"""Surroundings of synthetic scenes: rooms and streets. Lengths are in metres."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.dice import Dice
from bpfn_cli.data.synthetic.objects import INDOORS, OUTDOORS, pole, solid, tree
from bpfn_cli.data.synthetic.raycast import FAR, Solid
from bpfn_cli.data.synthetic.rotations import IDENTITY, X_AXIS, Y_AXIS, Triple, rotation


class Setting(NamedTuple):
    """The background of a scene.

    Attributes:
        solids: in the frame of the background. turn: (3, 3), to the world. offset: of the background, to the left.
        width, depth, ceiling: free space for objects, from -width/2 to width/2 and to `depth` in the same frame.
        eye: height of the camera. things: the objects found here.
    """

    solids: list[Solid]
    turn: np.ndarray
    offset: float
    width: float
    depth: float
    ceiling: float
    eye: float
    things: tuple[Callable[[Dice], list[Solid]], ...]


def _wall(normal: Triple, point: Triple) -> Solid:
    """The half-space behind a wall; `normal` points to the side it is seen from."""
    x, y, z = normal
    turn = IDENTITY if y == 1.0 else rotation((z, 0.0, -x) if y == 0.0 else X_AXIS, math.acos(y))
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
        INDOORS,
    )


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
        while z < FAR:
            solids.append(_building(dice, side, width, z))
            z += 2.0 * solids[-1].half[2] + dice.between(0.0, 3.0)
    if dice.random() < 0.7:
        end = dice.between(24.0, 36.0)
        solids.append(solid("box", (30.0, dice.between(4.0, 14.0), 4.0), (0.0, 0.0, end)))
    for _ in range(dice.whole(1, 5)):
        x = dice.pick((-1.0, 1.0)) * dice.between(0.3, 0.48) * width
        solids += dice.pick((tree, pole))(dice, (x, 0.0, dice.between(7.0, 30.0)))
    return Setting(
        solids,
        rotation(Y_AXIS, math.radians(dice.between(-12.0, 12.0))),
        width * dice.between(-0.2, 0.2),
        width,
        33.0,
        6.0,
        dice.between(1.4, 2.6),
        OUTDOORS,
    )


def _building(dice: Dice, side: float, width: float, z: float) -> Solid:
    length, height, deep = dice.between(4.0, 14.0), dice.between(3.0, 15.0), 10.0
    x = side * (width / 2 + deep / 2 + dice.between(0.0, 2.0))
    return solid("box", (deep, height, length), (x, 0.0, z + length / 2))
