# SPDX-License-Identifier: MIT
"""`bpfn synth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json
from bpfn_cli.parallel import usable_cores


def synth(
    out: options.Out = None,
    train: Annotated[int, typer.Option("--train", min=0, help="Training scenes.")] = 400,
    val: Annotated[int, typer.Option("--val", min=0, help="Test scenes.")] = 40,
    height: Annotated[
        int | None, typer.Option("--height", min=27, max=1080, help="Image rows; 16:9. Else 135, or 540 for --raw.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Maps as of a raw download, to try prepare on; 10 MB a scene.", metavar=""),
    ] = False,
    seed: options.Seed = 0,
    processes: options.Processes = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Render synthetic scenes in the FlyingThings3D layout.

    Examples: `bpfn synth --out data/synthetic --train 400 --val 40 --seed 0`,
    `bpfn synth --raw --train 10 --val 2 --out downloads/synthetic-raw`
    """
    from bpfn_cli.cli.places import SYNTHETIC, data_root
    from bpfn_cli.data.synthetic.raw_maps import write_raw
    from bpfn_cli.data.synthetic.render import SyntheticOptions, write_synthetic
    from bpfn_cli.errors import UsageError

    if raw and force:
        raise UsageError("--raw --force: raw scenes are not replaced; remove the folder, or choose another --out")
    folder: Path = out or data_root() / (f"{SYNTHETIC}-raw" if raw else SYNTHETIC)
    chosen = SyntheticOptions(train=train, val=val, seed=seed or 0, height=height or (540 if raw else 135))
    with ConsoleProgress().bar("rendering scenes") as bar:
        if raw:
            write_raw(folder, chosen, processes or usable_cores(), bar)
        else:
            write_synthetic(folder, chosen, processes or usable_cores(), bar, force=force)
    if json:
        print_json({"out": str(folder), "train": train, "val": val, "seed": seed or 0, "height": chosen.height})
    finish(folder, f"bpfn prepare flyingthings3d --source {folder}" if raw else f"bpfn subset --source {folder}")
