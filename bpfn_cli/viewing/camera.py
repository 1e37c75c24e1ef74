# SPDX-License-Identifier: MIT
"""The view on a scene that pages and stills begin with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VERTICAL_FIELD = 40.0  # degrees
_BEHIND = np.array([0.0, 0.42, -1.0])  # from what is looked at to the camera
_SHOWN = 98.5  # per cent of the points
_MARGIN = 1.04
_WIDEST = 3.0
_LEAST_DISTANCE_M = 2.0


@dataclass(frozen=True)
class View:
    """A camera with `VERTICAL_FIELD` degrees; (3,) metres in axes x left, y up, z forward, as is `target`."""

    position: np.ndarray
    target: np.ndarray

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) to the right and up, where the picture ends at 1 above, and (N,) metres of depth."""
        right, up, back = _basis(self.position - self.target)
        seen = (points - self.position) @ np.stack([right, up, back], axis=1)
        depth = -seen[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            return seen[:, :2] / depth[:, None] / np.tan(np.radians(VERTICAL_FIELD) / 2), depth


def default_view(points: np.ndarray, aspect: float) -> View:
    """From behind and above, as near as most of the points allow.

    Args: points: (N, 3) metres, axes x left, y up, z forward; N may be 0. aspect: width by height.
    """
    points = points if len(points) else np.zeros((1, 3))
    low, high = np.percentile(points, (100 - _SHOWN, _SHOWN), axis=0)
    target = (low + high) / 2
    right, up, back = _basis(_BEHIND)
    slope = np.tan(np.radians(VERTICAL_FIELD) / 2)
    for _ in range(3):  # near points take more of the picture, so its middle is another one
        seen = (points - target) @ np.stack([right, up, back], axis=1)
        needed = np.maximum(np.abs(seen[:, 0]) / (slope * aspect), np.abs(seen[:, 1]) / slope) + seen[:, 2]
        distance = max(_MARGIN * float(np.percentile(needed, _SHOWN)), _LEAST_DISTANCE_M)
        view = View(target + back * distance, target)
        at, _ = view.project(points)
        x, y = np.percentile(at, (100 - _SHOWN, _SHOWN), axis=0).mean(axis=0) * slope * distance
        target = target + x * right + y * up
    return view


def natural_aspect(points: np.ndarray) -> float:
    """Width by height of a picture that most of the points fill. Args: as of `default_view`."""
    points = points if len(points) else np.zeros((1, 3))
    seen, _ = default_view(points, 2.0).project(points)
    width, height = np.percentile(np.abs(seen), _SHOWN, axis=0)
    return float(np.clip(width / max(height, 1e-9), 1.0, _WIDEST))


def _basis(back: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors to the right, up and back of a camera."""
    back = back / np.linalg.norm(back)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    return right, np.cross(back, right), back
