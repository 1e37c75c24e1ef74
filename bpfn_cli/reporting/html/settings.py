# SPDX-License-Identifier: MIT
"""Tables of how runs were made: their settings and what differs between them, command lines and versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from bpfn_cli.errors import BpfnError
from bpfn_cli.files import open_regular
from bpfn_cli.reporting.tables import Column, Row, Table
from bpfn_cli.runs.results import Run

LARGEST_COMMAND = 1 << 16  # bytes
RUN = Column("run", "Run", lambda row: row[0])


def settings_tables(runs: Sequence[Run]) -> Iterator[Table]:
    """What differs between runs, then what all of them share."""
    settings = [_settings(run) for run in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    if not keys:
        return
    differing = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    if differing:
        columns = [RUN, *(_text_column(number + 1, key) for number, key in enumerate(differing))]
        rows = [Row((run.name, *(one.get(key) for key in differing))) for run, one in zip(runs, settings, strict=True)]
        yield Table("settings", "What differs between runs", columns, rows)
    shared = [Row((key, settings[0][key])) for key in keys if key not in differing]
    columns = [Column("key", "Key", lambda row: row[0]), _text_column(1, "Value")]
    yield Table("shared_settings", "What all runs share" if len(runs) > 1 else "Settings", columns, shared)


def commands_table(runs: Sequence[Run]) -> Table:
    """The command line of each run."""
    rows = [Row((run.name, _command(run))) for run in runs]
    return Table("commands", "Command lines", [RUN, _text_column(1, "Command")], rows)


def versions_table(runs: Sequence[Run]) -> Table:
    """Versions, machine and git commits of each run; those that all share are below."""
    found = [{**run.record.versions.model_dump(), **_code(run)} for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    columns = [RUN, *(_text_column(number + 1, key, detail=1) for number, key in enumerate(keys))]
    rows = [Row((run.name, *(_as_text(one.get(key)) for key in keys))) for run, one in zip(runs, found, strict=True)]
    return Table("versions", "Versions", columns, rows)


def _settings(run: Run) -> dict[str, str]:
    record = run.record
    about = {"variant": record.variant, "method": record.method, "epochs": record.epochs, "points": record.points}
    data = {"data": record.data.source_kind, "training scenes": record.data.train_scenes - record.data.held_out_scenes}
    weights = {"teacher weights": record.teacher, "initial weights": record.initial}
    sha256 = {key: one.sha256[:12] for key, one in weights.items() if one}
    flat = {**dict(_flat(record.recipe)), **about, **data, **sha256, "selected on": record.selected_on}
    return {key: text for key, value in flat.items() if (text := _as_text(value)) is not None}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _code(run: Run) -> dict[str, Any]:
    return {f"commit of {key}": value for key, value in _flat(run.record.code)}


def _command(run: Run) -> str | None:
    with suppress(BpfnError), open_regular(run.path / "command.txt", LARGEST_COMMAND) as (stream, _):
        return stream.read().decode(errors="replace").strip()
    return None


def _text_column(index: int, heading: str, detail: int = 0) -> Column:
    return Column(heading, heading, lambda row: row[index], detail=detail)
