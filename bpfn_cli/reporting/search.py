# SPDX-License-Identifier: MIT
"""The table and the plot of a search: its networks and the named variants, after the same recovery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bpfn_cli.figures.tradeoffs import TradeoffPoint, tradeoff_figure
from bpfn_cli.reporting.tables import Column, Table, row_of
from bpfn_cli.runs.searches import SearchState, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def search_figure(state: SearchState) -> Figure:
    """EPE3D against MACs, parameters and, if measured, latency, after the recovery. matplotlib must be installed."""
    points = [_point(one, one.name if one.is_named else "found") for one in state.networks]
    points += [_point(state.teacher, "teacher")] if state.teacher else []
    title = f"after {state.definition.recovery_steps} steps, {state.definition.held_out} held-out scenes"
    return tradeoff_figure(points, title)


def _point(one: Trained, label: str) -> TradeoffPoint:
    costs = {"MACs [G]": one.macs / 1e9, "parameters [M]": one.parameters / 1e6}
    costs |= {} if one.latency_ms is None else {"latency [ms]": one.latency_ms}
    return TradeoffPoint(label, "", costs, one.epe3d_m)
