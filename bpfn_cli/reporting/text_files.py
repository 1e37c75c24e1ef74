# SPDX-License-Identifier: MIT
"""A report as JSON, CSV and Markdown. Names of files and folders are escaped, so that they stay text."""

import csv
import io
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bpfn_cli.errors import printable
from bpfn_cli.files import write_atomic
from bpfn_cli.reporting.tables import Report, Table, Value

FORMULA_STARTS = ("=", "+", "-", "@")
MARKDOWN_ESCAPES = str.maketrans(
    {**{character: f"\\{character}" for character in "\\`*_[]|~"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)


def write_tables(report: Report, folder: Path, name: str, csv_prefix: str = "") -> None:
    """Write `NAME.md` and a CSV file for each kind of table. Raises: DiskError."""
    write_atomic(folder / f"{name}.md", to_markdown(report).encode())
    for kind, text in to_csv(report).items():
        write_atomic(folder / f"{csv_prefix}{kind}.csv", text.encode())


def table_files(report: Report, name: str) -> list[str]:
    """The files that `write_tables` writes."""
    return [f"{name}.md", *(f"{kind}.csv" for kind in dict.fromkeys(table.kind for table in report.tables))]


def to_json(report: Report) -> dict[str, Any]:
    """The whole report with all digits, for `json.dumps`."""
    return {
        "format": 1,
        "message": report.message,
        "notes": list(report.notes),
        "problems": list(report.problems),
        "tables": [_table_to_json(table) for table in report.tables],
    }


def to_csv(report: Report) -> dict[str, str]:
    """One CSV text for each kind of table; the first columns tell tables of a kind apart.

    Numbers have all digits. Text that a spreadsheet would take for a formula starts with an apostrophe.
    """
    texts = {}
    for kind in dict.fromkeys(table.kind for table in report.tables):
        tables = [table for table in report.tables if table.kind == kind]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        keys = list(dict.fromkeys(key for table in tables for key in table.context))
        writer.writerow(["table", *keys, *(column.key for column in tables[0].columns)])
        for table in tables:
            shared = [table.title, *map(table.context.get, keys)]
            writer.writerows(map(_csv_cell, (*shared, *row.cells)) for row in table.rows)
        texts[kind] = stream.getvalue()
    return texts


def to_markdown(report: Report) -> str:
    """GitHub Markdown: one section for each table, with the best value in bold."""
    blocks = ["# Report"]
    for table in report.tables:
        blocks += _table_to_markdown(table)
    for heading, lines in (("How to read", report.notes), ("Left out", report.problems)):
        if lines:
            blocks += [f"## {heading}", _list(lines)]
    if report.message:
        blocks.append(_escape(report.message))
    return "\n\n".join(blocks) + "\n"


def _table_to_json(table: Table) -> dict[str, Any]:
    keys = ["mark", *(column.key for column in table.columns)]
    rows = [(mark, *row.cells) for mark, row in zip(table.marks, table.rows, strict=True)]
    return {
        "kind": table.kind,
        "title": table.title,
        "context": table.context,
        "notes": list(table.notes),
        "columns": [{"key": column.key, "title": column.title} for column in table.columns],
        "rows": [dict(zip(keys, map(_json_value, row), strict=True)) for row in rows],
    }


def _json_value(value: Value) -> str | int | float | None:
    return float(value) if isinstance(value, Decimal) else value


def _csv_cell(value: Value) -> str:
    text = "" if value is None else printable(value)
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text


def _table_to_markdown(table: Table) -> list[str]:
    columns, shared = table.layout()
    cells = [table.texts(column, best="**{}**", other="{}", escape=_escape) for column in columns]
    grid = tabulate(
        list(zip(*cells, strict=True)),
        headers=[column.title for column in columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left" if column.digits is None else "right" for column in columns],
    )
    notes = [shared, *table.notes] if shared else table.notes
    return [f"## {_escape(table.title)}", grid, *([_list(notes)] if notes else [])]


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    return printable(text).translate(MARKDOWN_ESCAPES)
