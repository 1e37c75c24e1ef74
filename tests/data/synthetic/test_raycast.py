# SPDX-License-Identifier: MIT
import math

import numpy as np
import pytest

from bpfn_cli.data.synthetic.raycast import (
    IDENTITY,
    X_AXIS,
    Y_AXIS,
    Z_AXIS,
    Pinhole,
    Pose,
    Solid,
    Stage,
    apply,
    bodies_in_view,
    cast_image,
    hidden,
    pinhole,
    product,
    render_pair,
    rotation,
)
from bpfn_cli.data.synthetic.scenery import draw_stage

HERE = Pose(IDENTITY, np.zeros(3))
CUBE = (1.0, 1.0, 1.0)
LYING = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # y to z, without rounding


def solid(kind, half, center, turn=IDENTITY):
    return Solid(kind, half, center, turn)


def depth_along(solids, sx, sy):
    """Depth of the first hit of one ray, by a camera of one pixel that looks along it."""
    camera = Pinhole(width=1, height=1, focal=1.0, cx=sx, cy=sy)
    stage = Stage(solids, [0] * len(solids), [HERE], [HERE])
    depth, _ = cast_image(bodies_in_view(stage, stage.poses1), camera)
    return depth[0, 0]


def inside(solid_, points):
    """Below 1 inside a solid, 1 on its surface. Written from the definitions, not from the rays."""
    unit = apply((solid_.turn.T / np.array(solid_.half)[:, None])[None], points - np.array(solid_.center))
    x, y, z = unit.T
    if solid_.kind == "box":
        return np.abs(unit).max(axis=1)
    if solid_.kind == "ellipsoid":
        return np.sqrt(x**2 + y**2 + z**2)
    if solid_.kind == "cylinder":
        return np.maximum(np.abs(y), np.sqrt(x**2 + z**2))
    return 1.0 + y  # half-space


def to_object(pose, points):
    return apply(pose.rotation.T[None], points - pose.shift)


def test_pinhole_is_flyingthings3d_at_540_and_scales():
    assert pinhole(540) == (960, 540, 1050.0, 479.5, 269.5)
    assert pinhole(135) == (240, 135, 262.5, 119.5, 67.0)


@pytest.mark.parametrize(
    "body, sx, sy, expected",
    [
        # box: front face of 1 x 2 x 0.5 half extents at 5 m
        (solid("box", (1.0, 2.0, 0.5), (0.0, 0.0, 5.0)), 0.0, 0.0, 4.5),
        (solid("box", (1.0, 2.0, 0.5), (0.0, 0.0, 5.0)), 0.2, 0.4, 4.5),
        (solid("box", (1.0, 2.0, 0.5), (0.0, 0.0, 5.0)), 0.23, 0.0, math.inf),
        # its side: the plane x = 1 of a cube at (2, 0, 5), reached by sx = 0.2 at z = 5
        (solid("box", CUBE, (2.0, 0.0, 5.0)), 0.2, 0.0, 5.0),
        # a cube turned by 45 degrees shows its edge; beside it |x| + |z - 5| = sqrt 2
        (solid("box", CUBE, (0.0, 0.0, 5.0), rotation(Y_AXIS, math.pi / 4)), 0.0, 0.0, 3.585786438),
        (solid("box", CUBE, (0.0, 0.0, 5.0), rotation(Y_AXIS, math.pi / 4)), 0.1, 0.0, 3.984207153),
        (solid("box", CUBE, (0.0, 0.0, -5.0)), 0.0, 0.0, math.inf),  # behind
        # ellipsoid: 1.0225 t^2 - 20 t + 91 = 0 along sx = 0.1
        (solid("ellipsoid", (2.0, 1.0, 3.0), (0.0, 0.0, 10.0)), 0.0, 0.0, 7.0),
        (solid("ellipsoid", (2.0, 1.0, 3.0), (0.0, 0.0, 10.0)), 0.1, 0.0, 7.201213),
        (solid("ellipsoid", (2.0, 1.0, 3.0), (0.0, 0.0, 10.0)), 0.0, 0.11, math.inf),
        (solid("ellipsoid", (2.0, 1.0, 3.0), (0.0, 0.0, 10.0), rotation(Y_AXIS, math.pi / 2)), 0.0, 0.0, 8.0),
        # upright cylinder: its side from the front, its upper cap (y = -1) from above
        (solid("cylinder", CUBE, (0.0, 0.0, 5.0)), 0.0, 0.0, 4.0),
        (solid("cylinder", CUBE, (0.0, -2.0, 5.0)), 0.0, -0.2, 5.0),
        (solid("cylinder", CUBE, (0.0, -2.0, 5.0)), 0.0, -0.3, 4.0),
        (solid("cylinder", CUBE, (0.0, -2.0, 5.0)), 0.0, -0.1, math.inf),
        # a cylinder seen exactly along its axis: the ray is parallel to its side
        (solid("cylinder", (1.0, 2.0, 1.0), (0.0, 0.0, 6.0), LYING), 0.0, 0.0, 4.0),
        (solid("cylinder", (1.0, 2.0, 1.0), (1.5, 0.0, 6.0), LYING), 0.0, 0.0, math.inf),
        (solid("cylinder", CUBE, (0.0, 0.0, 5.0), rotation(Z_AXIS, math.pi / 2)), 0.0, 0.0, 4.0),
        # a floor 1.5 m below the eye
        (solid("halfspace", CUBE, (0.0, -1.5, 0.0)), 0.0, -0.3, 5.0),
        (solid("halfspace", CUBE, (0.0, -1.5, 0.0)), 0.3, 0.0, math.inf),
        (solid("halfspace", CUBE, (0.0, -1.5, 0.0)), 0.0, 0.3, math.inf),
    ],
)
def test_ray_meets_solid_at_the_computed_depth(body, sx, sy, expected):
    assert depth_along([body], sx, sy) == pytest.approx(expected, abs=1e-6)


def test_nearest_of_several_solids_is_hit_in_any_order():
    near, far = solid("box", CUBE, (0.0, 0.0, 6.0)), solid("ellipsoid", CUBE, (0.0, 0.0, 9.0))
    assert depth_along([near, far], 0.0, 0.0) == depth_along([far, near], 0.0, 0.0) == 5.0


def test_hidden_asks_the_exact_ray():
    stage = Stage([solid("box", CUBE, (0.0, 0.0, 5.0))], [0], [HERE], [HERE])
    bodies = bodies_in_view(stage, stage.poses1)
    sx = np.array([0.24999, 0.25001, 0.0, 0.0, 0.0])  # the box covers slopes to 1/4
    depth = np.array([10.0, 10.0, 4.0, 3.9, 4.1])  # its front is at 4
    assert hidden(bodies, sx, np.zeros(5), depth).tolist() == [True, False, False, False, True]


def test_points_follow_their_object_and_the_camera():
    turn, camera_turn = rotation(Z_AXIS, math.pi / 2), rotation(Y_AXIS, math.pi / 6)
    shift = np.array([0.5, 0.0, 0.0])
    wall = solid("halfspace", CUBE, (0.0, 0.0, 9.0), rotation(X_AXIS, -math.pi / 2))
    cube = solid("box", CUBE, (0.0, 0.0, 0.0))
    at = Pose(IDENTITY, np.array([0.0, 0.0, 5.0]))
    moved = Pose(turn, np.array([0.0, 0.0, 5.0]) + shift)
    seen = [Pose(camera_turn, np.zeros(3)), Pose(product(camera_turn, turn), apply(camera_turn, moved.shift))]
    pair = render_pair(Stage([wall, cube], [0, 1], [HERE, at], seen), Pinhole(41, 41, 40.0, 20.0, 20.0))
    x, y, z = pair.points1[pair.owners == 1].T
    assert len(x) > 300
    assert np.allclose(z, 4.0)
    # by hand: about z through the cube's center (x, y -> -y, x), shifted, then the camera's 30 degrees
    x, y = 0.5 - y, x
    expected = np.stack([x * math.sqrt(0.75) + z / 2, y, -x / 2 + z * math.sqrt(0.75)], axis=1)
    assert np.allclose(pair.points2[pair.owners == 1], expected)
    x, y, z = pair.points1[pair.owners == 0].T
    assert np.allclose(z, 9.0)
    expected = np.stack([x * math.sqrt(0.75) + z / 2, y, -x / 2 + z * math.sqrt(0.75)], axis=1)
    assert np.allclose(pair.points2[pair.owners == 0], expected)


def test_wall_covered_by_a_moving_box_is_dropped_and_uncovered_wall_never_was_seen():
    wall = solid("box", (50.0, 50.0, 0.5), (0.0, 0.0, 10.5))
    before, after = Pose(IDENTITY, np.array([-1.0, 0.0, 5.0])), Pose(IDENTITY, np.array([1.0, 0.0, 5.0]))
    stage = Stage([wall, solid("box", (0.5, 0.5, 0.5), (0.0,) * 3)], [0, 1], [HERE, before], [HERE, after])
    pair = render_pair(stage, Pinhole(101, 61, 99.5, 50.0, 30.3))
    sx, sy = (pair.points1[:, :2] / pair.points1[:, 2:]).T
    covers_before = (sx > -1 / 3) & (sx < -0.5 / 5.5) & (np.abs(sy) < 1 / 9)
    covered_after = (sx > 0.5 / 5.5) & (sx < 1 / 3) & (np.abs(sy) < np.minimum(sx, 1 / 9))  # side, then front
    assert covers_before[pair.owners == 1].all()
    on_wall = pair.owners == 0
    assert np.array_equal(~pair.visible[on_wall], covered_after[on_wall])
    side = (pair.owners == 1) & (pair.points1[:, 2] > 4.5 + 1e-9)  # x = -0.5: faces away in frame 2
    front = (pair.owners == 1) & ~side
    assert side.any() and not pair.visible[side].any()
    assert front.any() and pair.visible[front].all()


def test_points_leaving_the_image_or_beyond_40_m_are_dropped():
    wall = solid("box", (100.0, 100.0, 0.5), (0.0, 0.0, 39.5))
    camera = Pinhole(21, 21, 20.0, 10.0, 10.0)
    aside = Pose(IDENTITY, np.array([3.9, 0.0, 0.0]))  # 2 pixels
    pair = render_pair(Stage([wall], [0], [HERE], [aside]), camera)
    assert len(pair.pixels) == 21 * 21
    assert sorted(set((pair.pixels[pair.visible] % 21).tolist())) == list(range(2, 21))
    back = Pose(IDENTITY, np.array([0.0, 0.0, 1.5]))
    assert not render_pair(Stage([wall], [0], [HERE], [back]), camera).visible.any()
    assert len(render_pair(Stage([wall], [0], [back], [HERE]), camera).pixels) == 0


def test_image_bounds_change_no_hit():
    for key in ("a", "b"):
        stage, camera = draw_stage(key), pinhole(72)
        pair = render_pair(stage, camera)
        unbounded = [b._replace(slopes=None, nearest=0.0) for b in bodies_in_view(stage, stage.poses1)]
        depth, owner = cast_image(unbounded, camera)
        assert np.array_equal(depth.ravel()[pair.pixels], pair.points1[:, 2])
        assert np.array_equal(owner.ravel()[pair.pixels], pair.owners)
        assert (np.delete(depth.ravel(), pair.pixels) > 40.0).all()
        unbounded = [b._replace(slopes=None, nearest=0.0) for b in bodies_in_view(stage, stage.poses2)]
        sx, sy = (pair.points2[:, :2] / pair.points2[:, 2:]).T
        in_image = (np.abs(sx) <= 63.5 / 140) & (np.abs(sy) <= 35.5 / 140) & (pair.points2[:, 2] <= 40.0)
        expected = in_image & ~hidden(unbounded, sx, sy, pair.points2[:, 2])
        assert np.array_equal(pair.visible, expected)
        assert 0.2 < pair.visible.mean() < 1.0


@pytest.mark.parametrize("key", ["e", "g"])
def test_every_kept_point_is_on_its_object_and_nothing_stands_before_it(key):
    stage = draw_stage(key)
    pair = render_pair(stage, pinhole(36))
    kept = np.flatnonzero(pair.visible)[::16]
    fractions = np.linspace(0.02, 1.0 - 1e-5, 60)
    for points, poses in ((pair.points1[kept], stage.poses1), (pair.points2[kept], stage.poses2)):
        rays = points[:, None] * fractions[None, :, None]
        deepest = np.full(len(kept), np.inf)
        for part, owner in zip(stage.solids, stage.owners, strict=True):
            before = inside(part, to_object(poses[owner], rays.reshape(-1, 3)))
            assert before.min() > 1.0 - 1e-9
            mine = pair.owners[kept] == owner
            here = inside(part, to_object(poses[owner], points[mine]))
            deepest[mine] = np.minimum(deepest[mine], here)
        assert np.allclose(deepest, 1.0, atol=1e-9)


def test_each_object_moves_rigidly_and_objects_move_apart():
    stage = draw_stage("h")
    pair = render_pair(stage, pinhole(135))
    random = np.random.default_rng(0)
    motions = []
    for owner in np.unique(pair.owners):
        rows = np.flatnonzero((pair.owners == owner) & pair.visible)
        if len(rows) < 30:
            continue
        a, b = random.choice(rows, (2, 200))
        for precision, tolerance in ((np.float64, 1e-9), (np.float32, 1e-4)):
            one, two = pair.points1.astype(precision), pair.points2.astype(precision)
            before, after = np.linalg.norm(one[a] - one[b], axis=1), np.linalg.norm(two[a] - two[b], axis=1)
            assert np.abs(before - after).max() < tolerance
        motions.append((pair.points2[rows] - pair.points1[rows]).mean(axis=0))
    assert len(motions) >= 6
    assert np.linalg.norm(np.array(motions) - motions[0], axis=1)[1:].min() > 0.01
