# SPDX-License-Identifier: MIT
"""Synthetic scenes of `bpfn synth`: the layout of FlyingThings3D, with a record."""

from __future__ import annotations

import os
from pathlib import Path

from bpfn_cli.data.datasets.base import Format
from bpfn_cli.data.datasets.flyingthings3d import FlyingThings3D
from bpfn_cli.data.datasets.folders import has_splits
from bpfn_cli.data.records import read_record

RECORD = "synthetic.json"  # written last, so that it marks a finished dataset


class Synthetic(FlyingThings3D):
    """`{train,val}/NNNNNNN/{pc1,pc2}.npy` and `synthetic.json`."""

    name = "synthetic"
    title = "synthetic"
    layout = f"train/ and val/ with {RECORD}"
    folders = ()
    raw_folders = ()
    is_synthetic = True
    sequence = Format.sequence  # every scene is drawn by itself

    def recognizes(self, root: Path) -> bool:
        return has_splits(root) and is_synthetic(root)


def is_synthetic(folder: Path) -> bool:
    """Whether `folder` is a finished dataset of `bpfn synth`.

    Raises: DataError: its record is damaged. DiskError: it cannot be read.
    """
    path = folder / RECORD
    return os.path.lexists(path) and read_record(path, "make the synthetic scenes again").get("kind") == "synthetic"
