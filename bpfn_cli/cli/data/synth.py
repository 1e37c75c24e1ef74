# SPDX-License-Identifier: MIT
"""`bpfn synth`."""

from typing import Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json
from bpfn_cli.cores import usable_cores

HEIGHT = typer.Option("--height", min=27, max=1080, help="Image rows, 16:9; default: 135, or 540 with --raw.")
RAW = "Write maps like a raw download, to try `bpfn prepare`; 10 MB a scene."


def synth(
    out: options.Out = None,
    train: Annotated[int, typer.Option("--train", min=0, help="Number of training scenes.")] = 400,
    val: Annotated[int, typer.Option("--val", min=0, help="Number of test scenes.")] = 40,
    height: Annotated[int | None, HEIGHT] = None,
    raw: Annotated[bool, options.switch("--raw", RAW)] = False,
    seed: options.Seed = 0,
    processes: options.Processes = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Render synthetic scenes in the FlyingThings3D layout.

    \b
    Examples:
      $ bpfn synth                                                      # 400 training and 40 test scenes
      $ bpfn synth --train 10 --val 2 --seed 1 --out data/small         # a few other scenes
      $ bpfn synth --raw --train 10 --val 2 --out downloads/synthetic   # raw maps for `bpfn prepare`
    """
    from bpfn_cli.cli.places import SYNTHETIC, data_root
    from bpfn_cli.data.synthetic.raw_maps import write_raw
    from bpfn_cli.data.synthetic.render import SyntheticOptions, write_synthetic
    from bpfn_cli.errors import UsageError

    if raw and force:
        raise UsageError("--raw --force: raw scenes are not replaced; remove the folder, or choose another --out")
    folder = out or data_root() / (f"{SYNTHETIC}-raw" if raw else SYNTHETIC)
    chosen = SyntheticOptions(train, val, seed or 0, height or (540 if raw else 135))
    with ConsoleProgress().bar("rendering scenes") as bar:
        if raw:
            write_raw(folder, chosen, processes or usable_cores(), bar)
        else:
            write_synthetic(folder, chosen, processes or usable_cores(), bar, force=force)
    if json:
        print_json({"out": str(folder), "train": train, "val": val, "seed": chosen.seed, "height": chosen.height})
    finish(folder, f"bpfn prepare flyingthings3d --source {folder}" if raw else f"bpfn subset --source {folder}")
