# SPDX-License-Identifier: MIT
"""Columns, rows and tables of a report, independent of how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from bpfn_cli.data.datasets import title_of

Value = str | int | float | Decimal | None
Mark = Literal["", "reference", "incomplete"]

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
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    context: dict[str, Value] = field(default_factory=dict)

    def best_rows(self, column: Column) -> set[int]:
        """Numbers of the ranked rows with the best value of `column`."""
        index = self.columns.index(column)
        ranked: dict[int, Any] = {number: row.cells[index] for number, row in enumerate(self.rows) if row.ranked}
        known = [value for value in ranked.values() if value is not None]
        if column.better is None or not known:
            return set()
        best = min(known) if column.better == "lowest" else max(known)
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
