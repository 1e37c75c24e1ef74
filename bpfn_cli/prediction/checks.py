# SPDX-License-Identifier: MIT
"""Whether a result is plausible: each note is a sentence for the user."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bpfn_cli.data.augment import even_rows
from bpfn_cli.data.clouds.agreement import FAR_M, FLATTEST, extents_m
from bpfn_cli.frames import FRAMES, axes_of
from bpfn_cli.ops import knn

MOST_QUERIES = 4096
SAME_M = 0.02  # no nearest neighbor needs to be nearer than that
SMALL_M, LARGE_M = 1.0, 1000.0  # extents of scenes in metres
FLAT_M = 0.05  # extent in degrees of a scene that extends over metres
MOST_DUPLICATES = 0.01


def nearest_m(cloud: np.ndarray, *moved: np.ndarray) -> tuple[float, ...]:
    """For each of `moved`, the median distance in metres of its points to their nearest one in `cloud`.

    Args: (M, 3) float32, and any number of (N, 3); some of N are used.
    """
    queries = [points[even_rows(len(points), MOST_QUERIES)].astype(np.float32) for points in moved]
    together = np.concatenate(queries)  # one search tree serves all
    rows = knn(torch.from_numpy(together)[None], torch.from_numpy(cloud)[None], 1)[0, :, 0].numpy()
    distances = np.linalg.norm(cloud[rows] - together, axis=1)
    ends = np.cumsum([len(points) for points in queries])[:-1]
    return tuple(float(np.median(part)) for part in np.split(distances, ends))


def notes_on_cloud(cloud: np.ndarray, name: str) -> Iterator[str]:
    """Duplicates and units. Args: cloud: (N, 3) float32 metres."""
    duplicates = 1 - len(np.unique(np.ascontiguousarray(cloud).view("V12"))) / len(cloud)
    if duplicates > MOST_DUPLICATES:
        yield f"{name}: {duplicates:.0%} of the points are duplicates"
    extents = extents_m(cloud)
    across = "x".join(f"{extent:.3g}" for extent in extents)
    _, middle, longest = np.sort(extents)
    if longest > LARGE_M:
        yield f"{name} extends over {across} m; are the units millimetres or centimetres?"
    elif longest < SMALL_M:
        yield f"{name} extends over only {across} m; is it in kilometres or degrees, or scaled to unit size?"
    elif middle < FLAT_M:
        yield f"{name} extends over {across} m; are these degrees? project them to metres"


def notes_on_frame(cloud: np.ndarray, frame: str, name: str) -> Iterator[str]:
    """Whether a cloud, (N, 3) metres, is flat along another axis than the vertical one of its frame."""
    extents, up = extents_m(cloud), _vertical_axis(frame)
    flattest = int(np.argmin(extents))
    if flattest != up and extents[flattest] < FLATTEST * extents[up]:
        others = " or ".join(f"--frame {other}" for other in FRAMES if _vertical_axis(other) == flattest)
        fault = f"{name} is flattest along {'xyz'[flattest]}, but {'xyz'[up]} is vertical in this frame"
        yield f"{fault}; perhaps {others or '--axes'}"


def _vertical_axis(frame: str) -> int:
    return int(np.argmax(np.abs(axes_of(frame)[1])))


def notes_on_fit(before_m: float, after_m: float) -> Iterator[str]:
    """What the median distances from the first to the second cloud tell, before and after the flow."""
    if before_m == 0:
        yield "the clouds are the same, or most of their points are"
    elif before_m > FAR_M:
        yield f"the clouds are {before_m:.3g} m apart; are they of one place, frame and unit?"
    elif after_m > max(before_m, SAME_M):
        yield "the flow brings the clouds no closer; check --frame, their order, and what the network was trained on"


def notes_on_truth(truth: np.ndarray) -> Iterator[str]:
    """Whether a true flow, (N, 3) metres, is that of rows that do not belong together."""
    length = float(np.median(np.linalg.norm(truth, axis=1)))
    if length > FAR_M:
        yield f"the true flow is {length:.3g} m long; is each row of the second cloud the same point as in the first?"


def notes_on_pose(given_m: float, inverse_m: float) -> Iterator[str]:
    """Whether a pose leads the wrong way. Args: distances as of `nearest_m`, after the pose and after its inverse."""
    if inverse_m < 0.8 * given_m:
        meaning = "T must map coordinates of the first cloud to the second"
        yield f"the inverse of the pose brings the clouds closer ({inverse_m:.3g} m, not {given_m:.3g} m); {meaning}"


def notes_on_viewpoints(first: tuple[float, ...] | None, second: tuple[float, ...] | None) -> Iterator[str]:
    """Whether the sensor moved between two clouds, as their files say."""
    if first is None or second is None or np.allclose(first, second, atol=1e-6):
        return
    distance = np.linalg.norm(np.subtract(second[:3], first[:3]))
    apart = f"the sensor viewpoints in the files differ ({distance:.3g} m apart)"
    yield f"{apart} and are not applied; transform both clouds to one frame"
