# SPDX-License-Identifier: MIT
"""EPE3D by class of points: sums of errors and counts of points over all scenes, divided once.

A partition gives every point of a scene one class, or none. Speeds are in metres per frame, beyond the motion of the
sensor. See docs/metrics.md for definitions and sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch

from bpfn_cli.ops import MOVING_M, shared_motion

SPEEDS_M = (MOVING_M, 0.2, 0.5, 1.0, 2.0)
RANGES_M = (10, 20, 35)
# Of the bucket-normalized EPE; one more bucket is beyond the last edge.
BUCKET_EDGES_M = np.linspace(0, 2, 51)
BUCKETS = len(BUCKET_EDGES_M)

CATEGORIES = (
    *("NONE", "ANIMAL", "ARTICULATED_BUS", "BICYCLE", "BICYCLIST", "BOLLARD", "BOX_TRUCK", "BUS"),
    *("CONSTRUCTION_BARREL", "CONSTRUCTION_CONE", "DOG", "LARGE_VEHICLE", "MESSAGE_BOARD_TRAILER"),
    *("MOBILE_PEDESTRIAN_CROSSING_SIGN", "MOTORCYCLE", "MOTORCYCLIST", "OFFICIAL_SIGNALER", "PEDESTRIAN"),
    *("RAILED_VEHICLE", "REGULAR_VEHICLE", "SCHOOL_BUS", "SIGN", "STOP_SIGN", "STROLLER", "TRAFFIC_LIGHT_TRAILER"),
    *("TRUCK", "TRUCK_CAB", "VEHICULAR_TRAILER", "WHEELCHAIR", "WHEELED_DEVICE", "WHEELED_RIDER"),
)
GROUPS = {
    "background": {"NONE"},
    "car": {"REGULAR_VEHICLE"},
    "other vehicle": {
        *("ARTICULATED_BUS", "BOX_TRUCK", "BUS", "LARGE_VEHICLE", "RAILED_VEHICLE", "SCHOOL_BUS", "TRUCK"),
        *("TRUCK_CAB", "VEHICULAR_TRAILER"),
    },
    "pedestrian": {"PEDESTRIAN", "STROLLER", "WHEELCHAIR", "OFFICIAL_SIGNALER"},
    "wheeled": {"BICYCLE", "BICYCLIST", "MOTORCYCLE", "MOTORCYCLIST", "WHEELED_DEVICE", "WHEELED_RIDER"},
}
OTHER = len(GROUPS)  # animals, and signs, cones and the like, some of which are labeled as moving
_GROUP_OF = np.full(256, OTHER)
for _number, _names in enumerate(GROUPS.values()):
    _GROUP_OF[[CATEGORIES.index(_name) for _name in _names]] = _number


@dataclass(frozen=True)
class Truth:
    """What is known about the N points of a scene.

    Attributes: points: (N, 3) metres. speed: (N,) metres per frame beyond the motion of the sensor, which was `given`
        or fitted to the true flow. dynamic: (N,) bool. categories: (N,) indices into `CATEGORIES`; None: unknown.
    """

    points: np.ndarray
    speed: np.ndarray
    dynamic: np.ndarray
    categories: np.ndarray | None = None
    given: bool = False

    @classmethod
    def of(
        cls,
        points: np.ndarray,
        flow: np.ndarray,
        valid: np.ndarray | None = None,
        *,
        ego_motion: np.ndarray | None = None,
        categories: np.ndarray | None = None,
    ) -> Truth:
        """Args: points, flow: (N, 3), true flow. valid: (N,) bool, where it is known; None: everywhere.

        ego_motion, categories: as in `Scene`; without the first, it is fitted.
        """
        start, motion = points.astype(np.float64), flow.astype(np.float64)
        if ego_motion is not None:
            static = start @ ego_motion[:3, :3].T + ego_motion[:3, 3]
            speed = np.linalg.norm(start + motion - static, axis=1)
        else:
            counted = None if valid is None else torch.from_numpy(valid)
            speed = shared_motion(torch.from_numpy(start), torch.from_numpy(motion), counted)[2].numpy()
        return cls(points, speed, speed >= MOVING_M, categories, ego_motion is not None)


@dataclass(frozen=True)
class Partition:
    """A division of points into classes.

    Attributes: meaning: for titles. labels: (N,) index into `classes` of each point, -1: in none; None: it cannot be
        told. needs_categories: only known with them.
    """

    name: str
    meaning: str
    classes: tuple[str, ...]
    labels: Callable[[Truth], np.ndarray | None]
    needs_categories: bool = False


@dataclass(frozen=True)
class ClassSums:
    """Sums over points by class. errors_m: of each predictor, metres."""

    points: tuple[int, ...]
    errors_m: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, labels: np.ndarray, count: int, errors_m: Mapping[str, np.ndarray]) -> ClassSums:
        """Of the points of a scene. Args: labels: (N,), see `Partition`, in `count` classes. errors_m: (N,) each."""
        has_class = labels >= 0

        def summed(values: np.ndarray) -> tuple[float, ...]:
            return tuple(np.bincount(labels[has_class], values[has_class], count).tolist())

        points = np.bincount(labels[has_class], minlength=count).tolist()
        return cls(tuple(points), {name: summed(values) for name, values in errors_m.items()})

    def __add__(self, other: ClassSums) -> ClassSums:
        errors = {name: _added(sums, other.errors_m[name]) for name, sums in self.errors_m.items()}
        return ClassSums(_added(self.points, other.points), errors)  # type: ignore[arg-type]

    def epe3d(self, predictor: str) -> tuple[float | None, ...]:
        """Mean error in metres by class; None: the class has no point."""
        return mean_errors(self.errors_m[predictor], self.points)


@dataclass(frozen=True)
class BucketNormalized:
    """Bucket-normalized EPE by class of `GROUPS`; None: no point.

    static: EPE3D in metres below 0.04 m per frame. dynamic: mean over the faster buckets with points of mean error
    divided by mean speed, which is 1 for the flow of a static world.
    """

    static: tuple[float | None, ...]
    dynamic: tuple[float | None, ...]


def mean_errors(sums_m: Iterable[float], points: Iterable[int]) -> tuple[float | None, ...]:
    """Sums divided by counts; None: no point."""
    return tuple(total / count if count else None for total, count in zip(sums_m, points, strict=True))


def sum_of(scenes: Iterable[ClassSums]) -> ClassSums:
    """Over scenes, of which there is one at least."""
    return reduce(ClassSums.__add__, scenes)


def bucket_labels(truth: Truth) -> np.ndarray | None:
    """(N,) class times `BUCKETS` plus bucket of speed; -1: in none. None: there are no categories."""
    groups = _groups(truth)
    if groups is None:
        return None
    buckets = np.searchsorted(BUCKET_EDGES_M, truth.speed, side="right") - 1
    return np.where(groups == OTHER, -1, groups * BUCKETS + buckets)


def bucket_normalized(errors_m: Iterable[float], speeds_m: Iterable[float], points: Iterable[int]) -> BucketNormalized:
    """Args: sums over points of errors and speeds, and their numbers, by class and bucket, see `bucket_labels`.

    Source: Khatri et al., I Can't Believe It's Not Scene Flow!, ECCV 2024; 2024 challenge of Argoverse 2.
    """
    errors, speeds, counts = (np.array(list(each), float).reshape(-1, BUCKETS) for each in (errors_m, speeds_m, points))
    static = mean_errors(errors[:, 0].tolist(), counts[:, 0].astype(int).tolist())
    dynamic = []
    for error, speed, count in zip(errors[:, 1:], speeds[:, 1:], counts[:, 1:], strict=True):
        has_points = count > 0
        dynamic.append(float((error[has_points] / speed[has_points]).mean()) if has_points.any() else None)
    return BucketNormalized(static, tuple(dynamic))


def _motion(truth: Truth) -> np.ndarray:
    return np.where(truth.dynamic, 0, 1)


def _three_way(truth: Truth) -> np.ndarray | None:
    if truth.categories is None:
        return None
    # Argoverse 2 counts no moving background, which its labels do not have.
    return np.where(truth.categories > 0, _motion(truth), np.where(truth.dynamic, -1, 2))


def _groups(truth: Truth) -> np.ndarray | None:
    return None if truth.categories is None else _GROUP_OF[truth.categories]


def _speed(truth: Truth) -> np.ndarray:
    return np.searchsorted(SPEEDS_M, truth.speed, side="right")


def _range(truth: Truth) -> np.ndarray:
    return np.searchsorted(RANGES_M, np.hypot(truth.points[:, 0], truth.points[:, 2]), side="right")


def _intervals(edges: tuple[float, ...]) -> tuple[str, ...]:
    between = [f"{low:g} to {high:g}" for low, high in zip((0, *edges), edges, strict=False)]
    return (*between, f"{edges[-1]:g} and more")


def _added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


PARTITIONS: dict[str, Partition] = {
    one.name: one
    for one in (
        Partition("motion", "motion", ("dynamic", "static"), _motion),
        Partition(
            "three-way",
            "motion and foreground",
            ("moving foreground", "still foreground", "background"),
            _three_way,
            needs_categories=True,
        ),
        Partition("category", "category", (*GROUPS, "other object"), _groups, needs_categories=True),
        Partition("speed", "speed [m per frame]", _intervals(SPEEDS_M), _speed),
        Partition("range", "horizontal distance [m]", _intervals(RANGES_M), _range),
    )
}
