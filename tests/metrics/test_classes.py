# SPDX-License-Identifier: MIT
"""Errors by class of points, by hand and against the evaluation of Argoverse 2."""

from __future__ import annotations

import os

import numpy as np
import pytest

from bpfn_cli.metrics.classes import (
    BUCKETS,
    CATEGORIES,
    PARTITIONS,
    ClassSums,
    Truth,
    bucket_labels,
    bucket_normalized,
    sum_of,
)

REAL_DATA = os.environ.get("BPFN_REAL_DATA")
CAR, SIGN, WALKER = (CATEGORIES.index(name) for name in ("REGULAR_VEHICLE", "SIGN", "PEDESTRIAN"))
# Metres, x left, y up, z forward. The vehicle drives 1 m forward: static points come 1 m closer.
POINTS = np.array([(0, 0, 5), (0, 9, 5), (6, 0, 8), (0, 0, 20), (-30, 0, 0), (0, 0, 36)], np.float32)
DRIVE = np.eye(4)
DRIVE[2, 3] = -1
BEYOND = np.array([(0, 0, 0), (0.05, 0, 0), (0, 0, 0.049), (0, 0, 3), (0.3, 0, 0), (0, 0, 0)])  # of the vehicle
FLOW = BEYOND - np.array([0, 0, 1])
GROUPS = np.array([0, CAR, CAR, WALKER, SIGN, 0], np.uint8)


def truth(**changes: object) -> Truth:
    return Truth.of(POINTS.astype(float), FLOW, **{"ego_motion": DRIVE, "categories": GROUPS, **changes})  # type: ignore[arg-type]


def classes(name: str, known: Truth) -> list[str]:
    partition = PARTITIONS[name]
    labels = partition.labels(known)
    assert labels is not None
    return ["" if label < 0 else partition.classes[label] for label in labels]


def test_classes_of_six_points_by_hand() -> None:
    known = truth()
    assert known.given
    moving = [False, True, False, True, True, False]
    assert classes("motion", known) == ["dynamic" if one else "static" for one in moving]
    assert classes("three-way", known) == [
        "background",
        "moving foreground",
        "still foreground",
        "moving foreground",
        "moving foreground",
        "background",
    ]
    assert classes("category", known) == ["background", "car", "car", "pedestrian", "other object", "background"]
    speeds = ["0 to 0.05", "0.05 to 0.2", "0 to 0.05", "2 and more", "0.2 to 0.5", "0 to 0.05"]
    assert classes("speed", known) == speeds
    # Horizontal: 9 m of height do not count.
    assert classes("range", known) == ["0 to 10", "0 to 10", "10 to 20", "20 to 35", "20 to 35", "35 and more"]


def test_moving_background_is_in_no_three_way_class() -> None:
    found = classes("three-way", truth(categories=np.zeros(6, np.uint8)))
    assert found == ["background", "", "background", "", "", "background"]


def test_without_categories_there_is_no_three_way() -> None:
    known = truth(categories=None)
    assert PARTITIONS["three-way"].labels(known) is PARTITIONS["category"].labels(known) is bucket_labels(known) is None


def test_motion_of_the_sensor_is_fitted_where_it_is_not_given() -> None:
    points = np.random.default_rng(0).uniform(-20, 20, (400, 3))
    angle = 0.02
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    flow = points @ turn.T + (0.1, 0, -1) - points
    flow[:40] += (0.5, 0, 0)
    flow[40:50] = 100  # unknown there
    known = Truth.of(points, flow, np.arange(400) // 10 != 4)
    assert not known.given
    assert known.speed[:40] == pytest.approx(0.5, abs=1e-3)
    assert known.speed[50:] == pytest.approx(0, abs=1e-3)


def test_large_near_vehicle_is_not_taken_for_the_scene() -> None:
    """Half of the points stand still; the others are two vehicles, which a single fit follows in part."""
    generator = np.random.default_rng(0)
    points = generator.uniform((-15, -1, 10), (15, 2, 34), (400, 3))
    points[200:320] = generator.uniform((-5, -1, 3), (-2, 1, 8), (120, 3))
    points[320:] = generator.uniform((2, -1, 4), (4, 1, 9), (80, 3))
    flow = np.tile((0.0, 0, -1.5), (400, 1))
    flow[200:320] += (0, 0, 1.2)
    flow[320:] += (0.3, 0, 1.6)
    known = Truth.of(points, flow)
    assert known.speed[:200] == pytest.approx(0, abs=1e-3)
    assert known.speed[200:320] == pytest.approx(1.2, abs=1e-3)
    assert known.speed[320:] == pytest.approx(np.hypot(0.3, 1.6), abs=1e-3)


@pytest.mark.realdata
@pytest.mark.skipif(REAL_DATA is None, reason="BPFN_REAL_DATA is not set")
def test_fitted_motion_finds_the_points_that_argoverse_labels_as_dynamic() -> None:
    with np.load(f"{REAL_DATA}/argoverse2/pair.npz") as pair:
        known = Truth.of(pair["pc1"][:, [1, 2, 0]], pair["flow"][:, [1, 2, 0]])
        assert np.array_equal(known.dynamic, pair["dynamic"])


@pytest.mark.realdata
@pytest.mark.skipif(REAL_DATA is None, reason="BPFN_REAL_DATA is not set")
@pytest.mark.parametrize(("scene", "static"), [("000182", 0.5), ("000028", 0.59), ("000096", 0.69)])
def test_motion_of_kitti_scenes_with_large_vehicles_is_found(scene: str, static: float) -> None:
    """The shares are those of RANSAC with 150 draws of four points; a single fit has 8 % at most."""
    pc1, pc2 = (np.load(f"{REAL_DATA}/kitti_s/{scene}/{name}.npy") for name in ("pc1", "pc2"))
    assert 1 - Truth.of(pc1, pc2 - pc1).dynamic.mean() > static


def test_errors_and_points_are_summed_over_scenes_and_divided_once() -> None:
    one = ClassSums.of(np.array([0, 0, 0, 1, -1]), 3, {"model": np.array([1.0, 2, 3, 5, 100])})
    other = ClassSums.of(np.array([0, 1]), 3, {"model": np.array([10.0, 7])})
    total = sum_of([one, other])
    assert total.points == (4, 2, 0)
    assert total.epe3d("model") == (4, 6, None)  # the mean of the scenes' means would be 6


def test_bucket_normalized_epe_by_hand() -> None:
    """Cars: static 0.02 and 0.04 m off; 0.05 m/frame, 0.1 off; 3 m/frame, 1.5 and 4.5 off of 3 and 6 m/frame."""
    speed = np.array([0, 0.039, 0.05, 3, 6, 1])
    known = Truth(np.zeros((6, 3)), speed, speed >= 0.05, np.array([CAR] * 5 + [WALKER]))
    labels = bucket_labels(known)
    assert labels is not None
    assert (labels % BUCKETS).tolist() == [0, 0, 1, 50, 50, 25]
    errors = np.array([0.02, 0.04, 0.1, 1.5, 4.5, 0.5])
    sums = ClassSums.of(labels, 5 * BUCKETS, {"model": errors, "speed": speed})
    found = bucket_normalized(sums.errors_m["model"], sums.errors_m["speed"], sums.points)
    assert found.static == (None, pytest.approx(0.03), None, None, None)
    assert found.dynamic == (None, pytest.approx((0.1 / 0.05 + 6 / 9) / 2), None, pytest.approx(0.5), None)


def test_signs_and_animals_are_in_no_bucket() -> None:
    known = Truth(np.zeros((2, 3)), np.zeros(2), np.zeros(2, bool), np.array([SIGN, CATEGORIES.index("DOG")]))
    assert bucket_labels(known).tolist() == [-1, -1]  # type: ignore[union-attr]


def test_three_way_agrees_with_the_evaluation_of_argoverse() -> None:
    theirs = pytest.importorskip("av2.evaluation.scene_flow.eval", reason="av2-api is not installed")
    constants = pytest.importorskip("av2.evaluation.scene_flow.constants")
    assert {name: index for index, name in enumerate(CATEGORIES)} == constants.CATEGORY_TO_INDEX
    generator = np.random.default_rng(0)
    count = 3000
    points = generator.uniform(-34, 34, (count, 3))
    categories = generator.integers(0, 31, count) * (generator.random(count) < 0.4)
    beyond = generator.normal(0, 0.05, (count, 3)) * (categories > 0)[:, None]
    flow = beyond - np.array([0, 0, 1])
    predicted = flow + generator.normal(0, 0.1, (count, 3))
    valid = generator.random(count) < 0.9
    known = Truth.of(points, flow, ego_motion=DRIVE, categories=categories.astype(np.uint8))
    labels = PARTITIONS["three-way"].labels(known)
    assert labels is not None
    errors = {"model": np.linalg.norm(predicted - flow, axis=1)}
    ours = ClassSums.of(np.where(valid, labels, -1), 3, errors)
    everywhere = np.ones(count, bool)
    moving = np.linalg.norm(beyond, axis=1) >= constants.SCENE_FLOW_DYNAMIC_THRESHOLD
    table = theirs.compute_metrics(
        predicted,
        everywhere,
        flow,
        categories,
        moving,
        everywhere,
        valid,
        constants.FOREGROUND_BACKGROUND_BREAKDOWN,
    )
    rows = zip(*(table[key] for key in ("Class", "Motion", "Distance", "Count", "EPE")), strict=True)
    found = {(cls, motion): (number, epe) for cls, motion, distance, number, epe in rows if distance == "Close"}
    wanted = [("Foreground", "Dynamic"), ("Foreground", "Static"), ("Background", "Static")]
    assert ours.points == tuple(found[key][0] for key in wanted)
    assert ours.epe3d("model") == pytest.approx([found[key][1] for key in wanted])
