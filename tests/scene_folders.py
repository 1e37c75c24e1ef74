# SPDX-License-Identifier: MIT
"""Small datasets on disk for the tests of readers and subsets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np


def write_scene(folder: Path, pc1: object, pc2: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pc1.npy", np.asarray(pc1, dtype=np.float32))
    np.save(folder / "pc2.npy", np.asarray(pc2, dtype=np.float32))
    return folder


def write_random_scene(folder: Path, seed: int, points: int = 20) -> Path:
    """On-disk axes of FT3D_s: z is negative forward, -30 to -2 m."""
    generator = np.random.default_rng(seed)
    pc1 = generator.uniform((-5, -2, -30), (5, 3, -2), (points, 3))
    return write_scene(folder, pc1, pc1 + generator.normal(0, 0.5, (points, 3)))


def write_flyingthings3d(
    root: Path, train: int | Iterable[str] = 10, val: int | Iterable[str] = 2, points: int = 20
) -> Path:
    for split, scenes in (("train", train), ("val", val)):
        names = [f"{index:07d}" for index in range(scenes)] if isinstance(scenes, int) else scenes
        for index, name in enumerate(names):
            write_random_scene(root / split / name, index + 1000 * (split == "val"), points)
    return root


def write_occluded(root: Path, name: str = "TRAIN_A_0000_left_0006-0", count: int = 12, **other: object) -> Path:
    """One scene of FT3D_o."""
    generator = np.random.default_rng(1)
    arrays: dict[str, object] = {
        "points1": generator.uniform(2, 20, (count, 3)).astype(np.float32),
        "points2": generator.uniform(2, 20, (count, 3)).astype(np.float32),
        "color1": np.zeros((count, 3), np.float32),
        "color2": np.zeros((count, 3), np.float32),
        "flow": generator.normal(0, 1, (count, 3)).astype(np.float32),
        "valid_mask1": np.arange(count) % 3 > 0,
    }
    root.mkdir(exist_ok=True)
    np.savez(root / f"{name}.npz", **(arrays | other))  # type: ignore[arg-type]
    return root


def write_log(path: Path, sweeps: int = 3, count: int = 20, **other: object) -> Path:
    """A LiDAR log of OpenSceneFlow."""
    generator = np.random.default_rng(2)
    with h5py.File(path, "w") as file:
        for number in range(sweeps):
            group = file.create_group(str(315966265659927216 + number * 100))
            group["lidar"] = generator.uniform(-20, 20, (count, 4)).astype(np.float32)
            group["ground_mask"] = np.arange(count) < 5
            if number + 1 < sweeps:
                group["flow"] = generator.normal(0, 1, (count, 3)).astype(np.float32)
                group["flow_is_valid"] = np.arange(count) % 2 == 0
            for name, value in other.items():
                if name in group:
                    del group[name]
                group[name] = value
    return path


def contents(root: Path) -> dict[str, bytes]:
    """Every file below `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def damage(path: Path, seed: int, changes: int) -> None:
    """Cut a file short (odd seeds), or give `changes` of its bytes other values."""
    content, generator = bytearray(path.read_bytes()), np.random.default_rng(seed)
    if seed % 2:
        content = content[: generator.integers(len(content))]
    else:
        for _ in range(changes):
            content[generator.integers(len(content))] = generator.integers(256)
    path.write_bytes(content)
