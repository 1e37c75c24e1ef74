# SPDX-License-Identifier: MIT
"""Random sampling of points from a scene, and augmentation of a training sample."""

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

    scale: per axis, 1 +- this. rotation_degrees: about the vertical axis, +- this. shift_m: of both clouds, per axis.
    shift2_m: additional shift of the second cloud, per axis. jitter_m: standard deviation of noise on each coordinate.
    """

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


def sample_points(scene: Scene, points: int, generator: np.random.Generator) -> Scene:
    """Draw `points` points from each cloud, independently; without replacement unless the cloud has fewer."""
    chosen1, chosen2 = (_draw(len(cloud), points, generator) for cloud in (scene.pc1, scene.pc2))
    valid = None if scene.valid is None else scene.valid[chosen1]
    return replace(scene, pc1=scene.pc1[chosen1], pc2=scene.pc2[chosen2], flow=scene.flow[chosen1], valid=valid)


def even_rows(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, evenly spaced; for statistics that do not need every point."""
    taken = min(count, most)
    return np.arange(taken) * count // max(taken, 1)


def _draw(count: int, points: int, generator: np.random.Generator) -> np.ndarray:
    if points <= count:
        return generator.choice(count, points, replace=False, shuffle=False)
    return generator.choice(count, points, replace=True)
