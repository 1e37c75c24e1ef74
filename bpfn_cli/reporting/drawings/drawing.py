# SPDX-License-Identifier: MIT
"""A figure that can be drawn, and its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bpfn_cli.figures.style import figure_names, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Subject = Literal["cost", "classes", "distribution", "learning", "terms", "study"]


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is needed.

    Attributes: subject: the part of a page that it belongs to. stem: of the names of its files. caption: what it shows,
        in words. draw: returns the figure. title: a short one, where there are many of its subject.
    """

    subject: Subject
    stem: str
    caption: str
    draw: Callable[[], Figure]
    title: str = ""


def file_stem(*words: str) -> str:
    """Names as part of a file name."""
    return "_".join(re.sub(r"[^a-zA-Z0-9.+-]+", "-", word).strip("-.") or "unnamed" for word in words)[:120]


def distinct(drawings: Iterable[Drawing]) -> Iterator[Drawing]:
    """The same with distinct stems, also where upper and lower case are one."""
    used: dict[str, int] = {}
    for one in drawings:
        count = used[one.stem.lower()] = used.get(one.stem.lower(), 0) + 1
        yield one if count == 1 else replace(one, stem=f"{one.stem}_{count}")


def drawing_files(drawings: Iterable[Drawing]) -> list[str]:
    """The files that `write_drawings` writes."""
    return [name for one in drawings for name in figure_names(one.stem)]


def write_drawings(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """Write a PNG and an SVG for each. Raises: DiskError."""
    return [path for one in drawings for path in write_figure(one.draw(), folder, one.stem)]
