# SPDX-License-Identifier: MIT
"""The ground of driving scenes: the highest of a few planes.

World frame: x left, y up, z forward; lengths in metres.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bpfn_cli.data.synthetic.objects import Dice
from bpfn_cli.data.synthetic.raycast import IDENTITY, Solid, Triple, rotation


class Plane(NamedTuple):
    """Ground: the half-space below a plane through `point`."""

    normal: Triple  # unit length, upwards
    point: Triple

    def height(self, x: float, z: float) -> float:
        """y of the plane above a place."""
        nx, ny, nz = self.normal
        return self.point[1] - (nx * (x - self.point[0]) + nz * (z - self.point[2])) / ny

    def solid(self) -> Solid:
        """The half-space."""
        x, y, z = self.normal
        turn = rotation((z, 0.0, -x), math.acos(y)) if y < 1.0 else IDENTITY
        return Solid("halfspace", (1.0, 1.0, 1.0), self.point, turn)


def rising(left: float, ahead: float, point: Triple) -> Plane:
    """Ground through `point` that rises by these slopes to the left and ahead."""
    length = math.sqrt(left * left + ahead * ahead + 1.0)
    return Plane((-left / length, 1.0 / length, -ahead / length), point)


def draw_ground(dice: Dice, edge: float, banks: float) -> tuple[Plane, ...]:
    """Flat at the camera; then it may rise, and so may the sides of the road.

    Args: edge: from the middle of the road to its side. banks: probability of an embankment on each side.
    """
    planes = [rising(0.0, 0.0, (0.0, 0.0, 0.0))]
    if dice.random() < 0.35:
        planes.append(rising(0.0, dice.between(0.005, 0.06), (0.0, 0.0, dice.between(5.0, 20.0))))
    for side in (-1.0, 1.0):
        if dice.random() < banks:
            slope, ahead = side * dice.log_between(0.03, 0.6), dice.between(-0.01, 0.01)
            planes.append(rising(slope, ahead, (side * (edge + dice.between(0.5, 5.0)), 0.0, 0.0)))
    return tuple(planes)


def height_at(ground: Sequence[Plane], x: float, z: float) -> float:
    """y of the ground at a place."""
    return max(plane.height(x, z) for plane in ground)
