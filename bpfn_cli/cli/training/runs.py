# SPDX-License-Identifier: MIT
"""`bpfn runs` and `bpfn resume`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, print_json, say
from bpfn_cli.cli.places import RUNS
from bpfn_cli.cli.training.processes import Processes, conclude, process_progress
from bpfn_cli.errors import printable


def runs(
    runs: options.Runs = RUNS,
    unfinished: Annotated[bool, options.switch("--unfinished", "Only runs that can be resumed.")] = False,
    json: options.Json = False,
) -> None:
    """List runs: their state, progress and time left.

    EPE3D is given in metres, for the best validation and for the test split. A run is `killed` if run.json
    says running but no process works on it; `bpfn resume` continues it.

    \b
    Examples:
      $ bpfn runs                                  # all runs in runs/
      $ bpfn runs --unfinished                     # what can be resumed
      $ bpfn runs --runs /scratch/me/runs --json   # for a script
    """
    from bpfn_cli.reporting.statuses import status_table
    from bpfn_cli.reporting.terminal import print_table
    from bpfn_cli.runs.listing import run_statuses

    found = [one for one in run_statuses(runs) if not (unfinished and one.state == "finished")]
    if json:
        print_json([vars(one) for one in found])
    elif not found:
        say(f"no {'unfinished ' if unfinished else ''}runs in {printable(runs)}; `bpfn distill` makes one")
    else:
        print_table(status_table(runs, found), console())
        stopped = [one for one in found if one.state in ("killed", "interrupted", "failed")]
        if stopped:
            say(f"next: bpfn resume {shlex.quote(printable(stopped[-1].folder))}")


@dataclass(frozen=True, kw_only=True)
class ResumeFlags:
    """What `resume` takes."""

    run: Annotated[Path, options.path_argument(help="Run folder, or its name.", metavar="RUN")]
    data: Annotated[Path | None, options.path("--data", help="New location of the dataset.", metavar="DIR")] = None
    teacher: Annotated[Path | None, options.weights("--teacher", help="New location of the teacher.")] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N; default: as before.", metavar="DEVICE")] = None
    devices: options.Devices = None
    nodes: options.Nodes = 1
    max_time: options.MaxTime = None
    allow: Annotated[bool, options.switch("--allow", "Resume although recipe, data or versions changed.")] = False
    allow_code: options.AllowCode = False
    runs: options.Runs = RUNS
    json: options.Json = False


@options.takes(ResumeFlags)
def resume(flags: ResumeFlags) -> None:
    """Resume a stopped training.

    On the same machine, with the same versions and number of threads, the weights are bit for bit those of a training
    that was never stopped. A finished run is left as it is, with exit code 0.

    \b
    Examples:
      $ bpfn resume runs/latest                 # the run that started last
      $ bpfn resume student-1 --max-time 23h    # by name, with a time limit
    """
    _resume(flags)


def _resume(flags: ResumeFlags) -> None:
    from bpfn_cli import distributed
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.runs.folder import RunFolder
    from bpfn_cli.stop import Interruption, parse_duration
    from bpfn_cli.training import Changes
    from bpfn_cli.training import resume as resume_run

    stop = Interruption(None if flags.max_time is None else parse_duration(flags.max_time))
    keep_freed_memory()
    run, devices = flags.run, flags.devices
    folder = run if run.is_dir() or len(run.parts) > 1 else flags.runs / run
    if devices is None and flags.nodes == 1:
        devices = RunFolder.open(folder).record.versions.processes
    with Processes(flags.device or "auto", devices, flags.nodes).joined() as own:
        chosen = None if flags.device is None and distributed.size() == 1 else str(own)
        changes = Changes(flags.data, flags.teacher, chosen, flags.allow, flags.allow_code)
        conclude(resume_run(folder, process_progress(), stop, changes), folder.parent, flags.json)
