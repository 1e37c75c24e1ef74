# SPDX-License-Identifier: MIT
"""`bpfn prepare kitti` and `bpfn prepare flyingthings3d`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json, say
from bpfn_cli.cli.groups import command_group
from bpfn_cli.parallel import usable_cores

if TYPE_CHECKING:
    from bpfn_cli.data.prepare.runner import PrepareSummary

app = command_group("Turn raw downloads into scenes.")

Raw = Annotated[Path, typer.Option("--source", help="The raw download: a folder, .zip or .tar.", metavar="PATH")]
ShardOfAll = Annotated[
    str, typer.Option("--shard", help="Every n-th scene from the i-th, for job arrays: i/n.", metavar="I/N")
]


@app.command()
def kitti(
    source: Raw,
    out: options.Out = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Folder or .zip of calib_cam_to_cam, if elsewhere.", metavar="PATH"),
    ] = None,
    shard: ShardOfAll = "1/1",
    processes: options.Processes = None,
    json: options.Json = False,
) -> None:
    """KITTI Scene Flow 2015: disparity, flow and calibration to pairs of clouds.

    Examples: `bpfn prepare kitti --source downloads/data_scene_flow --out data/kitti`,
    `bpfn prepare kitti --source downloads/data_scene_flow.zip`
    """
    from bpfn_cli.cli.places import data_root
    from bpfn_cli.data.prepare.runner import Shard, prepare_kitti

    folder = out or data_root() / "kitti"
    with ConsoleProgress().bar("preparing scenes") as bar:
        summary = prepare_kitti(
            source,
            folder,
            calibration=calibration,
            shard=Shard.parse(shard),
            processes=processes or usable_cores(),
            progress=bar,
        )
    _report(summary, "200, of which 142 are evaluated", folder, json, f"bpfn eval --data {folder}")


@app.command()
def flyingthings3d(
    source: Raw,
    out: options.Out = None,
    near: Annotated[float, typer.Option("--near", min=0, help="Depth cut in metres; 0: none.")] = 35.0,
    occluded: Annotated[
        bool, typer.Option("--occluded", help="With hidden points, as FlowNet3D prepared it.", metavar="")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many scenes a split.")] = None,
    drop_nonfinite: Annotated[
        bool, typer.Option("--drop-nonfinite", help="Leave out NaN and infinite pixels.", metavar="")
    ] = False,
    shard: ShardOfAll = "1/1",
    processes: options.Processes = None,
    json: options.Json = False,
) -> None:
    """FlyingThings3D subset: disparity, its change, flow and occlusions to pairs of clouds.

    Examples: `bpfn prepare flyingthings3d --source downloads/FlyingThings3D_subset`,
    `bpfn prepare flyingthings3d --source downloads/FlyingThings3D_subset.zip --shard 3/8`
    """
    from bpfn_cli.cli.places import data_root
    from bpfn_cli.data.datasets.layout import FLYINGTHINGS3D_FOLDER
    from bpfn_cli.data.prepare.runner import Shard, prepare_flyingthings3d, prepare_occluded_flyingthings3d
    from bpfn_cli.errors import UsageError

    if occluded and (drop_nonfinite or not near):
        given = "--drop-nonfinite" if drop_nonfinite else "--near 0"
        raise UsageError(f"{given}: not with --occluded, which drops what has no depth, and is cut; leave it out")
    if occluded:
        folder, published, then = data_root() / "FlyingThings3D_occluded", "20,007 train and 2,007 test", "train --data"
        prepare = partial(prepare_occluded_flyingthings3d, near=near)
    else:
        folder, published, then = data_root() / FLYINGTHINGS3D_FOLDER, "19,640 train and 3,824 val", "subset --source"
        prepare = partial(prepare_flyingthings3d, near=near or None, drop_nonfinite=drop_nonfinite)
    folder = out or folder
    with ConsoleProgress().bar("preparing scenes") as bar:
        summary = prepare(
            source,
            folder,
            limit=limit,
            shard=Shard.parse(shard),
            processes=processes or usable_cores(),
            progress=bar,
        )
    _report(summary, published, folder, json, f"bpfn {then} {folder}")


def _report(summary: PrepareSummary, published: str, folder: Path, json: bool, next_command: str) -> None:
    for note in summary.notes:
        say(f"note: {note}")
    if json:
        print_json(summary)
    else:
        mean = summary.points / max(summary.scenes, 1)
        print(
            f"{summary.scenes:,} scenes ({summary.skipped:,} were there before), {mean:,.0f} points each on average; "
            f"published: {published}"
        )
    finish(folder, next_command)
