# SPDX-License-Identifier: MIT
"""Time and memory of networks: bars, or curves over the number of points or the batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bpfn_cli.figures.style import (
    COLUMN_INCHES,
    PAGE_INCHES,
    curve_style,
    label_of,
    legend_below,
    new_figure,
    plain_numbers,
    set_title,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIME, MEMORY = "time [ms]", "memory [MB]"


@dataclass(frozen=True)
class Bar:
    """A case of a measurement: values by path, such as fast and plain, and what 90 % of the passes stay below."""

    label: str
    values: dict[str, float]
    p90: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scaling:
    """Values over a size. curves: label -> size -> value."""

    size: str
    quantity: str
    curves: Mapping[str, Mapping[int, float]]


@styled
def bars_figure(bars: Sequence[Bar], title: str, quantity: str = TIME) -> Figure:
    """Horizontal bars, a group for each case, with the value at their end and a whisker to p90."""
    paths = list(dict.fromkeys(path for bar in bars for path in bar.values))
    thickness = 0.8 / len(paths)
    figure = new_figure(COLUMN_INCHES, 0.75 + (0.12 + 0.17 * len(paths)) * len(bars))
    axes = figure.subplots()
    for number, path in enumerate(paths):
        places = [place + (number - (len(paths) - 1) / 2) * thickness for place in range(len(bars))]
        values = [bar.values.get(path, 0.0) for bar in bars]
        upper = [max(bar.p90.get(path, value) - value, 0.0) for bar, value in zip(bars, values, strict=True)]
        color = curve_style(number)["color"]
        axes.barh(places, values, 0.9 * thickness, color=color, label=path, xerr=[[0] * len(bars), upper], ecolor="0.3")
        for place, value, more in zip(places, values, upper, strict=True):
            if value:
                axes.annotate(f"{value:.4g}", (value + more, place), (2, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [label_of(bar.label) for bar in bars])
    axes.set(xlabel=quantity, ylim=(len(bars) - 0.5, -0.5))
    axes.set_title(label_of(title))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.margins(x=0.15)
    if len(paths) > 1:
        legend_below(figure, axes)
    return figure


@styled
def scaling_figure(panels: Sequence[Scaling], title: str) -> Figure:
    """A panel for each quantity and size, all axes logarithmic; dotted: proportional to the size."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(PAGE_INCHES if columns > 1 else COLUMN_INCHES, 0.4 + 1.9 * rows)
    set_title(figure, title)
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes, panel in zip(grid, panels, strict=False):
        _draw_scaling(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    legend_below(figure, grid[: len(panels)], columns=4)
    return figure


def _draw_scaling(axes: Axes, panel: Scaling) -> None:
    ticks: set[int] = set()
    for number, (label, curve) in enumerate(panel.curves.items()):
        sizes = sorted(curve)
        ticks.update(sizes)
        style: dict[str, Any] = curve_style(number)
        axes.plot(sizes, [curve[size] for size in sizes], label=label_of(label), **style)
    first = next(iter(panel.curves.values()))
    largest = max(first)
    slope = [first[largest] * size / largest for size in sorted(first)]
    axes.plot(sorted(first), slope, ":", color="0.3", linewidth=0.9, marker="", label="proportional")
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel=panel.size, ylabel=panel.quantity)
    plain_numbers(axes.yaxis)
    axes.set_xticks(sorted(ticks), [f"{tick:d}" for tick in sorted(ticks)])
    axes.minorticks_off()
