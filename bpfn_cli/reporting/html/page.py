# SPDX-License-Identifier: MIT
"""The page: sections of tables and figures, and how they become HTML. All names are text; jinja2 escapes them."""

from __future__ import annotations

import base64
import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import bpfn_cli
from bpfn_cli.errors import printable
from bpfn_cli.figures.style import COLUMN_INCHES, figure_bytes
from bpfn_cli.reporting.drawings import Drawing
from bpfn_cli.reporting.html.scenes import SceneSet
from bpfn_cli.reporting.tables import Column, Table, Value
from bpfn_cli.viewing.template import render

SHORT_TEXT = 60  # characters that are kept in one line


@dataclass(frozen=True)
class Head:
    text: str
    is_number: bool


@dataclass(frozen=True)
class Cell:
    """sort: the number that rows are sorted by; None: the text."""

    text: str
    is_number: bool = False
    is_best: bool = False
    sort: float | None = None

    @property
    def look(self) -> str:
        """Its classes in the style sheet."""
        if self.is_number:
            return "number top" if self.is_best else "number"
        return "short" if len(self.text) <= SHORT_TEXT else "long"


@dataclass(frozen=True)
class DrawnRow:
    mark: str
    cells: list[Cell]


@dataclass(frozen=True)
class DrawnTable:
    """A table as the page shows it."""

    title: str
    heads: list[Head]
    rows: list[DrawnRow]
    notes: list[str]

    @classmethod
    def of(cls, table: Table) -> DrawnTable:
        columns, shared = table.layout()
        by_column = [_cells(table, column) for column in columns]
        marks, rows = table.marks, zip(*by_column, strict=True)
        drawn = [DrawnRow(mark, list(cells)) for mark, cells in zip(marks, rows, strict=True)]
        heads = [
            Head(printable(column.title).replace(" [", "\u00a0["), column.digits is not None) for column in columns
        ]
        notes = [printable(note) for note in ([shared] if shared else []) + [*table.notes]]
        return cls(printable(table.title), heads, drawn, notes)


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it. source: a data URI. is_wide: as wide as a page of a paper."""

    caption: str
    source: str
    is_wide: bool


@dataclass
class Pictures:
    """Draws figures as SVG, and those that have not changed only once. used: since `forget_unused`."""

    drawn: dict[bytes, Picture] = field(default_factory=dict)
    used: set[bytes] = field(default_factory=set)

    def of(self, drawing: Drawing) -> Picture:
        key = _content(drawing)
        self.used.add(key)
        if key not in self.drawn:
            figure = drawing.draw()
            source = base64.b64encode(_small(figure_bytes(figure, "svg"))).decode("ascii")
            is_wide = figure.get_figwidth() > COLUMN_INCHES
            caption = printable(drawing.caption)
            self.drawn[key] = Picture(caption, f"data:image/svg+xml;base64,{source}", is_wide)
        return self.drawn[key]

    def forget_unused(self) -> None:
        self.drawn = {key: self.drawn[key] for key in self.used}
        self.used.clear()


@dataclass(frozen=True)
class Fold:
    """What is shown when its title is clicked."""

    title: str
    figures: Sequence[Picture] = ()
    tables: Sequence[DrawnTable] = ()
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page. key: of links to it."""

    key: str
    title: str
    texts: Sequence[str] = ()
    tables: Sequence[DrawnTable] = ()
    figures: Sequence[Picture] = ()
    scenes: Sequence[SceneSet] = ()
    folds: Sequence[Fold] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.texts or self.tables or self.figures or self.scenes or self.folds)


@dataclass(frozen=True)
class Page:
    """A page. written: when, in words. message: what is said without any run."""

    title: str
    summary: str
    written: str
    sections: Sequence[Section]
    message: str | None = None


def html_of(page: Page, refresh: int | None = None) -> str:
    """Args: refresh: seconds after which the page reloads itself."""
    return render(
        "report/page.html",
        "report/page.css",
        ["report/page.js"],
        page=page,
        refresh=refresh,
        version=bpfn_cli.__version__,
    )


def _cells(table: Table, column: Column) -> list[Cell]:
    best, is_number = table.best_rows(column), column.digits is not None
    return [
        Cell(column.text(value), is_number, row in best, _number(value) if is_number else None)
        for row, value in enumerate(table.values(column))
    ]


def _number(value: Value) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)


def _small(svg: bytes) -> bytes:
    """The same picture with coordinates of 0.01 points, and without metadata."""
    without = re.sub(rb"<metadata>.*?</metadata>", b"", svg, flags=re.DOTALL)
    return re.sub(rb"<[^>]*>", _rounded, without)  # not in text, such as the labels of an axis


def _rounded(tag: re.Match[bytes]) -> bytes:
    return re.sub(rb"(\d\.\d\d)\d+", rb"\1", tag[0])


def _content(drawing: Drawing) -> bytes:
    """Identifies what a figure shows."""
    draw = drawing.draw
    parts = (draw.func, draw.args, draw.keywords) if isinstance(draw, partial) else (draw,)
    return hashlib.sha256(pickle.dumps((drawing.caption, parts))).digest()
