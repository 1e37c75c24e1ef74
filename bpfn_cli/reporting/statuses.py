# SPDX-License-Identifier: MIT
"""The table of `bpfn runs`: how far each run is."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from bpfn_cli.progress import duration
from bpfn_cli.reporting.tables import Column, Table, row_of
from bpfn_cli.reporting.terminal import print_table
from bpfn_cli.runs.listing import RunStatus

# For rows about a `RunStatus`.
STATUSES = [
    Column("name", "Run", lambda row: row.name),
    Column("state", "State", lambda row: row.state),
    Column("epochs", "Epochs", lambda row: f"{row.epochs_done}/{row.epochs}" if row.epochs else None),
    Column("left", "Left", lambda row: None if row.seconds_left is None else duration(row.seconds_left), detail=2),
    Column("validation_epe3d", "Validation", lambda row: row.validation_epe3d, ".4f", "m", detail=1),
    Column("epe3d", "Test", lambda row: row.epe3d, ".4f", "m"),
    Column("reason", "Reason", lambda row: row.reason, detail=3),
]


ROWS_AROUND = 5  # of a terminal, for the title, the heading and the line below


def watched(folder: Path, statuses: Sequence[RunStatus], console: Console) -> Text:
    """The table as it is shown on a terminal, with as many runs as fit: finished ones leave first, oldest first."""
    room = max(1, console.height - ROWS_AROUND)
    by_need = sorted(statuses, key=lambda one: (one.state != "finished", one.started))[-room:]
    kept = [one for one in statuses if one in by_need]
    running = sum(one.state == "running" for one in statuses)
    with console.capture() as capture:
        print_table(status_table(folder, kept), console)
        hidden = f", {len(statuses) - len(kept)} not shown" if len(kept) < len(statuses) else ""
        console.print(f"{len(statuses)} runs, {running} running{hidden}; Ctrl-C ends", style="dim", markup=False)
    return Text.from_ansi(capture.get())


def status_table(folder: Path, statuses: Sequence[RunStatus]) -> Table:
    return Table("runs", f"Runs in {folder}", STATUSES, [row_of(STATUSES, one) for one in statuses])
