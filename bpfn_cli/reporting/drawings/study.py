# SPDX-License-Identifier: MIT
"""Figures of a study: validation curves of all methods, and their differences from scratch, for each variant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from bpfn_cli.figures.curves import Curve, Panel, band_figure
from bpfn_cli.figures.differences import Interval, forest_figure
from bpfn_cli.figures.style import MOST_CURVES
from bpfn_cli.reporting.comparison import Teachers, groups_by_variant, scratch_of
from bpfn_cli.reporting.differences import Group, differences
from bpfn_cli.reporting.drawings.drawing import Drawing, file_stem
from bpfn_cli.reporting.drawings.learning import SEEDS, scenes_of, teacher_line
from bpfn_cli.runs.results import RunResults


def study_drawings(results: RunResults) -> Iterator[Drawing]:
    """Of the finished trainings of a study."""
    for variant, groups in groups_by_variant(results).items():
        yield from _curves(variant, groups)
        yield from _differences(variant, groups, Teachers.of_runs(groups, results.runs))


def _curves(variant: str, groups: Sequence[Group]) -> Iterator[Drawing]:
    every = {group.label: Curve.of([one.run.curve for one in group.members]) for group in groups}
    curves = {label: curve for label, curve in list(every.items())[:MOST_CURVES] if curve.epochs.size}
    if curves:
        where, seeds = scenes_of(groups[0].record), max(len(group.members) for group in groups)
        note = f" The first {MOST_CURVES} of {len(every)} methods." if len(every) > MOST_CURVES else ""
        panel = Panel(
            "EPE3D [m]", curves, teacher_line([one.record for group in groups for one in group.members]), True
        )
        caption = f"EPE3D of {variant} on {where}. {SEEDS}{note}"
        draw = partial(band_figure, panel, f"{variant}, {seeds} seeds, {where}")
        yield Drawing("learning", file_stem("compare", variant), caption, draw)


def _differences(variant: str, groups: Sequence[Group], teachers: Teachers) -> Iterator[Drawing]:
    scratch = scratch_of(groups)
    if scratch is None or len(groups) < 2:
        return
    found = differences(groups, scratch, teachers.error)
    rows = [
        Interval(one.label, one.paired.mean, one.paired.pairs, one.paired.low, one.paired.high, one.scenes)
        for one in found
    ]
    if rows:
        caption = (
            f"Differences in EPE3D from {variant} trained from scratch, seed by seed, with the number of pairs; "
            "negative is better than scratch. Intervals as in the table."
        )
        draw = partial(forest_figure, rows, f"{variant} vs. scratch", "difference of EPE3D [m]")
        yield Drawing("study", file_stem("compare", "differences", variant), caption, draw)
