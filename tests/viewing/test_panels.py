# SPDX-License-Identifier: MIT
"""What is drawn of a scene."""

from __future__ import annotations

import numpy as np
import pytest
from viewed_scenes import ODD, POINTS, viewed

from bpfn_cli.errors import ShapeError, UsageError
from bpfn_cli.frames import FRAMES, axes_of
from bpfn_cli.viewing.camera import default_view, natural_aspect
from bpfn_cli.viewing.panels import Panels
from bpfn_cli.viewing.scene import Scene


def test_flows_come_with_their_errors() -> None:
    drawn = Panels.of(viewed())
    assert [panel.name for panel in drawn.flows] == ["exact", "off", "true flow"]
    assert [panel.figures for panel in drawn.flows] == [
        "EPE3D 0.0000 m, mean flow 1.000 m",
        "EPE3D 0.5000 m, mean flow 1.118 m",
        "mean flow 1.000 m",
    ]
    assert (drawn.longest_m, drawn.largest_m) == (1.5, 0.5)


def test_errors_are_known_where_the_mask_says() -> None:
    mask = np.arange(POINTS) < 10
    off = Panels.of(viewed(mask=mask)).flows[1]
    assert off.errors is not None
    assert np.array_equal(np.isfinite(off.errors), mask)
    assert Panels.of(viewed(mask=~mask & mask)).flows[1].errors is None


def test_own_motion_is_left_without_what_most_points_share() -> None:
    rng = np.random.default_rng(0)
    pc1 = rng.uniform(-5, 5, (200, 3)) + np.array([4e6, 0, 20])  # map coordinates
    turn = np.array([[np.cos(0.05), 0, np.sin(0.05)], [0, 1, 0], [-np.sin(0.05), 0, np.cos(0.05)]])
    moves = np.where(np.arange(200)[:, None] < 20, (0.0, 0.0, 1.0), 0.0)
    middle = pc1.mean(axis=0)
    flow = (pc1 - middle) @ turn.T + middle + (0.1, 0, -0.8) + moves - pc1
    flow[-1] = np.nan
    drawn = Panels.of(Scene("a", pc1, pc1, {"one": flow}))
    (one,) = drawn.flows
    assert np.allclose(one.own[:-1], moves[:-1], atol=0.01)
    assert np.isnan(one.own[-1]).all()
    assert drawn.longest_own_m == 1.0 and drawn.longest_m > 1


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_are_drawn_alike(frame: str) -> None:
    one, axes = viewed(), axes_of(frame)
    flows = {name: flow @ axes for name, flow in one.flows.items()}
    other = Scene(one.name, one.pc1 @ axes, one.pc2 @ axes, flows, one.truth @ axes, frame=frame)
    drawn, expected = Panels.of(other), Panels.of(one)
    assert np.allclose(drawn.pc1, expected.pc1, atol=1e-5) and np.allclose(drawn.pc2, expected.pc2, atol=1e-5)
    assert np.allclose(drawn.flows[1].flow, expected.flows[1].flow, atol=1e-5)


def test_up_is_up_and_left_is_left_in_the_first_view() -> None:
    points = viewed(500).pc1
    view = default_view(points, 1.5)
    middle = view.target
    (left, up, ahead), depth = view.project(middle + np.float32([(1, 0, 0), (0, 1, 0), (0, 0, 1)]))
    assert left[0] < -0.01 and abs(left[1]) < 1e-6
    assert up[1] > 0.01 and abs(up[0]) < 1e-6
    assert ahead[1] > 0.001 and depth[2] > depth[0]


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.8])
def test_first_view_shows_most_points_and_fills_the_picture(aspect: float) -> None:
    points = viewed(2000).pc1
    at, depth = default_view(points, aspect).project(points)
    inside = (np.abs(at) <= (aspect, 1)).all(axis=1)
    assert (depth > 0).all() and inside.mean() > 0.95
    assert np.percentile(np.abs(at) / (aspect, 1), 98, axis=0).max() > 0.85
    assert 1 < natural_aspect(points) < 3


@pytest.mark.parametrize("case", ODD)
def test_odd_scene_has_a_view(case: str) -> None:
    drawn = Panels.of(ODD[case])
    assert all(panel.figures for panel in drawn.flows)
    view = drawn.view(drawn.aspect)
    assert np.isfinite([*view.position, *view.target, drawn.aspect, *drawn.center]).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"flow short: shape \(3, 3\) found, \(60, 3\) expected"):
        viewed(flows={"short": np.zeros((3, 3))})
    with pytest.raises(ShapeError, match="mask"):
        viewed(mask=np.ones(3, bool))
    with pytest.raises(ShapeError, match="pc2"):
        viewed(pc2=np.zeros((0, 3)))
    with pytest.raises(UsageError, match="axes wrong"):
        viewed(frame="wrong")
