# SPDX-License-Identifier: MIT
"""Tables of what runs measured. Nothing is computed here but differences and means of recorded results."""

from bpfn_cli.reporting.pages import to_csv, to_json, to_markdown, write_pages
from bpfn_cli.reporting.report import build_report
from bpfn_cli.reporting.tables import Column, Report, Row, Table
from bpfn_cli.reporting.terminal import print_console
from bpfn_cli.runs.results import read_runs

__all__ = ["Column", "Report", "Row", "Table", "build_report", "print_console", "read_runs"]
__all__ += ["to_csv", "to_json", "to_markdown", "write_pages"]
