# SPDX-License-Identifier: MIT
"""The table and the plot of a search: its networks and the named variants, after the same recovery."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bpfn_cli.files import write_atomic
from bpfn_cli.reporting.tables import Column, Table, row_of
from bpfn_cli.runs.searches import SearchState, Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (4.6, 4.2)
DOTS_PER_INCH = 150
MARKERS = "Ds^v"  # of the named variants

# For rows about a `Trained`.
SEARCHED = [
    Column("name", "Network", lambda row: row.name),
    Column("kind", "Kind", lambda row: "named variant" if row.is_named else "found" if row.file else "teacher"),
    Column("parameters_m", "Params", lambda row: row.parameters / 1e6, ".2f", "M"),
    Column("macs_g", "MACs", lambda row: row.macs / 1e9, ".3g", "G"),
    Column("latency_ms", "Latency", lambda row: row.latency_ms, ".1f", "ms", detail=1),
    Column("cut_m", "EPE3D, cut", lambda row: row.cut_m, ".4f", "m"),
    Column("epe3d", "EPE3D, recovered", lambda row: row.epe3d_m, ".4f", "m"),
    Column("file", "File", lambda row: row.file, detail=2),
]


def search_table(state: SearchState) -> Table:
    """All trained networks by MACs, and below how each named variant compares."""
    asked = state.definition
    rows = sorted(state.networks, key=lambda one: (-one.macs, one.name))
    rows = [*([state.teacher] if state.teacher else []), *rows]
    notes = [
        f"EPE3D on {asked.held_out} held-out scenes at {asked.scene_points} points, without training and after "
        f"{asked.recovery_steps} steps on the teacher's flow, which are the same for all.",
        *comparisons(state),
    ]
    title = f"Search: {len(state.candidates)} networks measured, MACs at {asked.points} points"
    return Table("search", title, SEARCHED, [row_of(SEARCHED, one) for one in rows], notes)


def comparisons(state: SearchState) -> Iterator[str]:
    """A line for each named variant: the best network that was found with at most its MACs."""
    found = [one for one in state.networks if not one.is_named]
    for named in sorted((one for one in state.networks if one.is_named), key=lambda one: -one.macs):
        within = [one for one in found if one.macs <= named.macs]
        if not within:
            yield f"{named.name}: no network with at most its MACs was trained."
            continue
        best = min(within, key=lambda one: one.epe3d_m)
        difference = named.epe3d_m - best.epe3d_m
        word = "better" if difference > 0 else "worse" if difference < 0 else "different"
        sizes = f"{best.macs / 1e9:.3g} of {named.macs / 1e9:.3g} G MACs"
        yield f"{named.name}: {best.name} ({sizes}) is {abs(difference):.4f} m {word}."


def plot_search(state: SearchState, path: Path) -> None:
    """Draw EPE3D against MACs, parameters and, if measured, latency (PNG). Raises: DiskError."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    panels = [("macs", 1e9, "MACs [G]"), ("parameters", 1e6, "parameters [M]")]
    panels += [("latency_ms", 1.0, "latency [ms]")] if state.definition.latency else []
    figure = Figure(figsize=(PANEL_INCHES[0] * len(panels), PANEL_INCHES[1]), layout="constrained")
    for axes, (field, unit, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _draw(axes, state, field, unit)
        axes.set(xlabel=label, xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.tick_params(which="both", labelsize="small")
        axes.grid(which="both", alpha=0.3)
    figure.axes[0].set_ylabel(f"EPE3D after {state.definition.recovery_steps} steps, held-out scenes [m]")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    write_atomic(path, stream.getvalue())


def _draw(axes: Axes, state: SearchState, field: str, unit: float) -> None:
    def values(networks: list[Trained]) -> tuple[list[float], list[float]]:
        return [getattr(one, field) / unit for one in networks], [one.epe3d_m for one in networks]

    found = sorted((one for one in state.networks if not one.is_named), key=lambda one: getattr(one, field))
    named = [one for one in state.networks if one.is_named]
    if field == "macs":
        cut = [one.macs / unit for one in state.candidates], [one.epe3d_m for one in state.candidates]
        axes.plot(*cut, ".", color="0.75", label="cut, not trained", zorder=0)
    axes.plot(*values(found), "o-", color="C0", label="found")
    for number, one in enumerate(sorted(named, key=lambda one: one.name)):
        axes.plot(*values([one]), MARKERS[number % len(MARKERS)], color="C1", label=one.name)
    if state.teacher:
        axes.plot(*values([state.teacher]), "*", color="C3", markersize=12, label="teacher")
