# SPDX-License-Identifier: MIT
"""The style of all figures, and their files. They are drawn without pyplot, so none is kept and no display needed."""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import bpfn_cli.resources
from bpfn_cli.errors import printable
from bpfn_cli.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

STYLE = Path(bpfn_cli.resources.__file__).parent / "paper.mplstyle"
COLUMN_INCHES, PAGE_INCHES = 3.35, 7.0  # widths of a column and of a page of a paper
FORMATS = ("png", "svg")
MOST_CURVES = 12  # which the style tells apart by color, line and marker
LONGEST_LABEL = 44  # characters
CHARACTERS_PER_INCH, ROW_INCHES = 18.6, 0.135  # of a legend
# What other networks are compared with.
REFERENCES: dict[str, dict[str, Any]] = {
    "zero flow": {"color": "0.55", "linestyle": ":"},
    "nearest neighbor": {"color": "0.55", "linestyle": "-."},
    "rigid ICP": {"color": "0.4", "linestyle": "--"},
    "teacher": {"color": "0.1", "linestyle": (0, (6, 2))},
}

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw in the style of the package, whatever the user's matplotlibrc says."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context(fname=STYLE):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name may have any letters
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws in `paper_style`."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with paper_style():
            return draw(*args, **kwargs)

    return wrapped


@styled
def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as a file: png or svg. The same numbers give the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return stream.getvalue()


def figure_names(stem: str) -> list[str]:
    """The files that `write_figure` writes."""
    return [f"{stem}.{kind}" for kind in FORMATS]


def write_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write `STEM.png` and `STEM.svg`, atomically. Raises: DiskError."""
    paths = [folder / name for name in figure_names(stem)]
    for path, kind in zip(paths, FORMATS, strict=True):
        write_atomic(path, figure_bytes(figure, kind))
    return paths


def new_figure(width: float, height: float) -> Figure:
    """An empty figure. Args: inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def curve_style(number: int) -> dict[str, Any]:
    """Color, line and marker of a curve, counted from 0; they repeat after `MOST_CURVES`."""
    import matplotlib

    styles = list(matplotlib.rcParams["axes.prop_cycle"])
    return dict(styles[number % len(styles)])


def styles_of(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A style for each name: networks in turn, and baselines and the teacher in gray."""
    found, networks = {}, 0
    for label in dict.fromkeys(labels):
        if label in REFERENCES:
            found[label] = {**REFERENCES[label], "marker": ""}
        else:
            found[label] = curve_style(networks)
            networks += 1
    return found


def label_of(name: str, longest: int = LONGEST_LABEL) -> str:
    """A name as it is drawn: in one line, and shown even if it starts with an underscore."""
    shown = printable(name)
    if len(shown) > longest:
        shown = f"{shown[: longest - 1]}…"
    return f"\u200b{shown}" if shown.startswith("_") else shown


def set_title(figure: Figure, title: str) -> None:
    """The title of a figure as wide as a page."""
    figure.suptitle(label_of(title, 2 * LONGEST_LABEL), x=0.01, ha="left")


def plain_numbers(axis: Axis) -> None:
    """Label the ticks with plain numbers, also on a logarithmic axis, where few have a label."""
    from matplotlib.axis import XAxis
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(_plain))
    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(high / low) if 0 < low < high else 1.0
        subs = (1.0,) if decades > (2.6 if isinstance(axis, XAxis) else 1.8) else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(10, subs=subs, numticks=12) if decades > 0.7 else MaxNLocator(4))
        axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}" if abs(value) < 1e5 else f"{value:.0e}"


def legend_below(figure: Figure, axes: Axes | Sequence[Axes], columns: int = 2) -> None:
    """One legend below the axes, with each label once; the figure grows by its height.

    Args: columns: at most; fewer if the labels are too long for them.
    """
    handles: dict[str, Any] = {}
    for one in [axes] if not isinstance(axes, Sequence) else axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    width, height = figure.get_size_inches()
    longest = max(map(len, handles)) + 7  # with the line and the gap beside it
    columns = max(1, min(columns, len(handles), int(width * CHARACTERS_PER_INCH / longest)))
    figure.set_size_inches(width, height + ROW_INCHES * -(-len(handles) // columns) + 0.05)
    figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=columns)
