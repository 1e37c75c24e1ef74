# SPDX-License-Identifier: MIT
"""The motion of the sensor between two clouds, which their flow contains: given as a pose, or estimated from the flow.

A pose T maps coordinates of the first cloud to those of the second: a point of the static world that is at p in the
first is at T p in the second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bpfn_cli.data.files.npy import parse_npy
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import read_file, write_atomic

_ORTHOGONAL = 1e-3  # tolerance of rotations, which files often give with few digits


def read_poses(path: Path, count: int) -> list[np.ndarray]:
    """The poses of `count` pairs, each (4, 4) float64, from a text file or a `.npy`.

    A pose is 4x4 or 3x4 numbers; for several pairs, one below the other, or one a line, as 12 or 16 numbers.
    Raises: DataError: no numbers, another number of poses, or no rotation and translation.
    """
    name, content = printable(path), read_file(path)
    try:
        if path.suffix.lower() == ".npy":
            values = parse_npy(content, name)
        else:
            values = np.loadtxt(content.decode("ascii", "replace").replace(",", " ").splitlines(), ndmin=2)
    except ValueError as error:
        raise DataError(f"{name}: not numbers; a pose of 4 lines of 4 numbers expected") from error
    rows = next((rows for rows in (4, 3) if values.size == count * rows * 4), None)
    if rows is None or values.shape[-1] not in (4, 4 * rows) or values.dtype.kind not in "fiu":
        expected = f"{count} {'poses' if count > 1 else 'pose'} of 4x4 or 3x4 numbers expected"
        raise DataError(f"{name}: numbers of shape {values.shape} found, {expected}")
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :rows] = values.reshape(count, rows, 4)
    for index, pose in enumerate(poses):
        rotation = pose[:3, :3]
        proper = np.allclose(rotation @ rotation.T, np.eye(3), atol=_ORTHOGONAL) and np.linalg.det(rotation) > 0
        if not proper or not np.isfinite(pose).all() or not np.array_equal(pose[3], (0, 0, 0, 1)):
            which = f"pose {index + 1}" if count > 1 else "the pose"
            raise DataError(f"{name}: {which} is not a rotation and a translation, with 0 0 0 1 as last line")
    return list(poses)


def write_pose(path: Path, pose: np.ndarray) -> None:
    """Write (4, 4) as text that `read_poses` reads. Raises: DiskError."""
    write_atomic(path, "".join(" ".join(f"{value:.12g}" for value in row) + "\n" for row in pose).encode())


def estimate_pose(points: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """(4, 4) float64: the rigid motion that most points share. Args: points, flow: (N, 3) metres, finite."""
    import torch

    from bpfn_cli.ops import shared_motion

    rotation, translation, _ = shared_motion(torch.from_numpy(points), torch.from_numpy(flow))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.numpy(), translation[0].numpy()
    return pose


def sensor_flow(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(N, 3) float64 metres: the flow of a static world under a pose. Args: points: (N, 3) metres."""
    return points @ pose[:3, :3].T + pose[:3, 3] - points


def with_origin(pose: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """The pose between clouds from which `origin` (3,) was subtracted."""
    moved = pose.copy()
    moved[:3, 3] += pose[:3, :3] @ origin - origin
    return moved
