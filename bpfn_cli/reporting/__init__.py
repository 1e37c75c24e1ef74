# SPDX-License-Identifier: MIT
"""Result files to tables. Computes no metric: it reads what runs measured and lays it out."""

from bpfn_cli.reporting.layout import Column, Report, Row, Table
from bpfn_cli.reporting.render import print_console, to_csv, to_json, to_markdown
from bpfn_cli.reporting.report import build_report
from bpfn_cli.runs.results import RunResults, read_runs

__all__ = [
    "Column",
    "Report",
    "Row",
    "RunResults",
    "Table",
    "build_report",
    "print_console",
    "read_runs",
    "to_csv",
    "to_json",
    "to_markdown",
]
