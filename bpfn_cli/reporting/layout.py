# SPDX-License-Identifier: MIT
"""What a report is made of: tables as plain data, without a word about how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Value = str | int | float | Decimal | None
Mark = Literal["", "reference", "best", "incomplete"]
Kind = Literal[
    "accuracy", "without_results", "complexity", "published_accuracy", "published_complexity", "means", "differences"
]

DATASETS = {"synthetic": "synthetic", "flyingthings3d": "FlyingThings3D", "kitti": "KITTI"}
PUBLISHED = "published (reports 1 and 6), not measured here"


@dataclass(frozen=True)
class Column:
    """One column.

    `spec` formats its numbers (None: a column of text). `usual` is what a cell holds when there is nothing
    to say; a drawn table has no column that says nothing. `detail` > 0 marks columns that may be told beside
    a drawn table, the highest first. Files for machines have all columns.
    """

    key: str
    title: str
    spec: str | None = None
    suffix: str = ""
    usual: str | None = None
    detail: int = 0


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; `best` is the lowest EPE3D of the complete students."""

    cells: tuple[Value, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A table of one kind; `context` is what all its rows share, for files that hold several tables."""

    kind: Kind
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    context: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class Report:
    """All tables, what holds for all of them, what was left out, and what to do where there is nothing."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    message: str | None = None


METRICS = (
    Column("epe3d", "EPE3D [m]", ".4f"),
    Column("acc3d_strict", "Acc3DS", ".4f"),
    Column("acc3d_relax", "Acc3DR", ".4f"),
    Column("outliers3d", "Outliers3D", ".4f"),
    Column("epe2d", "EPE2D [px]", ".3f"),
    Column("acc2d", "Acc2D", ".4f"),
)


def dataset_title(kind: str) -> str:
    """The name of a dataset as people write it."""
    name, fifth, _ = kind.partition("_1_5")
    return DATASETS.get(name, name) + (" 1/5" if fifth else "")


def row_of(columns: Iterable[Column], known: Mapping[str, Value], mark: Mark = "") -> Row:
    """The values of `known` in the order of `columns`, None where there is none."""
    return Row(tuple(known.get(column.key) for column in columns), mark)
