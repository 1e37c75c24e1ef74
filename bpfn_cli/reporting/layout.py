# SPDX-License-Identifier: MIT
"""Which columns of a table are drawn, and what is said in words instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bpfn_cli.errors import printable
from bpfn_cli.reporting.tables import Column, Table, Value

NO_VALUE = "–"


@dataclass(frozen=True)
class Layout:
    """A table ready to be drawn: the columns that are drawn, those listed below it, and what all networks share."""

    table: Table
    drawn: tuple[Column, ...]
    below: tuple[Column, ...] = ()
    shared: str = ""

    @property
    def detail(self) -> int:
        """The highest detail that is drawn."""
        return max((column.detail for column in self.drawn), default=0)

    def narrower(self) -> Layout:
        """The same table with its most dispensable column listed below."""
        leaving = max(self.drawn, key=lambda column: column.detail)
        below = tuple(column for column in self.table.columns if column is leaving or column in self.below)
        return replace(self, drawn=tuple(column for column in self.drawn if column is not leaving), below=below)

    def texts(self, best: str, other: str, escape: Callable[[str], str] = str) -> list[list[str]]:
        """The drawn cells, column by column; `best` and `other` format the cells of a column that has a best one."""
        texts = []
        for column in self.drawn:
            marked = self.table.best_rows(column)
            cells = [escape(_text(column, value)) for value in _values(self.table, column)]
            if marked:
                cells = [(best if number in marked else other).format(cell) for number, cell in enumerate(cells)]
            texts.append(cells)
        return texts

    def lines_below(self) -> Iterator[tuple[int, str]]:
        """Number of a row, and what is listed about it below the table."""
        values = zip(*(_values(self.table, column) for column in self.below), strict=True)
        for number, cells in enumerate(values, start=1):
            known = zip(self.below, cells, strict=True)
            if phrases := [_phrase(column, value) for column, value in known if value is not None]:
                yield number, "; ".join(phrases)


def lay_out(table: Table) -> Layout:
    """Draw the columns in which networks differ, and those that a reader looks for in any case."""
    drawn, shared = [], []
    for column in table.columns:
        values = [
            value for value, row in zip(_values(table, column), table.rows, strict=True) if row.mark != "reference"
        ]
        if set(values) <= {None, column.usual} and (column.detail or column.usual):
            continue
        if column.detail and len(set(values)) == 1 and len(values) > 1:
            shared.append(_phrase(column, values[0]))
        else:
            drawn.append(column)
    return Layout(table, tuple(drawn), shared=f"All networks: {'; '.join(shared)}." if shared else "")


def _values(table: Table, column: Column) -> list[Value]:
    index = table.columns.index(column)
    return [row.cells[index] for row in table.rows]


def _text(column: Column, value: Value) -> str:
    if value is None:
        return NO_VALUE
    return printable(value) if isinstance(value, str) or column.digits is None else format(value, column.digits)


def _phrase(column: Column, value: Value) -> str:
    unit = f" {column.unit}" if column.unit and value is not None else ""
    return f"{column.heading.lower()} {_text(column, value)}{unit}"
