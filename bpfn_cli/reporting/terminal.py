# SPDX-License-Identifier: MIT
"""A report on a terminal, fitted to its width."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bpfn_cli.errors import printable
from bpfn_cli.reporting.tables import Layout, Report, Table, lay_out

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
    layouts = list(_layouts(lay_out(table)))
    layout, drawn = next((one for one in layouts if _width(one[1], console) <= console.width), layouts[-1])
    console.print(drawn)
    if layout.shared:
        _print(console, layout.shared)
    for number, line in layout.lines_below():
        _print(console, line, f"{number:>2} ")
    for note in table.notes:
        _print(console, note, "- ", "dim")


def _layouts(layout: Layout) -> Iterator[tuple[Layout, RichTable]]:
    """From the widest to the narrowest: details go first, the last of them only after the padding."""
    while True:
        yield layout, _draw(layout)
        if layout.detail <= 1:
            yield layout, _draw(layout, tight=True)
        if not layout.detail:
            return
        layout = layout.narrower()


def _draw(layout: Layout, *, tight: bool = False) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if tight else 1, 0, 0), show_edge=False)
    marks, cells = layout.table.marks, layout.texts(best="{}*", other="{} ")
    if layout.below:
        drawn.add_column("#", justify="right")
        cells.insert(0, [str(number) for number in range(1, len(marks) + 1)])
    for column, texts in zip(layout.drawn, cells[-len(layout.drawn) :], strict=True):
        is_text = column.digits is None
        heading = column.title if is_text else column.title.replace(" ", "\n")
        drawn.add_column(Text(heading), justify="left" if is_text else "right", overflow="fold")
        if is_text and tight:  # as narrow as the longest word
            width = max((len(word) for text in texts for word in text.split()), default=1)
            texts[:] = [fill(text, width, break_on_hyphens=False) for text in texts]
    for mark, row in zip(marks, zip(*cells, strict=True), strict=True):
        drawn.add_row(*map(Text, row), style=STYLES.get(mark))
    return drawn


def _width(drawn: RichTable, console: Console) -> int:
    return console.measure(drawn, options=console.options.update(max_width=WIDER_THAN_ANY)).maximum


def _print(console: Console, line: str, start: str = "", style: str = "") -> None:
    """Print a line after `start`, wrapped and indented."""
    width = max(console.width, len(start) + 1)
    indent = " " * len(start)
    text = fill(printable(line), width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
    console.print(Text(text, style=style))
