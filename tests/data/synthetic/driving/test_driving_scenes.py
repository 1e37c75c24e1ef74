# SPDX-License-Identifier: MIT
"""Driving scenes: one key, one scene; the flow is that of the drawn motions; ground, hidden points and noise."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from bpfn_cli.data.synthetic.driving import scenes
from bpfn_cli.data.synthetic.driving.drive import Drive, assembled, draw_drive
from bpfn_cli.data.synthetic.driving.ground import rising
from bpfn_cli.data.synthetic.driving.road import CITY, Road
from bpfn_cli.data.synthetic.driving.roadside import building
from bpfn_cli.data.synthetic.driving.scan import GROUND_M, Scan, ScanOptions, scan
from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions, render_drive
from bpfn_cli.data.synthetic.driving.traffic import Ego, Placed
from bpfn_cli.data.synthetic.driving.vehicles import MOVERS, Mover
from bpfn_cli.data.synthetic.objects import Dice, solid
from bpfn_cli.data.synthetic.raycast import IDENTITY, Y_AXIS, Pose, apply, rotation
from bpfn_cli.errors import UsageError
from bpfn_cli.rng import keyed_generator

SMALL = DrivingOptions(train=3, val=2, seed=5, points=1000)
SPEED, TURN = 1.5, math.radians(10.0)


def by_hand(*, wall: bool = True, curtain: bool = False) -> Drive:
    """A wall 30 m ahead, a crate 10 m ahead that turns in place, a camera that drives 1.5 m straight on.

    curtain: a second crate moves in front of the first.
    """
    hard = [solid("box", (60.0, 6.0, 1.0), (0.0, 0.0, 30.5))] if wall else []
    road = Road(CITY, 0.0, 4.0, (rising(0.0, 0.0, (0.0, 0.0, 0.0)),), hard, [], [])
    eye = np.array([0.0, 1.65, 0.0])
    ego = Ego(Pose(IDENTITY, eye), Pose(IDENTITY, eye + np.array([0.0, 0.0, SPEED])), SPEED)
    place = np.array([1.0, 0.0, 10.0])
    crate = Mover([solid("box", (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))], 1.5, 1.0)
    movers = [Placed(crate, Pose(IDENTITY, place), Pose(rotation(Y_AXIS, TURN), place), True)]
    if curtain:
        left, front = np.array([9.0, 0.0, 8.0]), np.array([1.0, 0.0, 7.0])
        movers.append(Placed(crate, Pose(IDENTITY, left), Pose(IDENTITY, front), False))
    return assembled(road, ego, movers)


def scanned(drive: Drive, count: int = 4000, **options: float) -> Scan:
    return scan(drive, count, keyed_generator("test"), ScanOptions(**options))  # type: ignore[arg-type]


def test_flow_is_that_of_the_drawn_motions() -> None:
    found = scanned(by_hand())
    one, flow = found.points1, found.points2 - found.points1
    wall, crate = one[:, 2] > 28.0, one[:, 2] < 12.0
    assert wall.sum() > 300 and crate.sum() > 1000 and (wall | crate).all()
    np.testing.assert_allclose(flow[wall], np.broadcast_to([0.0, 0.0, -SPEED], flow[wall].shape), atol=1e-9)
    center = np.array([1.0, -1.65, 10.0])
    turned = apply(rotation(Y_AXIS, TURN), one[crate] - center) + center - [0.0, 0.0, SPEED]
    np.testing.assert_allclose(found.points2[crate], turned, atol=1e-9)


def test_points_lie_on_the_surfaces() -> None:
    one = scanned(by_hand()).points1
    assert np.median(one[one[:, 2] > 28.0, 2]) == pytest.approx(30.0, abs=0.01)
    front = one[(one[:, 2] < 9.2) & (one[:, 0] > 0.1)]
    assert np.median(front[:, 2]) == pytest.approx(9.0, abs=0.01)
    assert front[:, 0].min() > -0.1 and front[:, 0].max() < 2.1


def test_ground_is_left_out_unless_it_is_wanted() -> None:
    for seed in range(3):
        options = replace(SMALL, seed=seed)
        without, ground = render_drive("0", options), render_drive("0", replace(options, ground=True))
        assert (np.maximum(without.points1[:, 1], without.points2[:, 1]) >= GROUND_M - 0.01).all()
        assert ((ground.points1[:, 1] < GROUND_M) & (ground.points2[:, 1] < GROUND_M)).mean() > 0.1
    flat = scanned(by_hand(), ground=True).points1
    assert flat[:, 1].min() == pytest.approx(-1.65, abs=0.1)


def test_hidden_points_are_found() -> None:
    found = scanned(by_hand(curtain=True), visibility=True)
    crate = (found.points1[:, 2] < 12.0) & (found.points1[:, 0] < 2.5)
    assert found.visible[crate].mean() < 0.1
    assert found.visible[found.points1[:, 2] > 28.0].mean() > 0.7
    alone = scanned(by_hand(), visibility=True)
    front = (alone.points1[:, 2] < 9.2) & (alone.points1[:, 0] > 0.2) & (alone.points1[:, 0] < 1.8)
    assert alone.visible[front].mean() > 0.9


def test_hidden_points_may_be_removed() -> None:
    kept, removed = render_drive("4", SMALL), render_drive("4", replace(SMALL, hidden="removed"))
    assert kept.visible.all() and removed.visible.all()
    assert len(removed.visible) < len(kept.visible)
    vanish = render_drive("4", replace(SMALL, hidden="vanish"))
    assert 0 < (~vanish.visible).sum() < len(vanish.visible)


def test_disparity_steps_move_points_along_their_rays() -> None:
    exact, coarse = scanned(by_hand()), scanned(by_hand(), disparity_step_px=1.0)
    disparity = 721.5 * 0.54 / coarse.points1[:, 2]
    np.testing.assert_allclose(disparity, np.rint(disparity), atol=1e-9)
    np.testing.assert_allclose(
        coarse.points1[:, :2] / coarse.points1[:, 2:], exact.points1[:, :2] / exact.points1[:, 2:], atol=1e-9
    )
    noisy = scanned(by_hand(), disparity_noise_px=0.5).points1
    assert 0.3 < np.std(721.5 * 0.54 / noisy[noisy[:, 2] > 25.0, 2]) < 0.7


def test_moving_objects_are_scanned_more_densely() -> None:
    drive = by_hand()
    dense, sparse = (scanned(Drive(drive.stage, owners)).points1[:, 2] < 12.0 for owners in (drive.dense, ()))
    assert dense.mean() > 1.3 * sparse.mean()


def test_same_key_gives_the_same_bytes() -> None:
    clouds = [cloud for index in range(2) for cloud in SMALL.render("train", index)]
    again = [cloud for index in range(2) for cloud in SMALL.render("train", index)]
    assert [cloud.tobytes() for cloud in clouds] == [cloud.tobytes() for cloud in again]
    assert len({cloud.tobytes() for cloud in clouds}) == 4
    assert SMALL.render("val", 0)[0].tobytes() != clouds[0].tobytes()
    assert replace(SMALL, seed=6).render("train", 0)[0].tobytes() != clouds[0].tobytes()


def test_bytes_are_those_of_this_format() -> None:
    """If this fails and was meant to: raise `scenes.FORMAT`, or old folders pass for new ones."""
    digest = hashlib.sha256()
    for index in range(4):
        for cloud in SMALL.render("train", index):
            digest.update(cloud.tobytes())
    assert (scenes.FORMAT, digest.hexdigest()[:16]) == (1, "c6f12bb0acac1e39")


def test_scenes_are_within_range_and_rows_correspond() -> None:
    for index in range(5):
        pc1, pc2 = SMALL.render("train", index)
        assert pc1.dtype == pc2.dtype == np.float32 and pc1.shape == pc2.shape == (len(pc1), 3)
        assert 250 <= len(pc1) <= 1000
        for cloud in (pc1, pc2):
            assert np.isfinite(cloud).all() and cloud[:, 2].min() > 1.4 and cloud[:, 2].max() < 35.0
        assert np.linalg.norm(pc2 - pc1, axis=1).max() < 12.0


def test_flow_is_rigid_for_each_object() -> None:
    for index in range(5):
        drive = draw_drive(f"rigid {index}")
        for before, after in zip(drive.stage.poses1, drive.stage.poses2, strict=True):
            for pose in (before, after):
                np.testing.assert_allclose(pose.rotation @ pose.rotation.T, IDENTITY, atol=1e-12)
                assert np.linalg.det(pose.rotation) == pytest.approx(1.0)


def test_curved_road_keeps_distances() -> None:
    road = Road(CITY, 0.02, 4.0, (rising(0.0, 0.0, (0.0, 0.0, 0.0)),), [], [], [])
    x, z, heading = road.at(10.0, 0.0)
    assert heading == pytest.approx(0.2) and math.hypot(x, z) == pytest.approx(2 * 50.0 * math.sin(0.1))
    x2, z2, _ = road.at(10.0, 3.0)
    assert math.hypot(x2 - x, z2 - z) == pytest.approx(3.0) and x2 > x


def test_ground_rises_as_asked() -> None:
    plane = rising(0.1, 0.02, (1.0, 0.5, 2.0))
    assert plane.height(1.0, 2.0) == pytest.approx(0.5)
    assert plane.height(2.0, 3.0) == pytest.approx(0.62)


@pytest.mark.parametrize("build", sorted(set(MOVERS), key=lambda build: build.__name__))
def test_movers_stand_on_the_ground_within_their_circle(build: object) -> None:
    for number in range(5):
        mover = build(Dice(f"{number}"))  # type: ignore[operator]
        for part in mover.solids:
            reach = np.linalg.norm(np.abs(part.turn) @ np.array(part.half)[:, None], axis=1)
            low = part.center[1] - float((np.abs(part.turn) @ np.array(part.half))[1])
            assert low > -0.05
            assert abs(part.center[2]) <= mover.radius + reach[2]


def test_facade_faces_the_road() -> None:
    house = building(Dice("house"), 8.0).hard[0]
    assert house.center[0] + house.half[0] == pytest.approx(0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"points": 10},
        {"train": -1},
        {"seed": True},
        {"hidden": "gone"},
        {"disparity_step_px": -1.0},
        {"train": 0, "val": 0},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(SMALL, **wrong)  # type: ignore[arg-type]
