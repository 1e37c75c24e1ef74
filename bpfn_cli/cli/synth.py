# SPDX-License-Identifier: MIT
"""`bpfn synth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, default_processes, finish, print_json


def synth(
    out: options.Out = None,
    train: Annotated[int, typer.Option("--train", min=0, help="Training scenes.")] = 400,
    val: Annotated[int, typer.Option("--val", min=0, help="Test scenes.")] = 40,
    height: Annotated[int, typer.Option("--height", min=27, max=1080, help="Image rows; 16:9.")] = 135,
    seed: options.Seed = 0,
    processes: options.Processes = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Render synthetic scenes in the FlyingThings3D layout.

    Example: `bpfn synth --out data/synthetic --train 400 --val 40 --seed 0`
    """
    from bpfn_cli.cli.places import SYNTHETIC, data_root
    from bpfn_cli.data.synthetic import SyntheticOptions, write_synthetic

    folder: Path = out or data_root() / SYNTHETIC
    chosen = SyntheticOptions(train=train, val=val, seed=seed or 0, height=height)
    with ConsoleProgress().bar("rendering scenes") as bar:
        write_synthetic(folder, chosen, processes or default_processes(), bar, force=force)
    if json:
        print_json({"out": str(folder), "train": train, "val": val, "seed": seed or 0, "height": height})
    finish(folder, f"bpfn subset --source {folder}")
