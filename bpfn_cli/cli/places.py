# SPDX-License-Identifier: MIT
"""Where data is when no --data is given: `data/`, or `$BPFN_DATA`."""

import os
from pathlib import Path
from typing import Literal, overload

from bpfn_cli.cli.console import ConsoleProgress, say
from bpfn_cli.cores import usable_cores
from bpfn_cli.errors import DataError
from bpfn_cli.files import expanded

RUNS = Path("runs")
SYNTHETIC = "synthetic"
SUBSET_ENDING = "-subset"


def data_root() -> Path:
    """`$BPFN_DATA`, or `data/`."""
    return expanded(os.environ.get("BPFN_DATA") or "data")


def worker_processes(given: int | None) -> int:
    """The number of `--processes`; by default one per core. More are possible, and noted."""
    if given is not None:
        note_more_than_cores(given)
    return given or usable_cores()


def note_more_than_cores(processes: int) -> None:
    """Say so if there are more processes than cores for them."""
    if processes > (cores := usable_cores()):
        say(f"note: {processes} processes, but this process may use only {cores} cores")


def report_command(runs: Path) -> list[object]:
    """The words that report the runs of a folder."""
    return ["bpfn", "report", *([] if runs.resolve() == RUNS.resolve() else ["--runs", runs])]


def synthetic_first() -> str:
    """What a dry run says when scenes would be rendered first."""
    from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions

    default = DrivingOptions()
    scenes = f"{default.train} training and {default.val} test scenes"
    return f"no FlyingThings3D found: {scenes} would be rendered first (`bpfn synth`)"


@overload
def full_dataset(*, make: Literal[True] = True) -> Path: ...
@overload
def full_dataset(*, make: bool) -> Path | None: ...
def full_dataset(*, make: bool = True) -> Path | None:
    """FlyingThings3D in the data root, otherwise synthetic scenes. make: render them if missing, rather than None."""
    from bpfn_cli.data.datasets.flyingthings3d import is_synthetic

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
    """The subset of the full dataset if there is one, otherwise all of it. make: as in `full_dataset`."""
    full = _present_dataset()
    if full is None:  # a subset may have been copied here without its source
        subsets = data_root().glob(f"*{SUBSET_ENDING}/subset.json")
        alone = min((path.parent for path in subsets), key=lambda path: SYNTHETIC in path.name, default=None)
        return alone or (_synthetic(data_root() / SYNTHETIC) if make else None)
    subset = subset_place(full)
    return subset if (subset / "subset.json").is_file() else full


def _present_dataset() -> Path | None:
    """FlyingThings3D in the data root, otherwise finished synthetic scenes."""
    from bpfn_cli.data.datasets import find_dataset
    from bpfn_cli.data.datasets.flyingthings3d import FLYINGTHINGS3D_FOLDER, is_synthetic

    root = data_root()
    if root.is_dir():
        try:
            return find_dataset(root, ("flyingthings3d", "synthetic_driving", "synthetic")).root
        except DataError:
            pass  # the root itself is not a dataset
    if (root / FLYINGTHINGS3D_FOLDER).is_dir():
        return root / FLYINGTHINGS3D_FOLDER
    synthetic = root / SYNTHETIC
    return synthetic if synthetic.is_dir() and is_synthetic(synthetic) else None


def subset_place(source: Path) -> Path:
    """Where `bpfn subset` writes by default."""
    root = data_root()
    name = f"{source.name or source.resolve().name}{SUBSET_ENDING}"
    if source.resolve() != root.resolve():
        return root / name
    return (source if source.name else source.resolve()).parent / name


def _synthetic(folder: Path) -> Path:
    from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
    from bpfn_cli.data.synthetic.render import write_synthetic

    say(f"no FlyingThings3D in {data_root()}: rendering synthetic traffic scenes in {folder}, once")
    with ConsoleProgress().bar("rendering scenes") as bar:
        write_synthetic(folder, DrivingOptions(), usable_cores(), bar)
    return folder
