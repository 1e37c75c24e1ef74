# SPDX-License-Identifier: MIT
"""A report on a terminal, fitted to its width."""

from collections.abc import Iterator
from textwrap import fill

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bpfn_cli.errors import printable
from bpfn_cli.reporting.tables import Column, Report, Table

WIDER_THAN_ANY = 1_000_000
STYLES = {"best": "bold", "incomplete": "dim"}


def print_console(report: Report, console: Console) -> None:
    """Print all tables; what does not fit into the width of `console` is listed below its table."""
    for table in report.tables:
        print_table(table, console)
        _print(console, "")
    for note in report.notes:
        _print(console, note, "- ", "dim")
    for problem in report.problems:
        _print(console, f"left out: {problem}", "- ", "yellow")
    if report.message:
        _print(console, report.message)


def print_table(table: Table, console: Console) -> None:
    """Print one table with its title and notes."""
    _print(console, table.title, style="bold")
    columns, shared = table.layout()
    drawings = list(_drawings(table, columns, []))
    drawn, below = next((one for one in drawings if _width(one[0], console) <= console.width), drawings[-1])
    console.print(drawn)
    if shared:
        _print(console, shared)
    for number, line in table.phrases(below):
        _print(console, line, f"{number:>2} ")
    for note in table.notes:
        _print(console, note, "- ", "dim")


def _drawings(table: Table, drawn: list[Column], below: list[Column]) -> Iterator[tuple[RichTable, list[Column]]]:
    """From the widest to the narrowest: details go below first, the last of them only after the padding."""
    yield _draw(table, drawn, bool(below)), below
    leaving = max(drawn, key=lambda column: column.detail)
    if leaving.detail <= 1:
        yield _draw(table, drawn, bool(below), tight=True), below
    if leaving.detail:
        below = [column for column in table.columns if column is leaving or column in below]
        yield from _drawings(table, [column for column in drawn if column is not leaving], below)


def _draw(table: Table, columns: list[Column], has_numbers: bool, *, tight: bool = False) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if tight else 1, 0, 0), show_edge=False)
    cells = []
    if has_numbers:
        drawn.add_column("#", justify="right")
        cells.append([str(number) for number, _ in enumerate(table.rows, start=1)])
    for column in columns:
        is_text, texts = column.digits is None, table.texts(column, best="{}*", other="{} ")
        heading = column.title if is_text else column.title.replace(" ", "\n")
        drawn.add_column(Text(heading), justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        if is_text and tight:  # as narrow as the longest word
            width = max((len(word) for text in texts for word in text.split()), default=1)
            texts = [fill(text, width, break_on_hyphens=False) for text in texts]
        cells.append(texts)
    for mark, row in zip(table.marks, zip(*cells, strict=True), strict=True):
        drawn.add_row(*map(Text, row), style=STYLES.get(mark))
    return drawn


def _width(drawn: RichTable, console: Console) -> int:
    return console.measure(drawn, options=console.options.update(max_width=WIDER_THAN_ANY)).maximum


def _print(console: Console, line: str, start: str = "", style: str = "") -> None:
    """Print a line after `start`, wrapped and indented."""
    width, indent = max(console.width, len(start) + 1), " " * len(start)
    text = fill(printable(line), width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
    console.print(Text(text, style=style))
