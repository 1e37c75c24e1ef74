# SPDX-License-Identifier: MIT
"""A report as Markdown, CSV, JSON, or on a terminal. Whatever a file or folder was called, it stays text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from textwrap import fill
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from bpfn_cli.errors import printable
from bpfn_cli.reporting.layout import Column, Report, Row, Table, Value

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

NO_VALUE = "–"
MARKED = "epe3d"
WIDER_THAN_ANY = 1_000_000
FORMULA_STARTS = ("=", "+", "-", "@")
MARKDOWN_ESCAPES = {
    **{character: f"\\{character}" for character in "\\`*_[]|~"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}


def to_json(report: Report) -> dict[str, Any]:
    """The whole report with unrounded numbers, for `json.dumps`."""
    return {
        "format": 1,
        "message": report.message,
        "notes": list(report.notes),
        "problems": list(report.problems),
        "tables": [_table_to_json(table) for table in report.tables],
    }


def to_csv(report: Report) -> dict[str, str]:
    """One CSV text for each kind of table; tables of a kind stand below each other, told apart by columns.

    Numbers are unrounded. Text that a spreadsheet would take for a formula starts with an apostrophe.
    """
    texts = {}
    for kind in dict.fromkeys(table.kind for table in report.tables):
        tables = [table for table in report.tables if table.kind == kind]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        context = [key for key, _ in tables[0].context]
        writer.writerow(["table", *context, *(column.key for column in tables[0].columns)])
        for table in tables:
            shared = [table.title, *(value for _, value in table.context)]
            writer.writerows([_csv_cell(value) for value in (*shared, *row.cells)] for row in table.rows)
        texts[str(kind)] = stream.getvalue()
    return texts


def to_markdown(report: Report) -> str:
    """GitHub Markdown: a section for each table, the lowest EPE3D in bold."""
    blocks = ["# Report"]
    for table in report.tables:
        blocks += _table_to_markdown(table)
    for heading, lines in (("How to read", report.notes), ("Left out", report.problems)):
        if lines:
            blocks += [f"## {heading}", _markdown_list(lines)]
    if report.message:
        blocks.append(_markdown(report.message))
    return "\n\n".join(blocks) + "\n"


def print_console(report: Report, console: Console) -> None:
    """Draw the report; what does not fit into the width of `console` is told below its table."""
    for table in report.tables:
        _print(console, table.title, style="bold")
        _print_table(table, console)
        _print(console, "")
    for note in report.notes:
        _print(console, note, sign="-", style="dim")
    for problem in report.problems:
        _print(console, f"left out: {problem}", sign="-", style="yellow")
    if report.message:
        _print(console, report.message)


@dataclass(frozen=True)
class _Drawing:
    """A table ready to be drawn: which columns are in it, which are told row by row below it, and in words
    what all its networks have in common."""

    table: Table
    shown: tuple[int, ...]
    common: str
    beside: tuple[int, ...] = ()

    @property
    def columns(self) -> list[Column]:
        return [self.table.columns[index] for index in self.shown]

    @property
    def details(self) -> list[int]:
        return [index for index in self.shown if self.table.columns[index].detail]

    @property
    def mere_details(self) -> list[int]:
        return [index for index in self.details if self.table.columns[index].detail > 1]

    def texts(self, row: Row) -> list[str]:
        return [_text(self.table.columns[index], row.cells[index]) for index in self.shown]

    def without_next_detail(self) -> _Drawing:
        """With the column that can best be missed told below the table."""
        leaving = max(self.details, key=lambda index: self.table.columns[index].detail)
        shown = tuple(index for index in self.shown if index != leaving)
        return replace(self, shown=shown, beside=tuple(sorted((*self.beside, leaving))))

    def told(self) -> list[tuple[int, str]]:
        """Row number and what stands below the table about it."""
        lines = []
        for number, row in enumerate(self.table.rows, start=1):
            known = [index for index in self.beside if row.cells[index] is not None]
            phrases = [_phrase(self.table.columns[index], row.cells[index]) for index in known]
            if phrases:
                lines.append((number, "; ".join(phrases)))
        return lines


def _drawing(table: Table) -> _Drawing:
    runs = [row for row in table.rows if row.mark != "reference"]
    shown, common = [], []
    for index, column in enumerate(table.columns):
        values = {row.cells[index] for row in runs}
        if values <= {None, column.usual} and (column.detail or column.usual):
            continue
        if column.detail and len(values) == 1 and len(runs) > 1:
            common.append(_phrase(column, runs[0].cells[index]))
        else:
            shown.append(index)
    return _Drawing(table, tuple(shown), "; ".join(common))


def _text(column: Column, value: Value) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, str) or column.spec is None:
        return printable(value)
    return format(value, column.spec) + column.suffix


def _phrase(column: Column, value: Value) -> str:
    return f"{column.title.lower()} {_text(column, value)}"


def _table_to_json(table: Table) -> dict[str, Any]:
    keys = [column.key for column in table.columns]
    return {
        "kind": table.kind,
        "title": table.title,
        "context": dict(table.context),
        "notes": list(table.notes),
        "columns": [{"key": column.key, "title": column.title} for column in table.columns],
        "rows": [{"mark": row.mark, **dict(zip(keys, map(_json_value, row.cells), strict=True))} for row in table.rows],
    }


def _json_value(value: Value) -> str | int | float | None:
    return float(value) if isinstance(value, Decimal) else value


def _csv_cell(value: Value) -> str:
    text = "" if value is None else printable(value)
    if not text.lstrip().startswith(FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _table_to_markdown(table: Table) -> list[str]:
    drawing = _drawing(table)
    columns = drawing.columns
    lines = []
    for row in table.rows:
        line = [_markdown(text) for text in drawing.texts(row)]
        for index, column in enumerate(columns):
            if row.mark == "best" and column.key == MARKED:
                line[index] = f"**{line[index]}**"
        lines.append(line)
    grid = tabulate(
        lines,
        headers=[column.title for column in columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left" if column.spec is None else "right" for column in columns],
    )
    notes = [f"All networks: {drawing.common}."] if drawing.common else []
    notes += table.notes
    blocks = [f"## {_markdown(table.title)}", grid]
    return [*blocks, _markdown_list(notes)] if notes else blocks


def _markdown_list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_markdown(line)}" for line in lines)


def _markdown(text: str) -> str:
    return "".join(MARKDOWN_ESCAPES.get(character, character) for character in printable(text))


def _print_table(table: Table, console: Console) -> None:
    layouts = list(_layouts(_drawing(table)))
    fitting = (layout for layout in layouts if _width(layout[1], console) <= console.width)
    drawing, drawn = next(fitting, layouts[-1])
    console.print(drawn)
    if drawing.common:
        _print(console, f"All networks: {drawing.common}.")
    for number, line in drawing.told():
        _print(console, line, sign=f"{number:>2}")
    for note in table.notes:
        _print(console, note, sign="-", style="dim")


def _layouts(drawing: _Drawing) -> Iterator[tuple[_Drawing, RichTable]]:
    """From the widest to the narrowest: details leave first, then the air, last what a reader looks for."""
    while True:
        yield drawing, _rich_table(drawing)
        if not drawing.mere_details:
            yield drawing, _rich_table(drawing, tight=True)
        if not drawing.details:
            return
        drawing = drawing.without_next_detail()


def _print(console: Console, line: str, *, sign: str = "", style: str = "") -> None:
    """One line behind a number or dash; what wraps stays clear of it."""
    from rich.text import Text

    indent = f"{sign} " if sign else ""
    width = max(console.width, len(indent) + 1)
    wrapped = fill(
        printable(line),
        width,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_on_hyphens=False,
    )
    console.print(Text(wrapped, style=style))


def _width(drawn: RichTable, console: Console) -> int:
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=WIDER_THAN_ANY), drawn).maximum


def _rich_table(drawing: _Drawing, *, tight: bool = False) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    gap = 0 if tight else 1
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), show_edge=False)
    rows = drawing.table.rows
    if drawing.beside:
        drawn.add_column("#", justify="right")
    columns = [[str(number) for number in range(1, len(rows) + 1)]] if drawing.beside else []
    for column, texts in zip(drawing.columns, _marked_columns(drawing), strict=True):
        is_text = column.spec is None
        header = column.title if is_text else column.title.replace(" ", "\n")
        drawn.add_column(Text(header), justify="left" if is_text else "right", overflow="fold")
        columns.append(_wrapped_at_words(texts) if is_text and tight else texts)
    for row, line in zip(rows, zip(*columns, strict=True), strict=True):
        style = {"best": "bold", "incomplete": "dim"}.get(row.mark)
        drawn.add_row(*map(Text, line), style=style)
    return drawn


def _wrapped_at_words(column: Sequence[str]) -> list[str]:
    """A column as narrow as its longest word."""
    width = max((len(word) for text in column for word in text.split()), default=1)
    return [fill(text, width, break_on_hyphens=False) for text in column]


def _marked_columns(drawing: _Drawing) -> list[list[str]]:
    """Cell texts, column by column, with a star at the lowest EPE3D and a blank in its place elsewhere."""
    rows = drawing.table.rows
    columns = [list(texts) for texts in zip(*map(drawing.texts, rows), strict=True)]
    stars = ["*" if row.mark == "best" else " " for row in rows]
    for column, texts in zip(drawing.columns, columns, strict=True):
        if column.key == MARKED and "*" in stars:
            texts[:] = [text + star for text, star in zip(texts, stars, strict=True)]
    return columns
