# SPDX-License-Identifier: MIT
"""Coordinate frames of clouds: what x, y and z point to."""

import numpy as np

from bpfn_cli.errors import UsageError, did_you_mean, printable

INTERNAL = "internal"
# Where x, y and z point.
FRAMES = {
    INTERNAL: "left,up,forward",
    "lidar": "forward,left,up",
    "nuscenes": "right,forward,up",
    "camera": "right,down,forward",
    "flyingthings3d": "right,up,backward",
}
# In internal coordinates.
_DIRECTIONS = {
    "left": (1, 0, 0),
    "right": (-1, 0, 0),
    "up": (0, 1, 0),
    "down": (0, -1, 0),
    "forward": (0, 0, 1),
    "backward": (0, 0, -1),
}


def axes_of(frame: str) -> np.ndarray:
    """(3, 3) float32 whose rows are the axes x left, y up, z forward in coordinates of the frame.

    So `cloud @ axes.T` leads from the frame to the internal one, and `cloud @ axes` back.

    Args: frame: a name in `FRAMES`, or the directions of x, y and z, such as "right,forward,up".
    Raises: UsageError: neither, or directions that are not perpendicular.
    """
    words = _words(frame)
    if unknown := [word for word in words if word and word not in _DIRECTIONS]:
        known = f"{', '.join(_DIRECTIONS)}{did_you_mean(unknown[0], _DIRECTIONS)}"
        raise UsageError(f"axes {printable(frame)}: {printable(unknown[0])} is not a direction; use three of {known}")
    axes = np.array([_DIRECTIONS[word] for word in words if word], np.float32)
    if not all(words) or axes.shape != (3, 3) or not np.array_equal(axes @ axes.T, np.eye(3)):
        advice = "give where x, y and z point, such as right,forward,up"
        raise UsageError(f"axes {printable(frame)}: not three perpendicular directions; {advice}")
    return np.ascontiguousarray(axes.T)


def describe_frame(frame: str) -> str:
    """Such as "lidar (x forward, y left, z up)"."""
    meaning = ", ".join(f"{axis} {word}" for axis, word in zip("xyz", _words(frame), strict=True))
    return f"{frame} ({meaning})" if frame in FRAMES else meaning


def _words(frame: str) -> list[str]:
    return [word.strip().lower() for word in FRAMES.get(frame, frame).split(",")]
