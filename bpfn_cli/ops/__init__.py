# SPDX-License-Identifier: MIT
"""Pure functions on point sets. Each has a plain torch version, which the faster ones are tested against."""

from bpfn_cli.ops.consistency import backward_errors, confidence, nearest_squares, roughness
from bpfn_cli.ops.interpolation import gather, interpolate, inverse_distance_weights, upsample, warp
from bpfn_cli.ops.neighborhood import convolve_neighbors, flatten_indices, propagate_max
from bpfn_cli.ops.neighbors import knn
from bpfn_cli.ops.precision import matrix_precision
from bpfn_cli.ops.pyramid import build_pyramid, level_sizes
from bpfn_cli.ops.rigid import (
    MOVING_M,
    motion_residual,
    moving_points,
    rigid_icp,
    rigid_motion,
    scene_motion,
    shared_motion,
)
from bpfn_cli.ops.sampling import farthest_point_sample

__all__ = [
    "MOVING_M",
    "backward_errors",
    "build_pyramid",
    "confidence",
    "convolve_neighbors",
    "farthest_point_sample",
    "flatten_indices",
    "gather",
    "interpolate",
    "inverse_distance_weights",
    "knn",
    "level_sizes",
    "matrix_precision",
    "motion_residual",
    "moving_points",
    "nearest_squares",
    "propagate_max",
    "rigid_icp",
    "rigid_motion",
    "roughness",
    "scene_motion",
    "shared_motion",
    "upsample",
    "warp",
]
