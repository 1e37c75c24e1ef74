# SPDX-License-Identifier: MIT
"""Plots of a study: validation EPE3D over epochs, one picture per variant."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpfn_cli.errors import UsageError
from bpfn_cli.files import write_atomic
from bpfn_cli.reporting.comparison import Group, groups_by_variant
from bpfn_cli.runs.results import RunResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE_INCHES = (9.0, 5.0)
DOTS_PER_INCH = 150


def check_matplotlib() -> None:
    """Raises: UsageError: matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError('plots need matplotlib: pip install -c constraints.txt -e ".[viz]"') from None


def write_plots(results: RunResults, folder: Path) -> list[Path]:
    """Write `compare_VARIANT.png` for each variant of a study that was validated. Raises: UsageError, DiskError."""
    check_matplotlib()
    written = []
    for variant, groups in groups_by_variant(results).items():
        curves = {group.label: found for group in groups if len((found := _curves(group))[0])}
        if curves:
            where = "the test split" if groups[0].record.selected_on == "test" else "held-out training scenes"
            stream = io.BytesIO()
            seeds = max(len(group.members) for group in groups)
            _figure(f"{variant}, {seeds} seeds", curves, where).savefig(stream, format="png", dpi=DOTS_PER_INCH)
            written.append(folder / f"compare_{re.sub(r'[^a-zA-Z0-9_.+-]', '_', variant)}.png")
            write_atomic(written[-1], stream.getvalue())
    return written


def _curves(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """The epochs (E,) at which all seeds were validated, and their EPE3D (seeds, E) in metres."""
    curves = [one.run.curve for one in group.members]
    epochs = sorted(set.intersection(*map(set, curves)))
    return np.array(epochs), np.array([[curve[epoch] for epoch in epochs] for curve in curves])


def _figure(title: str, curves: dict[str, tuple[np.ndarray, np.ndarray]], where: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    for number, (label, (epochs, epe3d)) in enumerate(curves.items()):
        color, dash = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
        axes.plot(epochs, epe3d.mean(axis=0), dash, color=color, label=label)
        axes.fill_between(epochs, epe3d.min(axis=0), epe3d.max(axis=0), color=color, alpha=0.12, linewidth=0)
    axes.set(title=f"{title}: mean, and band from lowest to highest", xlabel="epoch", yscale="log")
    axes.set_ylabel(f"EPE3D on {where} [m]")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(which="both", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
