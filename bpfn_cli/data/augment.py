# SPDX-License-Identifier: MIT
"""Random sampling of points from a scene, crops, and augmentation of a training sample."""

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from bpfn_cli.config import settings
from bpfn_cli.structures import Scene

_Metres = Annotated[float, Field(ge=0, le=100)]

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # pc1, pc2, flow: (points, 3) float32


@settings
class AugmentSettings:
    """Augmentation of a training sample, as in the published training.

    crop: a sample is a region of a cloud with up to this many times as many points; 1: the whole cloud. The
    network then sees clouds that are denser, in steps that take no longer.
    scale: largest relative scaling, per axis. rotation_degrees: largest rotation about the vertical axis, either way.
    shift_m: largest shift of both clouds, per axis. shift2_m: largest additional shift of the second cloud, per axis.
    jitter_m: standard deviation of the noise added to each coordinate.
    """

    crop: Annotated[float, Field(ge=1, le=64)] = 1.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.05
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    shift_m: _Metres = 1.0
    shift2_m: _Metres = 0.3
    jitter_m: _Metres = 0.0


def augment(sample: Sample, options: AugmentSettings, generator: np.random.Generator) -> Sample:
    """Scale, rotate and shift both clouds, shift the second once more, and recompute the flow.

    Source: released training code of HPLFlowNet and PointPWC-Net.
    """
    pc1, pc2, flow = sample
    scale = generator.uniform(1 - options.scale, 1 + options.scale, 3)
    angle = np.deg2rad(generator.uniform(-options.rotation_degrees, options.rotation_degrees))
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.diag(scale) @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    shift = generator.uniform(-options.shift_m, options.shift_m, 3)
    shift2 = generator.uniform(-options.shift2_m, options.shift2_m, 3)
    pc1, end, pc2 = (cloud @ matrix + shift for cloud in (pc1, pc1 + flow, pc2))
    end, pc2 = end + shift2, pc2 + shift2
    flow = end - pc1
    if options.jitter_m:
        pc1, pc2 = (cloud + generator.normal(0, options.jitter_m, cloud.shape) for cloud in (pc1, pc2))
    return pc1.astype(np.float32), pc2.astype(np.float32), flow.astype(np.float32)


def sample_points(scene: Scene, points: int, generator: np.random.Generator, least: int | None = None) -> Scene:
    """Draw `points` points from each cloud, independently; without replacement unless the cloud has fewer.

    At least one point of the first cloud has a known flow, if any has.

    Args: least: if a cloud has fewer than `points`, draw as many as it has, but at least this many; None: `points`.
    """
    count = points if least is None else max(least, min(points, len(scene.pc1), len(scene.pc2)))
    chosen1, chosen2 = (_draw(len(cloud), count, generator) for cloud in (scene.pc1, scene.pc2))
    if scene.valid is not None and not scene.valid[chosen1].any() and scene.valid.any():
        chosen1[0] = np.flatnonzero(scene.valid)[0]  # so that there is something to measure
    return _rows(scene, chosen1, chosen2)


def crop(scene: Scene, points: int, generator: np.random.Generator) -> Scene:
    """The `points` points of each cloud nearest to a random point of the first, and to where this region moves.

    Both clouds must have more points than that. Without labels, the region of the second cloud does not move.
    """
    center = scene.pc1[generator.integers(len(scene.pc1))]
    chosen1 = _nearest(scene.pc1, center, points)
    known = chosen1 if scene.valid is None else chosen1[scene.valid[chosen1]]
    motion = scene.flow[known].mean(axis=0) if scene.flow is not None and len(known) else 0
    return _rows(scene, chosen1, _nearest(scene.pc2, center + motion, points))


def even_rows(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, evenly spaced; for statistics that do not need every point."""
    taken = min(count, most)
    return np.arange(taken) * count // max(taken, 1)


def _draw(count: int, points: int, generator: np.random.Generator) -> np.ndarray:
    if points <= count:
        return generator.choice(count, points, replace=False, shuffle=False)
    return generator.choice(count, points, replace=True)


def _rows(scene: Scene, chosen1: np.ndarray, chosen2: np.ndarray) -> Scene:
    """The scene with these points of its clouds."""
    flow, valid, categories = (
        None if each is None else each[chosen1] for each in (scene.flow, scene.valid, scene.categories)
    )
    pc1, pc2 = scene.pc1[chosen1], scene.pc2[chosen2]
    return replace(scene, pc1=pc1, pc2=pc2, flow=flow, valid=valid, kept=None, categories=categories)


def _nearest(cloud: np.ndarray, center: np.ndarray, points: int) -> np.ndarray:
    """Rows of the points nearest to `center`, in the order of the cloud."""
    return np.sort(np.argpartition(np.square(cloud - center).sum(axis=1), points)[:points])
