# SPDX-License-Identifier: MIT
"""A scene as a PNG, drawn without a display."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpfn_cli.errors import printable
from bpfn_cli.files import write_atomic
from bpfn_cli.viewing import colors
from bpfn_cli.viewing.libraries import need_viz
from bpfn_cli.viewing.panels import Panel, Panels
from bpfn_cli.viewing.scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
CLOUD1, CLOUD2 = "#1f6fd6", "#f07d14"
_COLUMN_INCHES = 3.2  # width of a picture
_SCALES_WIDTH = 0.5  # of a place that has no picture in any row


def write_still(scene: Scene, path: Path, *, dots_per_inch: int = DOTS_PER_INCH) -> None:
    """Write the picture of `still_png`, atomically. Raises: as `still_png`; DiskError."""
    write_atomic(path, still_png(scene, dots_per_inch))


def still_png(scene: Scene, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """A picture of a scene as a PNG.

    A row for each network: both clouds with the first one moved by the flow, the flow, and the error where the true
    flow is known. Above them, both clouds as they are, and the true flow.

    Raises: UsageError: matplotlib is not installed.
    """
    need_viz("matplotlib")
    stream = io.BytesIO()
    _figure(scene).savefig(stream, format="png", dpi=dots_per_inch)
    return stream.getvalue()


@dataclass(frozen=True)
class _Picture:
    """Points to draw: (N, 3) metres in internal axes, and (N, 3) uint8."""

    title: str
    points: np.ndarray
    tints: np.ndarray


def _figure(scene: Scene) -> Figure:
    from matplotlib.figure import Figure

    drawn = Panels.of(scene)
    rows = _pictures(drawn)
    pictures = max(map(len, rows))
    columns = max(pictures, len(rows[0]) + bool(drawn.flows))  # the last place of the first row has the scales
    widths = [1.0] * pictures + [_SCALES_WIDTH] * (columns - pictures)
    size = sum(widths) * _COLUMN_INCHES, len(rows) * (_COLUMN_INCHES / drawn.aspect + 0.25) + 0.2
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_short(scene.name), fontsize=9, parse_math=False)
    grid = figure.subplots(len(rows), columns, squeeze=False, width_ratios=widths)
    for places, row in zip(grid, rows, strict=True):
        for place in places:
            place.set_axis_off()
        for place, picture in zip(places, row, strict=False):
            _draw(place, picture, drawn)
    _draw_scales(figure, grid[0, -1], drawn)
    return figure


def _pictures(drawn: Panels) -> list[list[_Picture]]:
    """By row."""
    networks = [panel for panel in drawn.flows if not panel.is_truth]
    rows = [[_both("both clouds", drawn.pc1, drawn.pc2)]]
    rows[0] += [_Picture(panel.name, drawn.pc1, _flow_tints(panel, drawn)) for panel in drawn.flows if panel.is_truth]
    for panel in networks:
        moved = drawn.pc1 + np.nan_to_num(panel.flow)
        row = [_both(f"{_short(panel.name, 28)}: moved by the flow", moved, drawn.pc2)]
        row.append(_Picture("flow", drawn.pc1, _flow_tints(panel, drawn)))
        if panel.errors is not None and drawn.largest_m is not None:
            tints = colors.error_colors(panel.errors, drawn.largest_m)
            row.append(_Picture(f"error, {panel.figures.split(',')[0]}", drawn.pc1, tints))
        rows.append(row)
    return [rows[0] + rows[1]] if len(rows) == 2 and drawn.largest_m is None else rows


def _flow_tints(panel: Panel, drawn: Panels) -> np.ndarray:
    return colors.flow_colors(panel.flow, drawn.longest_m)


def _both(title: str, pc1: np.ndarray, pc2: np.ndarray) -> _Picture:
    tints = np.repeat(
        np.array([[*bytes.fromhex(color[1:])] for color in (CLOUD1, CLOUD2)], np.uint8), (len(pc1), len(pc2)), axis=0
    )
    return _Picture(title, np.concatenate([pc1, pc2]), tints)


def _draw(place: Axes, picture: _Picture, drawn: Panels) -> None:
    view, aspect = drawn.view(drawn.aspect), drawn.aspect
    at, depth = view.project(picture.points - drawn.center)
    shown = np.isfinite(at).all(axis=1) & (depth > 0) & (np.abs(at) <= (aspect, 1)).all(axis=1)
    order = np.flatnonzero(shown)[np.argsort(-depth[shown], kind="stable")]  # far points first
    distance = np.linalg.norm(view.position - view.target)
    sizes = 1.6 * np.clip(distance / depth[order], 0.6, 3) ** 2 * np.clip(8192 / max(len(order), 1), 0.3, 4)
    place.scatter(at[order, 0], at[order, 1], s=sizes, c=picture.tints[order] / 255, linewidths=0)
    place.set(xlim=(-aspect, aspect), ylim=(-1, 1), aspect="equal")
    place.set_title(picture.title, fontsize=8, pad=2, parse_math=False)


def _draw_scales(figure: Figure, place: Axes, drawn: Panels) -> None:
    """The colors of the clouds at the top; those of flow and error in an empty place."""
    from matplotlib.lines import Line2D

    dots = [
        Line2D([], [], marker="o", linestyle="", markersize=3, color=color, label=name)
        for name, color in (("cloud 1", CLOUD1), ("cloud 2", CLOUD2))
    ]
    figure.legend(handles=dots, loc="upper left", ncols=2, fontsize=6, frameon=False, handletextpad=0, borderpad=0.2)
    if drawn.flows:
        inset = place.inset_axes((0.2, 0.4, 0.6, 0.45))
        inset.imshow(colors.flow_wheel())
        inset.set_axis_off()
        inset.set_title("direction: forward", fontsize=6, pad=1)
        rim = f"rim: {drawn.longest_m:g} m and more"
        inset.text(0.5, -0.02, rim, fontsize=6, ha="center", va="top", transform=inset.transAxes)
    if drawn.largest_m is not None:
        inset = place.inset_axes((0.2, 0.12, 0.6, 0.06))
        inset.imshow(colors.error_ramp(), aspect="auto", extent=(0, drawn.largest_m, 0, 1))
        inset.set(yticks=[], xticks=[0, drawn.largest_m])
        inset.set_xticklabels(["0", f"{drawn.largest_m:g} m and more"], fontsize=6)
        inset.tick_params(length=0, pad=1)
        inset.spines[:].set_visible(False)
        inset.set_title("error", fontsize=6, pad=1)


def _short(name: str, most: int = 60) -> str:
    shown = printable(name)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
