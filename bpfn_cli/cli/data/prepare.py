# SPDX-License-Identifier: MIT
"""`bpfn prepare kitti` and `bpfn prepare flyingthings3d`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json, say
from bpfn_cli.cli.groups import command_group
from bpfn_cli.parallel import Shard, usable_cores

if TYPE_CHECKING:
    from bpfn_cli.data.prepare.scene import Preparation

app = command_group("Turn raw downloads into scenes.")

Source = Annotated[Path, typer.Option("--source", help="The raw download: a folder, .zip or .tar.", metavar="PATH")]
ShardText = Annotated[
    str, typer.Option("--shard", help="For job arrays: prepare every N-th scene, from the I-th.", metavar="I/N")
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Folder or .zip with calib_cam_to_cam; default: searched next to the source.",
        metavar="PATH",
    ),
]
Near = Annotated[float, typer.Option("--near", min=0, help="Largest depth in metres; 0: no limit.")]
Occluded = Annotated[
    bool, typer.Option("--occluded", help="Include hidden points, as FlowNet3D prepared it.", metavar="")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Prepare at most this many scenes per split.")]
DropNonfinite = Annotated[bool, typer.Option("--drop-nonfinite", help="Leave out NaN and infinite pixels.", metavar="")]


@dataclass(frozen=True)
class _How:
    """How a preparation runs. published: the published number of scenes. next_command: without the folder."""

    shard: str
    processes: int | None
    json: bool
    published: str
    next_command: str


@app.command()
def kitti(
    source: Source,
    out: options.Out = None,
    calibration: Calibration = None,
    shard: ShardText = "1/1",
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
    _run(job, _How(shard, processes, json, "200, of which 142 are evaluated", "bpfn eval --data"))


@app.command()
def flyingthings3d(
    source: Source,
    out: options.Out = None,
    near: Near = 35.0,
    occluded: Occluded = False,
    limit: Limit = None,
    drop_nonfinite: DropNonfinite = False,
    shard: ShardText = "1/1",
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
    from bpfn_cli.data.prepare.flyingthings3d import plan_flyingthings3d
    from bpfn_cli.data.prepare.occluded import plan_occluded_flyingthings3d
    from bpfn_cli.errors import UsageError

    if not occluded:
        folder = out or data_root() / FLYINGTHINGS3D_FOLDER
        job = plan_flyingthings3d(source, folder, near=near or None, drop_nonfinite=drop_nonfinite, limit=limit)
        return _run(job, _How(shard, processes, json, "19,640 train and 3,824 val", "bpfn subset --source"))
    if drop_nonfinite or not near:
        given = "--drop-nonfinite" if drop_nonfinite else "--near 0"
        raise UsageError(f"{given}: no effect with --occluded, which always cuts and drops; leave it out")
    folder = out or data_root() / "FlyingThings3D_occluded"
    job = plan_occluded_flyingthings3d(source, folder, near=near, limit=limit)
    return _run(job, _How(shard, processes, json, "20,007 train and 2,007 test", "bpfn train --data"))


def _run(job: Preparation, how: _How) -> None:
    from bpfn_cli.data.prepare.runner import prepare

    shard, processes = Shard.parse(how.shard), how.processes or usable_cores()
    with ConsoleProgress().bar("preparing scenes") as bar:
        summary = prepare(job, shard=shard, processes=processes, progress=bar)
    for note in summary.notes:
        say(f"note: {note}")
    if how.json:
        print_json(summary)
    else:
        mean = summary.points / max(summary.scenes, 1)
        print(
            f"{summary.scenes:,} scenes ({summary.skipped:,} already prepared), {mean:,.0f} points on average; "
            f"published: {how.published}"
        )
    finish(job.out, f"{how.next_command} {job.out}")
