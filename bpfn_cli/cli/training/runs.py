# SPDX-License-Identifier: MIT
"""`bpfn runs` and `bpfn resume`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, duration, print_json, say
from bpfn_cli.cli.places import RUNS
from bpfn_cli.cli.training.processes import Processes, conclude, progress_of_process


def runs(
    runs: options.Runs = RUNS,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only those to go on with.", metavar="")] = False,
    json: options.Json = False,
) -> None:
    """List trainings: how far each is, and how long it will take.

    EPE3D in metres: of the best validation, and of the test split. `killed`: it says that it runs, but no process
    does; `bpfn resume` goes on with it.

    Examples: `bpfn runs`, `bpfn runs --unfinished`, `bpfn runs --runs /scratch/me/runs --json`
    """
    from rich.table import Column, Table

    from bpfn_cli.errors import printable
    from bpfn_cli.runs.listing import overview

    found = [one for one in overview(runs) if not (unfinished and one.state == "finished")]
    if json:
        print_json([vars(one) for one in found])
        return
    if not found:
        say(f"no {'unfinished ' if unfinished else ''}runs in {printable(runs)}; `bpfn distill` makes one")
        return
    heads = ("state", "epochs", "left", "validation", "test", "why it stopped")
    table = Table(Column("run", overflow="fold"), *heads, box=None, pad_edge=False)
    for one in found:
        left = "" if one.seconds_left is None else duration(one.seconds_left)
        figures = ["" if epe3d is None else f"{epe3d:.4f}" for epe3d in (one.validation_epe3d, one.epe3d)]
        progress = f"{one.epochs_done}/{one.epochs}" if one.epochs else ""
        table.add_row(printable(one.name), one.state, progress, left, *figures, printable(one.reason or ""))
    console().print(table, markup=False)
    stopped = [one for one in found if one.state in ("killed", "interrupted", "failed")]
    if stopped:
        say(f"next: bpfn resume {shlex.quote(printable(stopped[-1].folder))}")


def resume(
    run: Annotated[Path, typer.Argument(readable=False, help="Folder of a run, or its name.", metavar="RUN")],
    data: Annotated[
        Path | None, typer.Option("--data", readable=False, help="Where its data lie now.", metavar="DIR")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", readable=False, help="Where its teacher lies now.", metavar="FILE")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; else as before.")] = None,
    devices: options.Devices = None,
    nodes: options.Nodes = 1,
    max_time: options.MaxTime = None,
    allow: Annotated[
        bool, typer.Option("--allow", help="Go on though recipe, data or versions have changed.", metavar="")
    ] = False,
    runs: options.Runs = RUNS,
    json: options.Json = False,
) -> None:
    """Go on with a training where it stopped, whatever stopped it.

    On the same machine, with the same versions and number of threads, it comes to the same weights bit for bit as if
    it had never stopped. Of a finished run it says so and ends with 0.

    Examples: `bpfn resume runs/latest`, `bpfn resume student-1 --max-time 23h`
    """
    from bpfn_cli import distributed
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.runs.folder import RunFolder
    from bpfn_cli.training import Changes, Interruption, parse_duration
    from bpfn_cli.training import resume as go_on
    from bpfn_cli.training.changes import processes_of

    stop = Interruption(None if max_time is None else parse_duration(max_time))
    keep_freed_memory()
    folder = run if run.is_dir() or len(run.parts) > 1 else runs / run
    if devices is None and nodes == 1:
        devices = processes_of(RunFolder.open(folder))
    with Processes(device or "auto", devices, nodes).joined() as own:
        chosen = None if device is None and distributed.size() == 1 else str(own)
        outcome = go_on(folder, progress_of_process(), stop, Changes(data, teacher, chosen, allow))
        conclude(outcome, folder.parent, json)
