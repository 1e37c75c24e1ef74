# SPDX-License-Identifier: MIT
"""Tables of what runs measured. Nothing is computed here but differences and means of recorded results."""

from collections.abc import Sequence

from bpfn_cli.reporting.accuracy import accuracy_notes, accuracy_tables, without_results_tables
from bpfn_cli.reporting.classes import class_report_tables
from bpfn_cli.reporting.complexity import complexity_tables
from bpfn_cli.reporting.history import history_tables
from bpfn_cli.reporting.published import published_tables, read_published
from bpfn_cli.reporting.rows import Planned
from bpfn_cli.reporting.tables import Column, Report, Row, Table
from bpfn_cli.reporting.terminal import print_console
from bpfn_cli.reporting.text_files import table_files, to_csv, to_json, to_markdown, write_tables
from bpfn_cli.runs.results import RunResults, read_runs

__all__ = ["Column", "Planned", "Report", "Row", "Table", "build_report", "print_console", "read_runs"]
__all__ += ["table_files", "to_csv", "to_json", "to_markdown", "write_tables"]


def build_report(
    results: RunResults, *, published: bool = False, detail: bool = False, planned: Sequence[Planned] = ()
) -> Report:
    """All tables of `results` and of `planned` trainings.

    Args: published: also those of the published results. detail: also those of errors by class of points.
    """
    source = read_published() if published else None
    accuracy, notes = accuracy_tables(results.runs, results.others), accuracy_notes(results.runs)
    by_class = class_report_tables(results.runs, results.others) if detail else []
    tables = [
        *accuracy,
        *by_class,
        *without_results_tables(results.runs, planned),
        *complexity_tables(results.runs, source),
        *history_tables(results.runs, results.others),
    ]
    tables += published_tables(source) if source else []
    if len(accuracy) > 1:
        differing = "different data, splits, numbers of points or sampling seeds"
        notes.insert(0, f"{len(accuracy)} accuracy tables: results on {differing} cannot be compared.")
    message = (
        None
        if results.runs or results.others or planned
        else f"No runs in {results.folder}; start with `bpfn distill --loss bihint`."
    )
    return Report(tuple(tables), tuple(notes), results.problems, message)
