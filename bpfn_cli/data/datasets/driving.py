# SPDX-License-Identifier: MIT
"""Driving scenes that are rendered while they are read: a folder with a record, written by `bpfn synth --live`.

In training, every scene of every epoch is a new one: a function of the seeds of the record and of the training, the
epoch and the name. Elsewhere, a scene is a function of the seed of the record, the split and the name.
"""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bpfn_cli.data.augment import sample_points
from bpfn_cli.data.datasets.base import Format, SceneDataset, SceneNames, stored_split
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.synthetic.driving.live import LIVE_RECORD, read_options
from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions, render_drive
from bpfn_cli.structures import DRIVING_CAMERA, Scene

SPARSEST, DENSEST = 1.6, 3.6  # points of a training scene per point drawn from it


@dataclass(frozen=True)
class LiveScenes(SceneDataset):
    """The scenes of one split."""

    def sample(self, index: int, points: int, generator: np.random.Generator, least: int | None = None) -> Scene:
        """As `SceneDataset.sample`; a training scene is drawn with `generator`, and renders no more than is needed."""
        if self.split != "train":
            return super().sample(index, points, generator, least)
        key = f"train {generator.integers(2**63)}"
        rows = min(2**18, max(256, int(points * generator.uniform(SPARSEST, DENSEST))))
        scene = _scene(self.names[index], key, replace(self._options, points=rows))
        return sample_points(self._labeled(scene), points, generator, least)

    @cached_property
    def _options(self) -> DrivingOptions:
        return read_options(self.root)


class Driving(Format):
    """A folder with `driving.json` and no scenes."""

    name = "driving"
    title = "synthetic driving"
    layout = LIVE_RECORD
    is_synthetic = True
    has_hidden_flow = True

    def recognizes(self, root: Path) -> bool:
        return os.path.lexists(root / LIVE_RECORD)

    def list_scenes(self, root: Path) -> SceneNames:
        options = read_options(root)
        return {split: tuple(f"{index:07d}" for index in range(getattr(options, split))) for split in SPLITS}

    def open(self, root: Path, split: str, names: tuple[str, ...]) -> SceneDataset:
        return LiveScenes(self, root, split, names, label=self.label(split, len(names)))

    def label(self, split: str, count: int) -> str:
        each = " an epoch, rendered anew" if split == "train" else ""
        return super().label(split, count) + each

    def load(self, root: Path, split: str, name: str) -> Scene:
        return _scene(name, f"{stored_split(split)} {int(name)}", read_options(root))

    def file_sizes(self, root: Path, scenes: SceneNames) -> dict[str, int]:
        """The record decides all scenes."""
        return {LIVE_RECORD: (root / LIVE_RECORD).stat().st_size}


def _scene(name: str, key: str, options: DrivingOptions) -> Scene:
    found = render_drive(key, options)
    pc1, end = found.points1.astype(np.float32), found.points2.astype(np.float32)
    if options.rows_correspond:
        return Scene(name, pc1, end, end - pc1, DRIVING_CAMERA)
    return Scene(name, pc1, end[found.visible], end - pc1, DRIVING_CAMERA, found.visible)
