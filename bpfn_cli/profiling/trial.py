# SPDX-License-Identifier: MIT
"""A pair of clouds to try a network on: the user's own, one of a dataset, or a synthetic one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bpfn_cli.data.augment import even_rows
from bpfn_cli.data.clouds.pairs import PairReader
from bpfn_cli.data.clouds.search import find_source
from bpfn_cli.data.datasets import find_dataset, open_dataset
from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.frames import INTERNAL, axes_of
from bpfn_cli.models.exported import Pair
from bpfn_cli.models.exported.base import Clouds
from bpfn_cli.profiling.workload import synthetic_batch
from bpfn_cli.rng import keyed_generator


def trial_pair(files: tuple[Path, Path] | None, data: Path | None, points: int, frame: str | None = None) -> Pair:
    """The pair in two files; else the first test scene of a dataset; else a synthetic one.

    Args: points: of the synthetic one. frame: of the files, as `axes_of` takes it; None: as they tell, or internal.
    Raises: DataError: missing or damaged.
    """
    if files is not None:
        return _of_files(*files, frame)
    if data is not None:
        dataset = open_dataset(data, "test")
        if not len(dataset):
            raise DataError(f"{printable(dataset.root)}: the test split is empty; give another --data, or --pair")
        scene = dataset.load(0)
        flow = scene.truth if scene.valid is None else np.where(scene.valid[:, None], scene.truth, np.nan)
        return Pair(f"scene {printable(scene.name)} of {dataset.kind}", scene.pc1, scene.pc2, flow)
    batch = synthetic_batch(points, 1)
    return Pair("a synthetic scene", batch.pc1[0].numpy(), batch.pc2[0].numpy(), batch.truth[0].numpy())


def calibration_scenes(data: Path | None, count: int, points: int, *, or_fewer: bool = False) -> list[Clouds]:
    """`points` random points of each cloud of `count` scenes; some repeat where a cloud has fewer.

    They are spread evenly over the training scenes of a dataset (the test scenes, where it has no others), or rendered
    as driving scenes. Raises: UsageError: the dataset has fewer, unless `or_fewer`. DataError: as `open_dataset`.
    """
    if data is None:
        options = DrivingOptions(points=2 * points)
        return [_drawn(f"driving scene {index}", *options.render("train", index), points) for index in range(count)]
    found = find_dataset(data)
    scenes = found.open("train" if "train" in found.format.splits else "test")
    if len(scenes) < count and not or_fewer:
        where = printable(scenes.root)
        raise UsageError(f"--scenes {count}: {where} has {len(scenes)} to calibrate with; use fewer, or other --data")
    loaded = (scenes.load(int(index)) for index in even_rows(len(scenes), count))
    return [_drawn(f"scene {printable(scene.name)}", scene.pc1, scene.pc2, points) for scene in loaded]


def _drawn(name: str, pc1: np.ndarray, pc2: np.ndarray, points: int) -> Clouds:
    generator = keyed_generator("calibration", name)
    first, second = (cloud[generator.choice(len(cloud), points, replace=len(cloud) < points)] for cloud in (pc1, pc2))
    return np.asarray(first, np.float32), np.asarray(second, np.float32)


def _of_files(first: Path, second: Path, frame: str | None) -> Pair:
    source = find_source(first, second, known_frame=frame is not None)
    clouds = PairReader()(source.pairs[0])
    axes = axes_of(frame or source.frame or INTERNAL)
    pc1, pc2 = (np.asarray(cloud.points[cloud.valid] @ axes.T, np.float32) for cloud in clouds[:2])
    return Pair(str(source.pairs[0]), pc1, pc2)
