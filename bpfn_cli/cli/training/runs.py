# SPDX-License-Identifier: MIT
"""`bpfn runs` and `bpfn resume`."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, print_json, say
from bpfn_cli.cli.places import RUNS
from bpfn_cli.cli.training.processes import Processes, conclude, process_progress
from bpfn_cli.errors import UsageError, printable

if TYPE_CHECKING:
    from bpfn_cli.runs.listing import RunStatus

SECONDS_BETWEEN_LOOKS = 2.0


def runs(
    runs: options.Runs = RUNS,
    watch: Annotated[bool, options.switch("--watch", "Keep the list up to date until Ctrl-C.")] = False,
    unfinished: Annotated[bool, options.switch("--unfinished", "Only runs that are not finished.")] = False,
    json: options.Json = False,
) -> None:
    """List runs: their state, progress and time left.

    EPE3D is given in metres, for the best validation and for the test split. A run is `killed` if run.json
    says running but no process works on it; `bpfn resume` continues it. --watch shows as many runs as fit on the
    terminal, first those that are not finished; off a terminal, it prints the list once.

    \b
    Examples:
      $ bpfn runs                                  # all runs in runs/
      $ bpfn runs --watch                          # follow trainings
      $ bpfn runs --unfinished                     # what runs, or has stopped
      $ bpfn runs --runs /scratch/me/runs --json   # for a script
    """
    from bpfn_cli.reporting.statuses import status_table
    from bpfn_cli.reporting.terminal import print_table

    if watch and json:
        raise UsageError("--watch and --json: use only one of them")
    if watch and sys.stdout.isatty():
        _follow(runs, unfinished)
        return
    found = _statuses(runs, unfinished)
    if json:
        print_json([vars(one) for one in found])
    elif not found:
        say(f"no {'unfinished ' if unfinished else ''}runs in {printable(runs)}; `bpfn distill` makes one")
    else:
        print_table(status_table(runs, found), console())
        stopped = [one for one in found if one.can_resume]
        if stopped:
            say(f"next: bpfn resume {shlex.quote(printable(stopped[-1].folder))}")


def _statuses(runs: Path, unfinished: bool) -> list[RunStatus]:
    from bpfn_cli.runs.listing import run_statuses

    return [one for one in run_statuses(runs) if not (unfinished and one.state == "finished")]


def _follow(runs: Path, unfinished: bool) -> None:
    """Show the list until Ctrl-C."""
    from rich.live import Live

    from bpfn_cli.reporting.statuses import watched

    screen = console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=screen, auto_refresh=False) as live:
        while True:
            live.update(watched(runs, _statuses(runs, unfinished), screen), refresh=True)
            time.sleep(SECONDS_BETWEEN_LOOKS)


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
    record = RunFolder.open(folder).record
    if devices is None and flags.nodes == 1:
        devices = record.versions.processes
    several = flags.nodes > 1 or (devices or 1) > 1
    before = record.paths.device.partition(":")[0] if several and record.paths else "auto"
    with Processes(flags.device or before, devices, flags.nodes).joined() as own:
        chosen = None if flags.device is None and distributed.size() == 1 else str(own)
        changes = Changes(flags.data, flags.teacher, chosen, flags.allow, flags.allow_code)
        conclude(resume_run(folder, process_progress(), stop, changes), folder.parent, flags.json)
