# SPDX-License-Identifier: MIT
"""The table of `bpfn runs`: how far each run is."""

from collections.abc import Sequence
from pathlib import Path

from bpfn_cli.progress import duration
from bpfn_cli.reporting.tables import Column, Table, row_of
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


def status_table(folder: Path, statuses: Sequence[RunStatus]) -> Table:
    return Table("runs", f"Runs in {folder}", STATUSES, [row_of(STATUSES, one) for one in statuses])
