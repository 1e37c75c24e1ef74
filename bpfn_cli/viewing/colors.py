# SPDX-License-Identifier: MIT
"""Colors of flows and errors, for pages, stills and files."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

UNKNOWN = (128, 128, 128)  # no prediction, or no true flow
# Matplotlib's plasma from 0.2 to 0.9: even steps of lightness, safe for color-blind readers, and visible on white and
# on black.
_ERROR_COLORS = ("6a00a8", "8f0da4", "b12a90", "cc4778", "e16462", "f2844b", "fca636", "fcce25")
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_WHEEL_PIXELS = 96
_LEAST_M = 0.05  # the end of a scale for flows or errors that are about zero


def flow_colors(flow: np.ndarray, longest_m: float) -> np.ndarray:
    """(N, 3) uint8: the horizontal direction as hue, the length as saturation and value; zero flow is gray.

    Args: flow: (N, 3) metres, axes x left, y up, z forward. longest_m: the length with the full color.
    """
    finite = np.isfinite(flow).all(axis=1)
    safe = np.where(finite[:, None], flow, 0)
    share = np.clip(np.linalg.norm(safe, axis=1) / longest_m, 0, 1)
    saturation, value = share**0.7, 0.55 + 0.45 * share
    hue = np.arctan2(safe[:, 0], safe[:, 2]) / (2 * np.pi) % 1  # forward is 0
    # From HSV, see https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    k = (np.array([5, 3, 1]) + 6 * hue[:, None]) % 6
    rgb = value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    colors = np.rint(255 * rgb).astype(np.uint8)
    colors[~finite] = UNKNOWN
    return colors


def error_colors(errors_m: np.ndarray, largest_m: float) -> np.ndarray:
    """(N, 3) uint8. Args: errors_m: (N,) metres; NaN is gray. largest_m: the error with the last color."""
    anchors = np.array([[*bytes.fromhex(one)] for one in _ERROR_COLORS])
    at = np.clip(np.nan_to_num(errors_m) / largest_m, 0, 1) * (len(anchors) - 1)
    rgb = np.stack([np.interp(at, np.arange(len(anchors)), column) for column in anchors.T], axis=1)
    colors = np.rint(rgb).astype(np.uint8)
    colors[~np.isfinite(errors_m)] = UNKNOWN
    return colors


def flow_scale_m(flows: Iterable[np.ndarray]) -> float:
    """The length with the full color in all of these flows, each (N, 3) metres."""
    return _end_of_scale([np.linalg.norm(flow, axis=1) for flow in flows])


def error_scale_m(errors: Iterable[np.ndarray]) -> float:
    """The error with the last color, for all of these errors, each (N,) metres."""
    return _end_of_scale([*errors])


def flow_wheel() -> np.ndarray:
    """(S, S, 4) uint8 RGBA: colors of directions seen from above, forward at the top, the full length at the rim."""
    steps = (np.arange(_WHEEL_PIXELS) + 0.5) / _WHEEL_PIXELS * 2 - 1
    right, down = np.meshgrid(steps, steps)
    flow = np.stack([-right, np.zeros_like(right), -down], axis=-1).reshape(-1, 3)
    radius = np.hypot(right, down).reshape(-1)
    alpha = np.rint(255 * np.clip((1 - radius) * _WHEEL_PIXELS / 2, 0, 1)).astype(np.uint8)
    return np.concatenate([flow_colors(flow, 1), alpha[:, None]], axis=1).reshape(_WHEEL_PIXELS, _WHEEL_PIXELS, 4)


def error_ramp() -> np.ndarray:
    """(1, 128, 3) uint8: the colors of errors from zero to the end of the scale."""
    return error_colors(np.linspace(0, 1, 128), 1)[None]


def _end_of_scale(lengths: list[np.ndarray]) -> float:
    """A round number at or above the 95th percentile."""
    together = np.concatenate([*lengths, np.zeros(0)])
    together = together[np.isfinite(together)]
    high = max(float(np.percentile(together, 95)) if len(together) else 0.0, _LEAST_M)
    power = 10 ** np.floor(np.log10(high))
    return float(next(step for step in _STEPS if step * power >= high * (1 - 1e-9)) * power)
