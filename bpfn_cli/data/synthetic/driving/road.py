# SPDX-License-Identifier: MIT
"""Draw a road with all that stands beside it.

World frame: x left, y up, z forward; the road begins at the origin, where its surface is y = 0. Lengths are in metres,
speeds in metres a frame.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.driving.ground import Plane, draw_ground, height_at
from bpfn_cli.data.synthetic.driving.roadside import LONG, SINGLE, Piece
from bpfn_cli.data.synthetic.driving.vehicles import PARKED
from bpfn_cli.data.synthetic.objects import Dice
from bpfn_cli.data.synthetic.raycast import Y_AXIS, Solid, Triple, apply, product, rotation

REACH = 40.0  # along the road
CURVATURES = (0.0, 0.002, 0.01, 0.03)  # 1 / metres, largest
CLOSED = 0.3  # share of the roads with something across them, far ahead
CROSSED = 0.25  # share of the roads with a side road
PARKED_CAR = "parked"


class Row(NamedTuple):
    """Things in a row along one side of a road."""

    kinds: tuple[str, ...]  # of LONG and SINGLE, or PARKED_CAR
    share: float  # probability that a side has this row
    near: float  # distance from the edge of the road, from
    far: float  # to
    gap: float  # longest gap between two things
    length: float = 12.0  # longest thing


class Kind(NamedTuple):
    """A kind of road."""

    half_width: tuple[float, float]  # from, to
    speeds: tuple[float, ...]  # typical for its traffic
    banks: float  # probability of an embankment on a side
    rows: tuple[Row, ...]


CITY = Kind(
    (3.5, 9.0),
    (0.3, 0.7, 1.0, 1.4),
    0.1,
    (
        Row((PARKED_CAR,), 0.6, -1.2, -0.6, 5.0),
        Row(("pole", "tree", "clutter", "pole"), 0.8, 0.3, 1.2, 14.0),
        Row(("clutter", "wall", "hedge", "fence"), 0.35, 1.5, 2.5, 8.0, 6.0),
        Row(("building", "building", "building", "wall", "hedge"), 0.95, 1.5, 5.0, 4.0, 16.0),
        Row(("building",), 0.6, 9.0, 16.0, 6.0, 16.0),
    ),
)
SUBURB = Kind(
    (3.2, 7.0),
    (0.3, 0.6, 0.9, 1.2),
    0.25,
    (
        Row((PARKED_CAR,), 0.5, -1.1, -0.6, 9.0),
        Row(("pole", "tree"), 0.7, 0.4, 1.5, 16.0),
        Row(("hedge", "fence", "wall", "bushes"), 0.8, 1.0, 3.5, 5.0, 10.0),
        Row(("building",), 0.9, 5.0, 14.0, 9.0, 14.0),
        Row(("tree", "bushes"), 0.6, 3.0, 10.0, 12.0, 5.0),
    ),
)
HIGHWAY = Kind(
    (4.5, 12.0),
    (1.6, 2.0, 2.3, 2.8),
    0.5,
    (
        Row(("rail", "rail", "wall"), 0.75, 0.2, 1.5, 1.0, 25.0),
        Row(("pole",), 0.5, 1.0, 3.0, 25.0),
        Row(("wall", "bushes", "hedge", "tree", "bushes"), 0.8, 2.5, 8.0, 4.0, 16.0),
        Row(("tree", "bushes", "building"), 0.5, 8.0, 16.0, 10.0, 10.0),
    ),
)
COUNTRY = Kind(
    (3.0, 6.0),
    (0.5, 1.0, 1.5, 2.1),
    0.6,
    (
        Row(("rail", "fence", "pole"), 0.35, 0.5, 1.5, 6.0, 16.0),
        Row(("tree", "pole", "tree"), 0.6, 1.0, 4.0, 14.0),
        Row(("bushes", "hedge", "bushes", "tree"), 0.8, 2.0, 7.0, 7.0, 10.0),
        Row(("building", "bushes", "wall"), 0.4, 8.0, 16.0, 12.0, 12.0),
    ),
)
KINDS = (CITY, CITY, SUBURB, SUBURB, HIGHWAY, HIGHWAY, COUNTRY)


class Road(NamedTuple):
    """A road and what stands still beside it."""

    kind: Kind
    curvature: float  # 1 / metres, positive to the left
    half_width: float
    ground: tuple[Plane, ...]
    hard: list[Solid]
    soft: list[Solid]  # vegetation
    parked: list[Triple]  # x, z, radius of parked cars

    def at(self, along: float, left: float) -> Triple:
        """x, z and heading at a distance along the road and from its middle to the left."""
        if abs(self.curvature) < 1e-6:
            return left, along, 0.0
        center, angle = 1.0 / self.curvature, self.curvature * along
        return center - (center - left) * math.cos(angle), (center - left) * math.sin(angle), angle

    def height(self, x: float, z: float) -> float:
        """y of the ground."""
        return height_at(self.ground, x, z)

    def put(self, piece: Piece, place: Triple, turn: float) -> None:
        """Add something: x, z and heading of the road there, and how far it is turned from the road."""
        x, z, heading = place
        matrix, shift = rotation(Y_AXIS, heading + turn), (x, self.height(x, z) - 0.1, z)
        self.hard.extend(moved(piece.hard, matrix, shift))
        self.soft.extend(moved(piece.soft, matrix, shift))


def draw_road(dice: Dice) -> Road:
    """A road with its sides."""
    kind = dice.pick(KINDS)
    curvature = dice.between(-1.0, 1.0) * dice.pick(CURVATURES)
    half = dice.between(*kind.half_width)
    road = Road(kind, curvature, half, draw_ground(dice, half, kind.banks), [], [], [])
    crossing = (dice.between(6.0, 26.0), dice.between(6.0, 14.0)) if dice.random() < CROSSED else (math.inf, 0.0)
    for side in (-1.0, 1.0):
        for row in kind.rows:
            if dice.random() < row.share:
                _fill_row(dice, road, row, side, crossing)
    if dice.random() < CLOSED:
        piece = LONG[dice.pick(("building", "hedge", "wall", "bushes"))](dice, dice.between(8.0, 30.0))
        place = road.at(dice.between(20.0, 38.0), dice.between(-4.0, 4.0))
        road.put(piece, place, math.pi / 2 + dice.between(-0.3, 0.3))
    return road


def _fill_row(dice: Dice, road: Road, row: Row, side: float, crossing: tuple[float, float]) -> None:
    """Put things along a side (1: left, -1: right), but not into the side road: its start and width."""
    along, offset = dice.between(1.0, 9.0), road.half_width + dice.between(row.near, row.far)
    while along < REACH:
        name, slack = dice.pick(row.kinds), dice.between(-0.3, 0.3)
        length = dice.between(0.3, 1.0) * row.length if name in LONG else 4.5 if name == PARKED_CAR else 1.0
        middle = along + 0.5 * length
        if not crossing[0] - 0.5 * length < middle < sum(crossing) + 0.5 * length:
            place = road.at(middle, side * (offset + slack))
            if name == PARKED_CAR:
                _park(dice, road, place, side)
            else:
                piece = LONG[name](dice, length) if name in LONG else SINGLE[name](dice)
                road.put(piece, place, (math.pi if side > 0 else 0.0) + dice.between(-0.06, 0.06))
        along += length + dice.random() * row.gap


def _park(dice: Dice, road: Road, place: Triple, side: float) -> None:
    """Park a car, mostly in the direction of its lane."""
    mover = dice.pick(PARKED)(dice)
    is_opposite = dice.random() < (0.85 if side > 0 else 0.1)
    road.put(Piece(mover.solids, []), place, (math.pi if is_opposite else 0.0) + dice.between(-0.05, 0.05))
    road.parked.append((place[0], place[1], mover.radius))


def moved(solids: Sequence[Solid], turn: np.ndarray, shift: Triple) -> list[Solid]:
    """The solids of an object in the world: turned by a (3, 3) matrix, then shifted."""
    if not solids:
        return []
    centers = apply(turn, np.array([part.center for part in solids])) + np.array(shift)
    turns = product(turn, np.stack([part.turn for part in solids]))
    parts = zip(solids, centers.tolist(), turns, strict=True)
    return [part._replace(center=tuple(center), turn=own) for part, center, own in parts]
