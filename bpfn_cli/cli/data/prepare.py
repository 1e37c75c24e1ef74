# SPDX-License-Identifier: MIT
"""`bpfn prepare kitti` and `bpfn prepare flyingthings3d`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, echo, finish, print_json, say
from bpfn_cli.cli.groups import command_group
from bpfn_cli.cli.places import worker_processes
from bpfn_cli.parallel import Shard

if TYPE_CHECKING:
    from bpfn_cli.data.prepare.runner import Preparation

app = command_group("Turn raw downloads into scenes.")

Source = Annotated[Path, options.path("--source", help="The raw download: a folder, .zip or .tar.", metavar="PATH")]
SHARD = typer.Option("--shard", help="For job arrays: prepare every N-th scene, from the I-th.", metavar="I/N")
LIMIT = typer.Option("--limit", min=1, help="Prepare at most this many scenes per split.")
CALIBRATION = "Folder or .zip with calib_cam_to_cam; default: searched next to the source."


@app.command()
def kitti(
    source: Source,
    out: Annotated[Path | None, options.out("the clouds; default: kitti in `data/`")] = None,
    calibration: Annotated[Path | None, options.path("--calibration", help=CALIBRATION, metavar="PATH")] = None,
    shard: Annotated[str, SHARD] = "1/1",
    processes: options.Processes = None,
    json: options.Json = False,
) -> None:
    """Turn KITTI Scene Flow 2015 into pairs of clouds.

    \b
    Examples:
      $ bpfn prepare kitti --source downloads/data_scene_flow                    # an unpacked download
      $ bpfn prepare kitti --source downloads/data_scene_flow.zip --out data/k   # the archive itself
    """
    from bpfn_cli.cli.places import data_root
    from bpfn_cli.data.prepare.kitti import plan_kitti

    job = plan_kitti(source, out or data_root() / "kitti", calibration=calibration)
    _run(job, shard, processes, json, "200, of which 142 are evaluated", "bpfn eval --data")


@app.command()
def flyingthings3d(
    source: Source,
    out: Annotated[
        Path | None, options.out("the clouds; default: a folder in `data/`, named after the dataset")
    ] = None,
    near: Annotated[float, typer.Option("--near", min=0, help="Largest depth in metres; 0: no limit.")] = 35.0,
    occluded: Annotated[bool, options.switch("--occluded", "Include hidden points, as FlowNet3D prepared it.")] = False,
    limit: Annotated[int | None, LIMIT] = None,
    drop_nonfinite: Annotated[bool, options.switch("--drop-nonfinite", "Leave out NaN and infinite pixels.")] = False,
    shard: Annotated[str, SHARD] = "1/1",
    processes: options.Processes = None,
    json: options.Json = False,
) -> None:
    """Turn the FlyingThings3D subset into pairs of clouds.

    \b
    Examples:
      $ bpfn prepare flyingthings3d --source downloads/FlyingThings3D_subset             # all scenes
      $ bpfn prepare flyingthings3d --source FlyingThings3D_subset.zip --shard 3/8       # a job of an array
      $ bpfn prepare flyingthings3d --source downloads/FlyingThings3D_subset --occluded  # with hidden points
    """
    from bpfn_cli.cli.places import data_root
    from bpfn_cli.data.datasets.flyingthings3d import FLYINGTHINGS3D_FOLDER
    from bpfn_cli.data.prepare.flyingthings3d import plan_flyingthings3d, plan_occluded_flyingthings3d
    from bpfn_cli.errors import UsageError

    if not occluded:
        folder = out or data_root() / FLYINGTHINGS3D_FOLDER
        job = plan_flyingthings3d(source, folder, near=near or None, drop_nonfinite=drop_nonfinite, limit=limit)
        return _run(job, shard, processes, json, "19,640 train and 3,824 val", "bpfn subset --source")
    if drop_nonfinite or not near:
        given = "--drop-nonfinite" if drop_nonfinite else "--near 0"
        raise UsageError(f"{given}: no effect with --occluded, which always cuts and drops; leave it out")
    folder = out or data_root() / "FlyingThings3D_occluded"
    job = plan_occluded_flyingthings3d(source, folder, near=near, limit=limit)
    return _run(job, shard, processes, json, "20,007 train and 2,007 test", "bpfn train --data")


def _run(job: Preparation, shard: str, processes: int | None, json: bool, published: str, next_command: str) -> None:
    """Prepare. published: the published number of scenes. next_command: without the folder."""
    from bpfn_cli.data.prepare.runner import prepare

    part = Shard.parse(shard)
    with ConsoleProgress().bar("preparing scenes") as bar:
        summary = prepare(job, shard=part, processes=worker_processes(processes), progress=bar)
    for note in summary.notes:
        say(f"note: {note}")
    if json:
        print_json(summary)
    else:
        mean, done = summary.points / max(summary.scenes, 1), f"({summary.skipped:,} already prepared)"
        echo(f"{summary.scenes:,} scenes {done}, {mean:,.0f} points on average; published: {published}")
    finish(job.out, *next_command.split(), job.out)
