# SPDX-License-Identifier: MIT
"""Draw driving scenes for `scan`: a road with all that stands beside it, traffic, and a camera on a car."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bpfn_cli.data.synthetic.driving.road import Road, draw_road
from bpfn_cli.data.synthetic.driving.traffic import Ego, Placed, Traffic, draw_ego, draw_traffic
from bpfn_cli.data.synthetic.objects import Dice
from bpfn_cli.data.synthetic.raycast import IDENTITY, Pose, Stage
from bpfn_cli.data.synthetic.scenery import seen_by

GROUND, HARD, SOFT = 0, 1, 2  # owners of solids that stand still; the movers come after them
WILD = 0.1  # share of the scenes in which the camera and all objects move freely
LEFT_HAND = 0.3  # share of the scenes with traffic on the left


@dataclass(frozen=True)
class Drive:
    """A driving scene before it is scanned."""

    stage: Stage  # its owners: GROUND, HARD, SOFT, then movers
    dense: Sequence[int]  # owners that are scanned more densely


def draw_drive(key: str) -> Drive:
    """Draw a scene. The result depends on `key` only."""
    dice = Dice(key)
    is_wild = dice.random() < WILD
    road = draw_road(dice)
    hand = -1.0 if dice.random() < LEFT_HAND else 1.0
    lane = -hand * dice.between(0.2, 0.6) * road.half_width
    ego = draw_ego(dice, road, lane, is_wild)
    return assembled(road, ego, draw_traffic(dice, Traffic(road, ego, lane, hand, is_wild)))


def assembled(road: Road, ego: Ego, movers: Sequence[Placed]) -> Drive:
    """The scene of a road, a camera and traffic."""
    ground = [plane.solid() for plane in road.ground]
    solids = [*ground, *road.hard, *road.soft]
    owners = [GROUND] * len(ground) + [HARD] * len(road.hard) + [SOFT] * len(road.soft)
    before = [Pose(IDENTITY, np.zeros(3))] * 3
    after, dense = list(before), []
    for one in movers:
        if one.is_dense:
            dense.append(len(before))
        solids += one.mover.solids
        owners += [len(before)] * len(one.mover.solids)
        before.append(one.before)
        after.append(one.after)
    return Drive(Stage(solids, owners, seen_by(ego.before, before), seen_by(ego.after, after)), dense)
