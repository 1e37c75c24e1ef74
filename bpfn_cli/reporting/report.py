# SPDX-License-Identifier: MIT
"""Result files to a report: which tables there are, in which order."""

from __future__ import annotations

from bpfn_cli.reporting.accuracy import accuracy_notes, accuracy_tables, without_results_tables
from bpfn_cli.reporting.complexity import complexity_tables
from bpfn_cli.reporting.layout import Report
from bpfn_cli.reporting.published import published_tables, read_published
from bpfn_cli.runs.results import RunResults


def build_report(results: RunResults, *, published: bool = False) -> Report:
    """Lay out all tables of `results`; with `published` those of the reports as well, apart and titled so."""
    source = read_published() if published else None
    accuracy = accuracy_tables(results.runs)
    tables = [
        *accuracy,
        *without_results_tables(results.runs),
        *complexity_tables(results.runs, source),
        *(published_tables(source) if source else ()),
    ]
    nothing = f"No runs in {results.folder}: type `bpfn distill --loss bihint` first."
    return Report(
        tables=tuple(tables),
        notes=(*_why_apart(len(accuracy)), *accuracy_notes(results.runs)),
        problems=results.problems,
        message=None if results.runs else nothing,
    )


def _why_apart(protocols: int) -> tuple[str, ...]:
    if protocols < 2:
        return ()
    return (
        f"{protocols} accuracy tables, not one: results of different data, splits, numbers of points or "
        "sampling seeds cannot be compared.",
    )
