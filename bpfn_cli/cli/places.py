# SPDX-License-Identifier: MIT
"""Where data lies when nobody says: `data/`, or `$BPFN_DATA`."""

from __future__ import annotations

import os
from pathlib import Path

from bpfn_cli.cli.console import ConsoleProgress, default_processes, say
from bpfn_cli.errors import DataError

RUNS = Path("runs")
SYNTHETIC = "synthetic"
SUBSET_ENDING = "-subset"


def data_root() -> Path:
    """`$BPFN_DATA`, or `data/`."""
    return Path(os.environ.get("BPFN_DATA") or "data")


def full_dataset() -> Path:
    """FlyingThings3D below the data root, or the synthetic scenes, which are made on first use."""
    from bpfn_cli.data.layout import FLYINGTHINGS3D_FOLDER, find_layout

    root = data_root()
    if root.is_dir():
        try:
            return find_layout(root, ("flyingthings3d", "synthetic")).root
        except DataError:
            pass  # nothing there yet
    if (root / FLYINGTHINGS3D_FOLDER).is_dir():
        return root / FLYINGTHINGS3D_FOLDER
    return _synthetic(root / SYNTHETIC)


def default_dataset() -> Path:
    """What is trained on when nobody says: the subset of the full dataset if there is one, else all of it."""
    root = data_root()
    subsets = sorted(root.glob(f"*{SUBSET_ENDING}/subset.json"), key=lambda path: SYNTHETIC in path.parent.name)
    return subsets[0].parent if subsets else full_dataset()


def subset_place(source: Path) -> Path:
    """Where `bpfn subset` writes when nobody says."""
    root = data_root()
    return (source.parent if source == root else root) / f"{source.name}{SUBSET_ENDING}"


def _synthetic(folder: Path) -> Path:
    from bpfn_cli.data.synthetic import SyntheticOptions, is_synthetic, write_synthetic

    if not (folder.is_dir() and is_synthetic(folder)):
        say(f"no FlyingThings3D in {data_root()}: using synthetic scenes, made now in {folder} (once)")
        with ConsoleProgress().bar("rendering scenes") as bar:
            write_synthetic(folder, SyntheticOptions(), default_processes(), bar)
    else:
        say(f"no FlyingThings3D in {data_root()}: using the synthetic scenes in {folder}")
    return folder
