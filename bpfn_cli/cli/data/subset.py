# SPDX-License-Identifier: MIT
"""`bpfn subset`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.choices import Link, SubsetMethod
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, echo, finish, print_json, say
from bpfn_cli.cores import usable_cores

if TYPE_CHECKING:
    from bpfn_cli.data.subset.manifest import Extent, SubsetOptions

METHOD = typer.Option("--method", help="hash: by name; stride: every n-th; stratified: same flow and depth as all.")
VAL_FRACTION = typer.Option("--val-fraction", help="Share of the validation scenes to keep; default: all.")
MAX_POINTS = typer.Option("--max-points", min=1, help="Points kept of each packed scene, at random; default: all.")
FIFTH = options.switch("--fifth", "Every fifth scene of both splits, as in the published compression reports.")
LEAVE_OUT = options.path("--leave-out", help="List of scenes that are never chosen.", metavar="FILE")


def subset(
    source: options.Source = None,
    out: Annotated[Path | None, options.out("the subset; default: SOURCE-subset in `data/`")] = None,
    fraction: Annotated[float, typer.Option("--fraction", help="Share of the training scenes to keep.")] = 0.2,
    method: Annotated[SubsetMethod, METHOD] = "hash",
    offset: Annotated[int, typer.Option("--offset", min=0, help="First scene that stride keeps.")] = 0,
    link: Annotated[Link, typer.Option("--link", help="auto: hard link if possible, else copy.")] = "auto",
    val_fraction: Annotated[float | None, VAL_FRACTION] = None,
    fifth: Annotated[bool, FIFTH] = False,
    packed: Annotated[bool, options.switch("--packed", "One file per split, fast to train from.")] = False,
    max_points: Annotated[int | None, MAX_POINTS] = None,
    leave_out: Annotated[Path | None, LEAVE_OUT] = None,
    seed: options.Seed = 0,
    verify: Annotated[bool, options.switch("--verify", "Check the files of a finished subset, --out.")] = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Keep a share of a dataset, and record how it was chosen.

    The default dataset is FlyingThings3D or, if there is none, the synthetic scenes.

    \b
    Examples:
      $ bpfn subset                                       # a fifth of the training scenes
      $ bpfn subset --fraction 0.1 --dry-run              # show the size of a tenth
      $ bpfn subset --fifth                               # the fifth of the published compression reports
      $ bpfn subset --packed --max-points 32768           # one file per split
      $ bpfn subset --verify --out data/synthetic-subset  # check every file of a subset
    """
    from bpfn_cli.cli.places import full_dataset, subset_place, synthetic_first
    from bpfn_cli.data.subset.manifest import SubsetOptions
    from bpfn_cli.data.subset.plan import read_leave_out

    if verify:
        return _verify(source, out, json)
    left_out = read_leave_out(leave_out) if leave_out else ()
    chosen = SubsetOptions(fraction, method, seed, offset, link, val_fraction, packed, max_points, left_out)
    chosen = chosen.as_reported() if fifth else chosen
    place = source or full_dataset(make=not dry_run)
    if place is None:
        if json:
            print_json({"data": None, "fraction": fraction})
        return say(f"data: {synthetic_first()}; a share of {fraction:g} of them would be kept")
    folder = out or subset_place(place)
    if dry_run:
        return _print_plan(place, folder, chosen, json)
    return _make(place, folder, chosen, force, json)


def _verify(source: Path | None, out: Path | None, json: bool) -> None:
    from bpfn_cli.cli.places import full_dataset, subset_place
    from bpfn_cli.data.subset.make import verify_subset
    from bpfn_cli.errors import DataError

    whole = source or full_dataset(make=False)
    folder = out or (subset_place(whole) if whole else None)
    if folder is None:
        raise DataError("--verify: no dataset whose subset could be checked; give --out DIR")
    with ConsoleProgress().bar("checking files") as bar:
        summary = verify_subset(folder, progress=bar, processes=usable_cores())
    say(f"{folder}: every file matches subset.json")
    if json:
        print_json(summary)


def _print_plan(source: Path, folder: Path, chosen: SubsetOptions, json: bool) -> None:
    from bpfn_cli.data.subset.plan import plan_subset

    plan = plan_subset(source, chosen)
    if json:
        print_json({"out": str(folder), "before": asdict(plan.before), "after": asdict(plan.after)})
    else:
        echo(f"{_size(plan.before)} in {source}\n{_size(plan.after)} would be in {folder}")


def _make(source: Path, folder: Path, chosen: SubsetOptions, force: bool, json: bool) -> None:
    from bpfn_cli.data.subset.make import make_subset

    with ConsoleProgress().bar("copying scenes") as bar:
        summary = make_subset(source, folder, chosen, progress=bar, force=force, processes=usable_cores())
    for skipped in summary.skipped:
        say(f"left out: {skipped}")
    similarity, complete = summary.similarity, ", already complete" * summary.already_complete
    if json:
        print_json(summary)
    else:
        echo(f"before: {_size(summary.before)} ({source})")
        echo(f"after:  {_size(summary.after)} ({summary.options.label()}{complete})")
        distances = f"{similarity.flow_length:.3f} (flow length), {similarity.depth:.3f} (depth)"
        echo(f"Kolmogorov-Smirnov distance to the source: {distances}; 0: the same, 1: nothing in common")
    finish(folder, "bpfn", "profile", "--variant", "weightnet48")


def _size(extent: Extent) -> str:
    return f"{extent.train_scenes} train and {extent.val_scenes} val scenes, {extent.bytes / 1e6:,.1f} MB"
