# SPDX-License-Identifier: MIT
"""Where data lies when nobody says: `data/`, or `$BPFN_DATA`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, overload

from bpfn_cli.cli.console import ConsoleProgress, say
from bpfn_cli.errors import DataError
from bpfn_cli.parallel import usable_cores

RUNS = Path("runs")
SYNTHETIC = "synthetic"
SUBSET_ENDING = "-subset"


def data_root() -> Path:
    """`$BPFN_DATA`, or `data/`."""
    return Path(os.environ.get("BPFN_DATA") or "data")


def synthetic_first() -> str:
    """What a dry run says of scenes that are not there yet."""
    from bpfn_cli.data.synthetic.render import SyntheticOptions

    made = SyntheticOptions()
    scenes = f"{made.train} training and {made.val} test scenes"
    return f"no FlyingThings3D here: {scenes} would be rendered first (`bpfn synth`)"


@overload
def full_dataset(*, make: Literal[True] = True) -> Path: ...
@overload
def full_dataset(*, make: bool) -> Path | None: ...
def full_dataset(*, make: bool = True) -> Path | None:
    """FlyingThings3D below the data root, or the synthetic scenes, which are made on first use (or None is given)."""
    from bpfn_cli.data.synthetic.render import is_synthetic

    present = _present_dataset()
    if present is None:
        return _synthetic(data_root() / SYNTHETIC) if make else None
    if is_synthetic(present):
        say(f"no FlyingThings3D in {data_root()}: using the synthetic scenes in {present}")
    return present


@overload
def default_dataset(*, make: Literal[True] = True) -> Path: ...
@overload
def default_dataset(*, make: bool) -> Path | None: ...
def default_dataset(*, make: bool = True) -> Path | None:
    """What is trained on when nobody says: the subset of the full dataset if there is one, else all of it.

    Where there is nothing, synthetic scenes are made, or None is given.
    """
    full = _present_dataset()
    if full is None:  # a subset may have been brought here alone
        alone = sorted(
            data_root().glob(f"*{SUBSET_ENDING}/subset.json"), key=lambda path: SYNTHETIC in path.parent.name
        )
        if not alone:
            return _synthetic(data_root() / SYNTHETIC) if make else None
        return alone[0].parent
    subset = subset_place(full)
    return subset if (subset / "subset.json").is_file() else full


def _present_dataset() -> Path | None:
    """FlyingThings3D, else finished synthetic scenes, below the data root."""
    from bpfn_cli.data.datasets.layout import FLYINGTHINGS3D_FOLDER, find_layout
    from bpfn_cli.data.synthetic.render import is_synthetic

    root = data_root()
    if root.is_dir():
        try:
            return find_layout(root, ("flyingthings3d", "synthetic")).root
        except DataError:
            pass  # it is no dataset itself
    if (root / FLYINGTHINGS3D_FOLDER).is_dir():
        return root / FLYINGTHINGS3D_FOLDER
    synthetic = root / SYNTHETIC
    return synthetic if synthetic.is_dir() and is_synthetic(synthetic) else None


def subset_place(source: Path) -> Path:
    """Where `bpfn subset` writes when nobody says."""
    root = data_root()
    name = f"{source.name or source.resolve().name}{SUBSET_ENDING}"
    if source.resolve() != root.resolve():
        return root / name
    return (source if source.name else source.resolve()).parent / name


def _synthetic(folder: Path) -> Path:
    from bpfn_cli.data.synthetic.render import SyntheticOptions, write_synthetic

    say(f"no FlyingThings3D in {data_root()}: using synthetic scenes, made now in {folder} (once)")
    with ConsoleProgress().bar("rendering scenes") as bar:
        write_synthetic(folder, SyntheticOptions(), usable_cores(), bar)
    return folder
