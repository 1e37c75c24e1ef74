# SPDX-License-Identifier: MIT
"""`bpfn subset`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json, say
from bpfn_cli.parallel import usable_cores

if TYPE_CHECKING:
    from bpfn_cli.data.subset.manifest import Extent


class Method(str, Enum):
    """How scenes are chosen."""

    hash = "hash"
    stride = "stride"
    stratified = "stratified"


class Link(str, Enum):
    """How files are brought over."""

    auto = "auto"
    copy = "copy"
    hard = "hard"
    symlink = "symlink"


def subset(
    source: options.Source = None,
    out: options.Out = None,
    fraction: Annotated[float, typer.Option("--fraction", help="Share of the training scenes to keep.")] = 0.2,
    method: Annotated[
        Method,
        typer.Option("--method", help="hash: nested, the same everywhere; stratified: flow and depth as in the whole."),
    ] = Method.hash,
    offset: Annotated[int, typer.Option("--offset", min=0, help="First scene of stride.")] = 0,
    link: Annotated[Link, typer.Option("--link", help="auto: hard link, else copy.")] = Link.auto,
    val_fraction: Annotated[
        float | None, typer.Option("--val-fraction", help="Share of the val scenes; else all.")
    ] = None,
    packed: Annotated[bool, typer.Option("--packed", help="One file a split, fast to train from.", metavar="")] = False,
    max_points: Annotated[
        int | None, typer.Option("--max-points", min=1, help="Points kept of each packed scene, at random; else all.")
    ] = None,
    leave_out: Annotated[
        Path | None, typer.Option("--leave-out", help="List of scenes to pass over.", metavar="FILE")
    ] = None,
    seed: options.Seed = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check a finished subset, --out.", metavar="")] = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Keep a fifth of FlyingThings3D (or of the synthetic scenes), with a record of what and why.

    Examples: `bpfn subset`, `bpfn subset --source data/FlyingThings3D_subset_processed_35m --fraction 0.1`,
    `bpfn subset --packed --max-points 32768`, `bpfn subset --verify --out data/synthetic-subset`
    """
    from bpfn_cli.cli.places import full_dataset, subset_place, synthetic_first
    from bpfn_cli.data.subset.make import make_subset, plan_subset, read_leave_out, verify_subset
    from bpfn_cli.data.subset.manifest import SubsetOptions
    from bpfn_cli.errors import DataError

    if verify:
        whole = source or full_dataset(make=False)
        folder = out or (subset_place(whole) if whole else None)
        if folder is None:
            raise DataError("--verify: there is no dataset whose subset could be checked; give --out DIR")
        with ConsoleProgress().bar("checking files") as bar:
            summary = verify_subset(folder, progress=bar, processes=usable_cores())
        say(f"{folder}: every file is as its subset.json says")
        if json:
            print_json(summary)
        return
    chosen = SubsetOptions(
        fraction,
        method.value,
        seed or 0,
        offset,
        link.value,
        val_fraction,
        packed=packed,
        max_points=max_points,
        leave_out=read_leave_out(leave_out) if leave_out else (),
    )
    place = source or full_dataset(make=not dry_run)
    if place is None:
        say(f"data: {synthetic_first()}; a share of {fraction:g} of them would be kept")
        return
    folder = out or subset_place(place)
    if dry_run:
        plan = plan_subset(place, chosen)
        if json:
            print_json({"out": str(folder), "before": _plain(plan.before), "after": _plain(plan.after)})
        else:
            print(f"{_size(plan.before)} in {place}\n{_size(plan.after)} would be in {folder}")
        return
    with ConsoleProgress().bar("bringing over scenes") as bar:
        summary = make_subset(place, folder, chosen, progress=bar, force=force, processes=usable_cores())
    for skipped in summary.skipped:
        say(f"left out: {skipped}")
    if json:
        print_json(summary)
    else:
        likeness = summary.likeness
        print(f"before: {_size(summary.before)} ({place})")
        print(f"after:  {_size(summary.after)} ({chosen.label()}{', already complete' * summary.already_complete})")
        print(
            f"as the source: Kolmogorov-Smirnov distance {likeness.flow_length:.3f} of flow lengths, "
            f"{likeness.depth:.3f} of depths (0: the same, 1: nothing in common)"
        )
    finish(folder, "bpfn profile --variant weightnet48")


def _size(extent: Extent) -> str:
    return f"{extent.train_scenes} train and {extent.val_scenes} val scenes, {extent.bytes / 1e6:,.1f} MB"


def _plain(extent: Extent) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(extent)
