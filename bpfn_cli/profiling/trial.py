# SPDX-License-Identifier: MIT
"""A pair of clouds to try a network on: the user's own, one of a dataset, or a synthetic one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bpfn_cli.data.clouds.pairs import PairReader
from bpfn_cli.data.clouds.search import find_source
from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.errors import DataError, printable
from bpfn_cli.frames import INTERNAL, axes_of
from bpfn_cli.models.exported import Pair
from bpfn_cli.profiling.workload import synthetic_batch


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


def _of_files(first: Path, second: Path, frame: str | None) -> Pair:
    source = find_source(first, second, known_frame=frame is not None)
    clouds = PairReader()(source.pairs[0])
    axes = axes_of(frame or source.frame or INTERNAL)
    pc1, pc2 = (np.asarray(cloud.points[cloud.valid] @ axes.T, np.float32) for cloud in clouds[:2])
    return Pair(str(source.pairs[0]), pc1, pc2)
