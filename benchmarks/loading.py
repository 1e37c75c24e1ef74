# SPDX-License-Identifier: MIT
"""Compare loading training samples from two `.npy` files per scene, as published, and from a packed subset.

Scenes are random points, about 90,000 as in FlyingThings3D. The two alternate, cold (after dropping their pages from
the cache) and warm. A sample is 8,192 points of each cloud, without augmentation.

    python benchmarks/loading.py --out loading.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.augment import AugmentSettings
from bpfn_cli.data.datasets import SceneDataset, open_dataset
from bpfn_cli.data.files.points import write_points
from bpfn_cli.data.loader import training_batches
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.files import write_json
from bpfn_cli.profiling import describe_machine
from bpfn_cli.rng import keyed_generator

Read = Callable[[int], object]


def main() -> None:
    """Write scenes, read them in all ways, and print a table."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, packed = Path(folder) / "source", Path(folder) / "packed"
        _write_scenes(source, options.scenes, options.scene_points)
        make_subset(source, packed, SubsetOptions(1.0, packed=True, max_points=options.max_points))
        result: dict[str, Any] = {"machine": describe_machine(), **{k: str(v) for k, v in vars(options).items()}}
        result["bytes"] = {name: _bytes(place) for name, place in (("npy", source), ("packed", packed))}
        result["sample_ms"] = _time_samples(source, packed, options)
        result["samples_per_s"] = _time_loader(source, packed, options)
    times = result["sample_ms"]
    print(f"{'':<42}{'cold [ms]':>10}{'warm [ms]':>10}")
    for name, one in times.items():
        print(f"{name:<42}{one['cold']:>10.2f}{one['warm']:>10.2f}")
    published, fast = (times[name] for name in (PUBLISHED, PACKED))
    print(f"{'speedup of packed over published':<42}", end="")
    print(f"{published['cold'] / fast['cold']:>10.1f}{published['warm'] / fast['warm']:>10.1f}")
    for name, by_workers in result["samples_per_s"].items():
        print(name, ", ".join(f"{workers} workers: {rate:.0f} samples/s" for workers, rate in by_workers.items()))
    if options.out:
        write_json(options.out, result)


PUBLISHED = "two np.load, np.random.choice (published)"
WHOLE = "two .npy, checked (ours)"
PACKED = "packed, two windows (ours)"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--scene-points", type=int, default=90_000)
    parser.add_argument("--max-points", type=int, default=32_768)
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _write_scenes(root: Path, scenes: int, points: int) -> None:
    """Write random points; their values do not affect the time of reading."""
    for index in range(scenes):
        generator = np.random.default_rng(index)
        folder = root / "train" / f"{index:07d}"
        folder.mkdir(parents=True)
        pc1 = generator.uniform((-10, -5, -34), (10, 5, -2), (points, 3)).astype(np.float32)
        write_points(folder / "pc1.npy", pc1)
        write_points(folder / "pc2.npy", pc1 + generator.normal(0, 0.3, (points, 3)).astype(np.float32))


def _time_samples(source: Path, packed: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    reads: dict[str, tuple[Path, Read]] = {
        PUBLISHED: (source, lambda index: _published_sample(source / "train" / f"{index:07d}", options.points)),
        WHOLE: (source, _reader(open_dataset(source, "train"), options.points)),
        PACKED: (packed, _reader(open_dataset(packed, "train"), options.points)),
    }
    times: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in reads}
    for _ in range(options.rounds):
        for state in ("cold", "warm"):
            for name, (place, read) in reads.items():
                if state == "cold":
                    _drop_pages(place)
                start = time.perf_counter()
                for index in range(options.scenes):
                    read(index)
                times[name][state].append(1e3 * (time.perf_counter() - start) / options.scenes)
    return {name: {state: statistics.median(found) for state, found in one.items()} for name, one in times.items()}


def _published_sample(folder: Path, points: int) -> tuple[np.ndarray, ...]:
    """Do what released training code does: load both files, flip axes, cut at 35 m, sample."""
    pc1, pc2 = np.load(folder / "pc1.npy"), np.load(folder / "pc2.npy")
    pc1[..., [0, 2]] *= -1
    pc2[..., [0, 2]] *= -1
    near = np.where(np.logical_and(pc1[:, 2] < 35, pc2[:, 2] < 35))[0]
    chosen1 = np.random.choice(near, points, replace=False)
    chosen2 = np.random.choice(near, points, replace=False)
    return pc1[chosen1], pc2[chosen2], (pc2 - pc1)[chosen1]


def _reader(dataset: SceneDataset, points: int) -> Read:
    return lambda index: dataset.sample(index, points, keyed_generator("benchmark", index))


def _time_loader(source: Path, packed: Path, options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Measure samples per second of the complete loader: augmented, batches of 8, warm."""
    rates: dict[str, dict[int, float]] = {}
    for name, place in (("two .npy:", source), ("packed:", packed)):
        dataset = open_dataset(place, "train")
        rates[name] = {}
        for workers in (0, 1, 2):
            found = []
            for epoch in range(3):
                batches = training_batches(
                    dataset,
                    range(len(dataset)),
                    points=options.points,
                    batch_size=8,
                    seed=0,
                    epoch=epoch,
                    augmentation=AugmentSettings(),
                    workers=workers,
                )
                first = next(batches)  # do not count starting the workers
                start, samples = time.perf_counter(), 0
                for batch in batches:
                    samples += len(batch.names)
                found.append(samples / (time.perf_counter() - start))
                del first
            rates[name][workers] = statistics.median(found)
    return rates


def _drop_pages(place: Path) -> None:
    for path in place.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
