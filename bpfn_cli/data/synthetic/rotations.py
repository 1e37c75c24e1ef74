# SPDX-License-Identifier: MIT
"""Rotations of points and of other rotations, element by element: BLAS and `einsum` round differently per machine."""

from __future__ import annotations

import itertools
import math

import numpy as np

Triple = tuple[float, float, float]

IDENTITY = np.eye(3)
CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))  # of the unit cube
X_AXIS, Y_AXIS, Z_AXIS = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def rotation(axis: Triple, angle: float) -> np.ndarray:
    """(3, 3) rotation by `angle` radians about `axis`, any length but zero (Rodrigues)."""
    length = math.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
    x, y, z = axis[0] / length, axis[1] / length, axis[2] / length
    c, s = math.cos(angle), math.sin(angle)
    k = 1.0 - c
    return np.array(
        [
            [c + x * x * k, x * y * k - z * s, x * z * k + y * s],
            [x * y * k + z * s, c + y * y * k, y * z * k - x * s],
            [x * z * k - y * s, y * z * k + x * s, c + z * z * k],
        ]
    )


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product of (..., 3, 3) and (..., 3, 3)."""
    return a[..., :, 0:1] * b[..., 0:1, :] + a[..., :, 1:2] * b[..., 1:2, :] + a[..., :, 2:3] * b[..., 2:3, :]


def apply(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(..., 3, 3) matrices times (..., 3) vectors."""
    return a[..., 0] * x[..., 0:1] + a[..., 1] * x[..., 1:2] + a[..., 2] * x[..., 2:3]
