# SPDX-License-Identifier: MIT
"""Forest plots of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpfn_cli.figures.style import COLUMN_INCHES, curve_style, label_of, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Interval:
    """A mean difference of `pairs` pairs. low, high: its interval over seeds; wide: over seeds and scenes; or None."""

    label: str
    mean: float
    pairs: int
    low: float | None = None
    high: float | None = None
    wide: tuple[float | None, float | None] = (None, None)


@styled
def forest_figure(rows: Sequence[Interval], title: str, unit: str) -> Figure:
    """Means and intervals, a line for each row, from the top; negative is better. Args: unit: of the axis."""
    figure = new_figure(COLUMN_INCHES, 0.85 + 0.2 * len(rows))
    axes = figure.subplots()
    axes.axvline(0, color="0.4", linewidth=0.8)
    strong, weak = curve_style(0)["color"], curve_style(5)["color"]
    for place, row in enumerate(rows):
        left, right = row.wide
        if left is not None and right is not None:
            axes.plot(
                (left, right), (place, place), "-", color=weak, linewidth=1.0, label="95 % interval, seeds and scenes"
            )
        if row.low is not None and row.high is not None:
            axes.plot(
                (row.low, row.high), (place, place), "-", color=strong, linewidth=2.4, label="95 % interval, seeds"
            )
        is_whole = row.low is not None
        face, label = (strong, "mean") if is_whole else ("white", "mean of fewer than 3 seeds")
        axes.plot(row.mean, place, "o", color=strong, markerfacecolor=face, markersize=4, label=label)
    names = [f"{label_of(row.label)} ({row.pairs})" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=unit)
    axes.set_title(label_of(title))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.margins(x=0.08)
    legend_below(figure, axes, columns=1)
    return figure
