# SPDX-License-Identifier: MIT
"""Columns, rows and tables of a report, and which columns are drawn on a page or a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

from bpfn_cli.data.datasets import title_of
from bpfn_cli.errors import printable

Value = str | int | float | Decimal | None
Mark = Literal["", "reference", "incomplete"]

NO_VALUE = "–"
PUBLISHED = "published (reports 1 to 11), not measured here"


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
        heading = self.heading.lower() if self.heading[1:].islower() else self.heading  # MACs and Acc2D stay
        return f"{heading} {self.text(value)}{unit}"


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

    def layout(self) -> tuple[list[Column], str]:
        """The columns to draw: those in which networks differ or that must not miss; and in words, what all share."""
        drawn, shared = [], []
        networks = replace(self, rows=[row for row in self.rows if row.mark != "reference"])
        for column in self.columns:
            values = networks.values(column)
            if set(values) <= {None, column.usual} and (column.detail or column.usual):
                continue
            if column.detail and len(set(values)) == 1 and len(values) > 1:
                shared.append(column.phrase(values[0]))
            else:
                drawn.append(column)
        return drawn, f"All networks: {'; '.join(shared)}." if shared else ""

    def texts(self, column: Column, best: str, other: str, escape: Callable[[str], str] = str) -> list[str]:
        """The cells of a column as drawn; `best` and `other` are formats for a column that has a best value."""
        marked = self.best_rows(column)
        cells = [escape(column.text(value)) for value in self.values(column)]
        return [(best if row in marked else other).format(cell) for row, cell in enumerate(cells)] if marked else cells

    def phrases(self, columns: Sequence[Column]) -> Iterator[tuple[int, str]]:
        """Number of a row, from 1, and its values in `columns`, in words."""
        for number, cells in enumerate(zip(*map(self.values, columns), strict=True), start=1):
            known = [column.phrase(value) for column, value in zip(columns, cells, strict=True) if value is not None]
            if known:
                yield number, "; ".join(known)


@dataclass(frozen=True)
class Report:
    """Tables, notes on all of them, problems with what was left out, and a message if there is nothing to show."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    message: str | None = None


# For rows with a method `metric(key)`.
METRICS = (
    Column("epe3d", "EPE3D", lambda row: row.metric("epe3d"), ".4f", "m", better="lowest"),
    Column("acc3d_strict", "Acc3DS", lambda row: row.metric("acc3d_strict"), ".4f"),
    Column("acc3d_relax", "Acc3DR", lambda row: row.metric("acc3d_relax"), ".4f"),
    Column("outliers3d", "Outliers3D", lambda row: row.metric("outliers3d"), ".4f"),
    Column("epe2d", "EPE2D", lambda row: row.metric("epe2d"), ".3f", "px"),
    Column("acc2d", "Acc2D", lambda row: row.metric("acc2d"), ".4f"),
)


def row_of(columns: Iterable[Column], subject: object, mark: Mark = "", ranked: bool = False) -> Row:
    return Row(tuple(column.value(subject) for column in columns), mark, ranked)


def reference_row(columns: Iterable[Column], metrics: Iterable[tuple[str, Any]], mark: Mark, **cells: Value) -> Row:
    """A row of `metrics` without a run; what `cells` does not give stays empty."""
    known = {**dict(metrics), **cells}
    return Row(tuple(known.get(column.key) for column in columns), mark)


def dataset_title(kind: str) -> str:
    """The name of a dataset as it is usually written."""
    name, fifth, _ = kind.partition("_1_5")
    return title_of(name) + (" 1/5" if fifth else "")
