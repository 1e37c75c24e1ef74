# SPDX-License-Identifier: MIT
import math

import numpy as np
import pytest

from bpfn_cli.data.synthetic import scenery
from bpfn_cli.data.synthetic.objects import Dice
from bpfn_cli.data.synthetic.raycast import CORNERS, apply, product
from bpfn_cli.data.synthetic.scenery import draw_stage

KEYS = [f"scenery {i}" for i in range(16)]


def corners(stage, owner, poses):
    parts = [part for part, o in zip(stage.solids, stage.owners, strict=True) if o == owner]
    local = np.concatenate([apply(part.turn[None], CORNERS * part.half) + part.center for part in parts])
    return apply(poses[owner].rotation[None], local) + poses[owner].shift


def angle_of(turn):
    return math.degrees(math.acos(min(1.0, (np.trace(turn) - 1.0) / 2.0)))


def test_dice_stay_in_their_ranges_and_reach_both_ends():
    dice = Dice("key")
    assert {dice.whole(8, 20) for _ in range(400)} == set(range(8, 21))
    drawn = [dice.log_between(0.3, 6.0) for _ in range(400)]
    assert 0.3 <= min(drawn) < 0.32 and 5.6 < max(drawn) <= 6.0
    assert 1.1 < np.median(drawn) < 1.7  # sqrt(0.3 * 6) = 1.34
    headings = np.array([dice.heading() for _ in range(400)])
    assert np.allclose(np.linalg.norm(headings, axis=1), 1.0)
    assert np.abs(headings.mean(axis=0)).max() < 0.1


def test_a_stage_is_a_function_of_its_key():
    one, two, other = draw_stage("x"), draw_stage("x"), draw_stage("y")
    assert all(np.array_equal(a.rotation, b.rotation) for a, b in zip(one.poses2, two.poses2, strict=True))
    assert [s.half for s in one.solids] == [s.half for s in two.solids]
    assert [s.half for s in one.solids] != [s.half for s in other.solids]


@pytest.mark.parametrize("key", KEYS)
def test_objects_have_the_stated_number_size_and_distance(key):
    stage = draw_stage(key)
    assert 8 <= len(stage.poses1) - 1 <= 20
    assert len(stage.solids) == len(stage.owners) and set(stage.owners) == set(range(len(stage.poses1)))
    for owner in range(1, len(stage.poses1)):
        found = corners(stage, owner, stage.poses1)
        center = (found.min(axis=0) + found.max(axis=0)) / 2
        assert 0.3 <= np.ptp(found, axis=0).max() <= 6.5
        assert 3.0 <= np.linalg.norm(center) <= 35.0
        assert found[:, 2].min() > 2.0


def test_crowded_scene_is_drawn_again(monkeypatch):
    monkeypatch.setattr(scenery, "TRIES", 12)
    assert min(len(draw_stage(key).poses1) for key in KEYS) - 1 >= 8


@pytest.mark.parametrize("key", KEYS)
def test_motions_stay_within_their_bounds(key):
    stage = draw_stage(key)
    (turn1, shift1), (turn2, shift2) = stage.poses1[0], stage.poses2[0]
    camera_turn = product(turn2, turn1.T)
    assert angle_of(camera_turn) <= 4.0 + 1e-6
    assert np.linalg.norm(shift2 - apply(camera_turn, shift1)) <= 0.8
    own = []
    for before, after in zip(stage.poses1[1:], stage.poses2[1:], strict=True):
        # what remains once the camera's motion is undone
        turn = product(camera_turn.T, product(after.rotation, before.rotation.T))
        carried = apply(camera_turn, before.shift - shift1) + shift2
        own.append(np.linalg.norm(after.shift - carried))
        assert angle_of(turn) <= 20.0 + 1e-6
        assert own[-1] <= 2.0
    assert len(set(np.round(own, 6))) == len(own)


def test_rooms_and_streets_and_every_kind_of_solid_occur():
    stages = [draw_stage(key) for key in KEYS]
    walls = [sum(solid.kind == "halfspace" for solid in stage.solids) for stage in stages]
    assert set(walls) == {1, 5}  # a street's ground; a room's floor, ceiling and three walls
    assert 3 <= walls.count(5) <= 13
    kinds = {solid.kind for stage in stages for solid in stage.solids}
    assert kinds == {"halfspace", "box", "ellipsoid", "cylinder"}
