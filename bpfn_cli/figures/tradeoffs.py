# SPDX-License-Identifier: MIT
"""Accuracy against cost, with the networks that no other one beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpfn_cli.figures.style import (
    COLUMN_INCHES,
    PAGE_INCHES,
    REFERENCES,
    label_of,
    legend_below,
    new_figure,
    plain_numbers,
    set_title,
    styled,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLOSE = 0.3  # share of the axis within which names of variants overlap


@dataclass(frozen=True)
class TradeoffPoint:
    """A point: cost by title of the axis, such as "MACs [G]"; mean error, and the lowest and highest over seeds.

    variant: named above the axes; empty: not named.
    """

    label: str
    variant: str
    costs: dict[str, float]
    error: float
    spread: tuple[float, float] | None = None


@styled
def tradeoff_figure(networks: Sequence[TradeoffPoint], title: str, lines: Mapping[str, float] | None = None) -> Figure:
    """EPE3D in metres, a panel for each cost; markers by label. Args: lines: horizontal, by label."""
    costs = list(dict.fromkeys(cost for one in networks for cost in one.costs))
    labels = list(dict.fromkeys(one.label for one in networks))
    width = COLUMN_INCHES if len(costs) == 1 else PAGE_INCHES
    columns, per_row = min(len(costs), 4), 2 if len(costs) == 1 else 4
    figure = new_figure(width, 2.1)
    set_title(figure, title)
    every = list(figure.subplots(1, columns, squeeze=False, sharey=True)[0])
    for axes, cost in zip(every, costs, strict=False):
        _draw(axes, [one for one in networks if cost in one.costs], cost, labels)
        for label, value in (lines or {}).items():
            axes.axhline(value, label=label_of(label), linewidth=0.9, **REFERENCES[label])
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    every[0].set_ylabel("EPE3D [m]")
    legend_below(figure, every, columns=per_row)
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points with a lower error than all that cost as much or less, by cost. Args: points: cost and error."""
    found: list[tuple[float, float]] = []
    for cost, error in sorted(set(points)):
        if not found or error < found[-1][1]:
            found.append((cost, error))
    return found


def _draw(axes: Axes, networks: Sequence[TradeoffPoint], cost: str, labels: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    styles = styles_of(labels)
    best = front([(one.costs[cost], one.error) for one in networks])
    costs, errors = (list(column) for column in zip(*best, strict=True))
    look: dict[str, Any] = {"color": "0.8", "linewidth": 2.5, "linestyle": "-", "marker": "", "zorder": 1}
    costs, errors = [*costs, max(one.costs[cost] for one in networks)], [*errors, errors[-1]]
    axes.step(costs, errors, where="post", label="best for its cost", **look)
    drawn = set[str]()
    for one in networks:
        style = {"color": "0.1", "marker": "*"} if one.label == "teacher" else styles[one.label]
        color, marker = style["color"], style["marker"] or "o"
        label = label_of(one.label) if one.label not in drawn else None
        drawn.add(one.label)
        if one.spread is not None:
            axes.plot([one.costs[cost]] * 2, one.spread, "-", color=color, linewidth=0.8, alpha=0.6)
        axes.plot(one.costs[cost], one.error, linestyle="", marker=marker, color=color, label=label, zorder=3)
    if named := {one.variant: one.costs[cost] for one in networks if one.variant}:
        _name_variants(axes, named)
    axes.set(xlabel=cost)
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.margins(x=0.18, y=0.18)


def _name_variants(axes: Axes, places: Mapping[str, float]) -> None:
    """Above the axes, higher where names would overlap. Args: places: cost by variant."""
    span = (max(places.values()) - min(places.values())) or 1.0
    level, last = -1, float("-inf")
    for variant, cost in sorted(places.items(), key=lambda one: one[1]):
        level, last = (level + 1 if cost - last < CLOSE * span else 0), cost
        at, offset = (cost, 1.0), (0, 2 + 8.5 * level)
        look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7, "color": "0.25"}
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate(label_of(variant), at, offset, **where, **look)
