# SPDX-License-Identifier: MIT
"""Random augmentation of a training sample."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from bpfn_cli.config import settings

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
    rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    matrix = np.diag(scale) @ rotation.T
    shift = generator.uniform(-options.shift_m, options.shift_m, 3)
    shift2 = generator.uniform(-options.shift2_m, options.shift2_m, 3)
    start, end, target = (cloud @ matrix + shift for cloud in (pc1, pc1 + flow, pc2))
    end, target = end + shift2, target + shift2
    flow = end - start
    if options.jitter_m:
        start = start + generator.normal(0, options.jitter_m, start.shape)
        target = target + generator.normal(0, options.jitter_m, target.shape)
    return start.astype(np.float32), target.astype(np.float32), flow.astype(np.float32)
