# SPDX-License-Identifier: MIT
"""`bpfn data check` and `bpfn data show`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, echo, print_json, say
from bpfn_cli.cli.groups import command_group
from bpfn_cli.cli.places import worker_processes
from bpfn_cli.errors import printable

if TYPE_CHECKING:
    from bpfn_cli.data.inspect import DatasetCheck

app = command_group("Look at datasets and scenes.")


@app.command()
def check(
    path: Annotated[Path, options.path_argument(help="Dataset, subset, or the folder above it.", metavar="PATH")],
    fix_list: Annotated[
        Path | None,
        options.path("--fix-list", help="List damaged scenes here, for `bpfn subset --leave-out`.", metavar="FILE"),
    ] = None,
    frame: options.CloudFrame = None,
    remove_ground: options.RemoveGround = False,
    force: options.Force = False,
    processes: options.Processes = None,
    json: options.Json = False,
) -> None:
    """Read every scene; report damage, numbers of points, depth and flow.

    The exit code is 3 if a scene is damaged.

    \b
    Examples:
      $ bpfn data check data/synthetic                   # a table of points, depth and flow
      $ bpfn data check data/kitti --json                # the same as JSON
      $ bpfn data check data --fix-list damaged.txt      # a list for `bpfn subset --leave-out`
      $ bpfn data check scans --frame lidar              # your own clouds, to train on without labels
    """
    from bpfn_cli.data.datasets import find_data
    from bpfn_cli.data.inspect import check_dataset, write_fix_list
    from bpfn_cli.errors import DataError
    from bpfn_cli.files import claim_output

    if fix_list is not None:
        claim_output(fix_list, force=force)
    found_data = find_data(path, frame=frame, remove_ground=remove_ground)
    with ConsoleProgress().bar("reading scenes") as bar:
        found = check_dataset(found_data, processes=worker_processes(processes), progress=bar)
    if json:
        print_json(found)
    else:
        _print(found)
    if fix_list is not None:
        write_fix_list(fix_list, found.damage)
        say(f"written: {fix_list}")
    if found.damage:
        how = "list them with --fix-list FILE"
        if fix_list:
            how = shlex.join(["bpfn", "subset", "--source", str(path), "--leave-out", str(fix_list)])
        raise DataError(f"{path}: {len(found.damage)} scenes are damaged; make them again, or leave them out ({how})")


@app.command()
def show(
    scene: Annotated[Path, options.path_argument(help="DATASET/train/NAME, or DATASET/NAME.", metavar="SCENE")],
    json: options.Json = False,
) -> None:
    """Show one scene: number of points, extent, depth and flow.

    \b
    Examples:
      $ bpfn data show data/synthetic/train/0000003      # a scene of a split
      $ bpfn data show data/kitti/000002 --json          # KITTI has no split folders
    """
    from bpfn_cli.data.inspect import describe_scene

    found = describe_scene(scene)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        text = "  ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
        echo(f"{name + ':':<16}{f'{value:,}' if isinstance(value, int) else text}")


def _print(found: DatasetCheck) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{found.kind}, {found.disk_bytes / 1e6:,.1f} MB in {printable(found.root)}"))
    for heading in ("Split", "Scenes", "Damaged", "", *(f"{quantile:.0%}" for quantile in found.quantiles)):
        table.add_column(heading, justify="left" if heading in ("Split", "") else "right")
    for split in found.splits:
        first = [split.split, f"{split.scenes:,}", f"{split.damaged:,}"]
        for name, values, spec in (
            ("points in cloud 1", split.points1, ",.0f"),
            ("points in cloud 2", split.points2, ",.0f"),
            ("depth \\[m]", split.depth_m, ".2f"),
            ("flow length \\[m]", split.flow_length_m, ".2f"),
        ):
            if values or split.has_flow:
                table.add_row(*first, name, *(format(value, spec) for value in values))
                first = ["", "", ""]
        if not split.has_flow:
            table.add_row(*first, "no true flow")
        elif split.valid_share < 1:
            table.add_row(*first, f"flow known for {split.valid_share:.1%} of the points")
    console().print(table)
    for one in found.damage:
        echo(f"damaged: {one.split}/{one.scene}: {one.fault}")
