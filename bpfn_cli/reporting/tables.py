# SPDX-License-Identifier: MIT
"""Columns, rows and tables of a report, and which columns are drawn on a page or a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

from bpfn_cli.data.datasets import title_of
from bpfn_cli.errors import printable

Value = str | int | float | Decimal | None
Mark = Literal["", "reference", "incomplete"]

NO_VALUE = "–"
PUBLISHED = "published (reports 1 and 6), not measured here"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key, heading: its names in JSON and CSV files, and in drawn tables.
        value: takes what a row is about, such as an `accuracy.Result`, and returns the cell.
        digits: Python format of drawn numbers, such as ".4f"; "": all digits. None: a column of text.
        better: mark the lowest or the highest value among the finished students.
        usual: a value that needs no saying; a column with no other value is not drawn.
        detail: 0: always drawn. Others are listed below the table if the terminal is too narrow, highest first.
    """

    key: str
    heading: str
    value: Callable[[Any], Value]
    digits: str | None = None
    unit: str = ""
    better: Literal["lowest", "highest"] | None = None
    usual: str | None = None
    detail: int = 0

    @property
    def title(self) -> str:
        return f"{self.heading} [{self.unit}]" if self.unit else self.heading

    def text(self, value: Value) -> str:
        """A value as it is drawn."""
        if value is None:
            return NO_VALUE
        return printable(value) if isinstance(value, str) or self.digits is None else format(value, self.digits)

    def phrase(self, value: Value) -> str:
        """A value as it is said in words."""
        unit = f" {self.unit}" if self.unit and value is not None else ""
        return f"{self.heading.lower()} {self.text(value)}{unit}"


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; the best value is looked for among the ranked rows."""

    cells: tuple[Value, ...]
    mark: Mark = ""
    ranked: bool = False


@dataclass(frozen=True)
class Table:
    """A table of one kind; `context` is what all its rows share, for files that hold several tables."""

    kind: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    context: dict[str, Value] = field(default_factory=dict)

    def values(self, column: Column) -> list[Any]:
        index = self.columns.index(column)
        return [row.cells[index] for row in self.rows]

    def best_rows(self, column: Column) -> set[int]:
        """Numbers of the ranked rows with the best value of `column`."""
        cells = enumerate(zip(self.values(column), self.rows, strict=True))
        ranked = {number: value for number, (value, row) in cells if row.ranked and value is not None}
        if column.better is None or not ranked:
            return set()
        best = min(ranked.values()) if column.better == "lowest" else max(ranked.values())
        return {number for number, value in ranked.items() if value == best}

    @property
    def marks(self) -> list[str]:
        """The mark of each row: `best` for the best value of the first column that has one."""
        first = next((column for column in self.columns if column.better), None)
        best = self.best_rows(first) if first else set()
        return ["best" if number in best else row.mark for number, row in enumerate(self.rows)]


@dataclass(frozen=True)
class Report:
    """Tables, notes on all of them, problems with what was left out, and a message if there is nothing to show."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    message: str | None = None


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
            cells = [escape(column.text(value)) for value in self.table.values(column)]
            if marked:
                cells = [(best if number in marked else other).format(cell) for number, cell in enumerate(cells)]
            texts.append(cells)
        return texts

    def lines_below(self) -> Iterator[tuple[int, str]]:
        """Number of a row, and what is listed about it below the table."""
        for number, cells in enumerate(zip(*map(self.table.values, self.below), strict=True), start=1):
            known = zip(self.below, cells, strict=True)
            if phrases := [column.phrase(value) for column, value in known if value is not None]:
                yield number, "; ".join(phrases)


def lay_out(table: Table) -> Layout:
    """Draw the columns in which networks differ, and those that a reader looks for in any case."""
    drawn, shared = [], []
    networks = replace(table, rows=[row for row in table.rows if row.mark != "reference"])
    for column in table.columns:
        values = networks.values(column)
        if set(values) <= {None, column.usual} and (column.detail or column.usual):
            continue
        if column.detail and len(set(values)) == 1 and len(values) > 1:
            shared.append(column.phrase(values[0]))
        else:
            drawn.append(column)
    return Layout(table, tuple(drawn), shared=f"All networks: {'; '.join(shared)}." if shared else "")


def _metric(key: str, heading: str, digits: str, unit: str = "", **options: Any) -> Column:
    return Column(key, heading, lambda row: row.metric(key), digits, unit, **options)


# For rows with a method `metric(key)`.
METRICS = (
    _metric("epe3d", "EPE3D", ".4f", "m", better="lowest"),
    _metric("acc3d_strict", "Acc3DS", ".4f"),
    _metric("acc3d_relax", "Acc3DR", ".4f"),
    _metric("outliers3d", "Outliers3D", ".4f"),
    _metric("epe2d", "EPE2D", ".3f", "px"),
    _metric("acc2d", "Acc2D", ".4f"),
)


def row_of(columns: Iterable[Column], subject: object, mark: Mark = "", ranked: bool = False) -> Row:
    """The row about `subject`."""
    return Row(tuple(column.value(subject) for column in columns), mark, ranked)


def reference_row(columns: Iterable[Column], metrics: Iterable[tuple[str, Any]], mark: Mark, **cells: Value) -> Row:
    """A row of `metrics` without a run; what `cells` does not give stays empty."""
    known = {**dict(metrics), **cells}
    return Row(tuple(known.get(column.key) for column in columns), mark)


def dataset_title(kind: str) -> str:
    """The name of a dataset as it is usually written."""
    name, fifth, _ = kind.partition("_1_5")
    return title_of(name) + (" 1/5" if fifth else "")
