# SPDX-License-Identifier: MIT
"""Errors by class of points, and their distribution over scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bpfn_cli.figures.style import (
    COLUMN_INCHES,
    label_of,
    legend_below,
    new_figure,
    plain_numbers,
    styled,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACTOR_FOR_LOG = 8  # between the largest and the smallest value


@styled
def class_figure(classes: Sequence[str], errors: Mapping[str, Sequence[float | None]], title: str, axis: str) -> Figure:
    """A line for each network over the classes, in their order. Args: errors: by network, metres; None: no point."""
    figure, axes = _column()
    for label, style in styles_of(errors).items():
        values = np.array([np.nan if value is None else value for value in errors[label]], float)
        axes.plot(range(len(classes)), values, label=label_of(label), **style)
    longest = max(map(len, classes), default=0)
    axes.set_xticks(range(len(classes)), classes, rotation=0 if longest * len(classes) < 42 else 25)
    known = [value for values in errors.values() for value in values if value]
    axes.set(xlabel=axis, ylabel="EPE3D [m]", ylim=(0, None))
    if known and max(known) > FACTOR_FOR_LOG * min(known):
        axes.set(yscale="log", ylim=(0.8 * min(known), 1.25 * max(known)))
        plain_numbers(axes.yaxis)
    axes.set_title(label_of(title))
    legend_below(figure, axes)
    return figure


@styled
def distribution_figure(errors: Mapping[str, Sequence[float | None]], title: str) -> Figure:
    """Share of the scenes below each error. Args: errors: of each network, a value for each scene, metres."""
    figure, axes = _column()
    for label, style in styles_of(errors).items():
        values = np.sort([value for value in errors[label] if value is not None])
        shares = 100 * np.arange(1, len(values) + 1) / len(values)
        every = max(1, len(values) // 4)
        axes.plot(values, shares, drawstyle="steps-post", label=label_of(label), markevery=every, **style)
    known = [value for values in errors.values() for value in values if value]
    if known and max(known) > FACTOR_FOR_LOG * min(known):
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    axes.set(xlabel="EPE3D of a scene [m]", ylabel="scenes below [%]", ylim=(0, 101))
    axes.set_title(label_of(title))
    legend_below(figure, axes)
    return figure


def _column() -> tuple[Figure, Axes]:
    figure = new_figure(COLUMN_INCHES, 2.1)
    return figure, figure.subplots()
