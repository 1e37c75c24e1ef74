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


def full_dataset(*, make: bool = True) -> Path:
    """FlyingThings3D below the data root, or the synthetic scenes, which are made on first use.

    Raises: DataError: there are none, and they are not to be made.
    """
    from bpfn_cli.data.synthetic import is_synthetic

    present = _present_dataset()
    if present is None:
        return _synthetic(data_root() / SYNTHETIC, make)
    if is_synthetic(present):
        say(f"no FlyingThings3D in {data_root()}: using the synthetic scenes in {present}")
    return present


def default_dataset(*, make: bool = True) -> Path:
    """What is trained on when nobody says: the subset of the full dataset if there is one, else all of it.

    Raises: as `full_dataset`.
    """
    full = _present_dataset()
    if full is None:  # a subset may have been brought here alone
        alone = sorted(data_root().glob(f"*{SUBSET_ENDING}/subset.json"), key=lambda path: SYNTHETIC in str(path))
        return alone[0].parent if alone else _synthetic(data_root() / SYNTHETIC, make)
    subset = subset_place(full)
    return subset if (subset / "subset.json").is_file() else full


def _present_dataset() -> Path | None:
    """FlyingThings3D, else finished synthetic scenes, below the data root."""
    from bpfn_cli.data.layout import FLYINGTHINGS3D_FOLDER, find_layout
    from bpfn_cli.data.synthetic import is_synthetic

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
    return (source.parent if source == root else root) / f"{source.name}{SUBSET_ENDING}"


def _synthetic(folder: Path, make: bool) -> Path:
    from bpfn_cli.data.synthetic import SyntheticOptions, write_synthetic

    if not make:
        raise DataError(
            f"{data_root()}: no FlyingThings3D and no synthetic scenes yet; `bpfn synth` renders them, "
            "or --data DIR names others"
        )
    say(f"no FlyingThings3D in {data_root()}: using synthetic scenes, made now in {folder} (once)")
    with ConsoleProgress().bar("rendering scenes") as bar:
        write_synthetic(folder, SyntheticOptions(), default_processes(), bar)
    return folder
