# SPDX-License-Identifier: MIT
"""Curves over epochs: one line each, or the mean over seeds with a band from the lowest to the highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bpfn_cli.figures.style import (
    COLUMN_INCHES,
    PAGE_INCHES,
    REFERENCES,
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

FEW_POINTS = 20  # of which each has a marker
MOST_POINTS = 200  # of a curve; more are not seen at the width of a column


@dataclass(frozen=True)
class Curve:
    """Values at epochs. epochs: (E,). values: (S, E), a row for each seed; finite."""

    epochs: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, seeds: Sequence[Mapping[int, float]]) -> Curve:
        """At the epochs that all seeds have, except those without any. Args: seeds: epoch -> value."""
        seeds = [seed for seed in seeds if seed]
        epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
        values = np.array([[seed[epoch] for epoch in epochs] for seed in seeds], float)
        return cls(np.array(epochs, int), values.reshape(len(seeds), len(epochs)))

    def thinned(self) -> Curve:
        """At most `MOST_POINTS` epochs, evenly chosen, with the first and the last."""
        if len(self.epochs) <= MOST_POINTS:
            return self
        kept = np.linspace(0, len(self.epochs) - 1, MOST_POINTS).round().astype(int)
        return Curve(self.epochs[kept], self.values[:, kept])


@dataclass(frozen=True)
class Panel:
    """What is drawn in one pair of axes.

    Attributes: curves: by label. lines: horizontal, by label. log: of the vertical axis. missing: what is said without
        any curve.
    """

    title: str
    curves: Mapping[str, Curve]
    lines: Mapping[str, float] = field(default_factory=dict)
    log: bool = False
    missing: str = "not measured"


@styled
def band_figure(panel: Panel, title: str) -> Figure:
    """One panel as wide as a column, with its legend below."""
    figure = new_figure(COLUMN_INCHES, 2.1)
    axes = figure.subplots()
    _draw(axes, panel)
    axes.set(ylabel=panel.title, xlabel="epoch")
    axes.set_title(label_of(title))
    legend_below(figure, axes)
    return figure


@styled
def panels_figure(panels: Sequence[Panel], title: str) -> Figure:
    """Panels in two columns, as wide as a page, each with its own legend."""
    rows = (len(panels) + 1) // 2
    figure = new_figure(PAGE_INCHES, 0.3 + 1.9 * rows)
    set_title(figure, title)
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel)
        axes.set(xlabel="epoch")
        axes.set_title(panel.title)
        if len(panel.curves) + len(panel.lines) > 1:
            axes.legend(loc="best", ncols=1 if len(panel.curves) < 5 else 2)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    if not any(curve.values.size for curve in panel.curves.values()):
        axes.text(0.5, 0.5, panel.missing, ha="center", va="center", color="0.4", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    for number, (label, curve) in enumerate(panel.curves.items()):
        if curve.values.size:
            _draw_curve(axes, label, curve, curve_style(number))
    for label, value in panel.lines.items():
        axes.axhline(value, label=label_of(label), linewidth=0.9, **REFERENCES.get(label, REFERENCES["teacher"]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    is_positive = all((curve.values > 0).all() for curve in panel.curves.values())
    if panel.log and is_positive and all(value > 0 for value in panel.lines.values()):
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)


def _draw_curve(axes: Axes, label: str, curve: Curve, style: dict[str, Any]) -> None:
    curve = curve.thinned()
    every = max(1, len(curve.epochs) // 8) if len(curve.epochs) > FEW_POINTS else 1
    axes.plot(curve.epochs, curve.values.mean(axis=0), label=label_of(label), markevery=every, **style)
    if len(curve.values) > 1:
        low, high = curve.values.min(axis=0), curve.values.max(axis=0)
        axes.fill_between(curve.epochs, low, high, color=style["color"], alpha=0.12, linewidth=0)
