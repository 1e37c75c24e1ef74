# SPDX-License-Identifier: MIT
"""Figures of what `bpfn bench` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpfn_cli.figures.timing import MEMORY, TIME, Bar, Scaling, bars_figure, scaling_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATHS = ("fast", "plain")
SIZES = {"points": "points per cloud", "batch": "pairs per pass"}


def bench_figure(result: Mapping[str, Any]) -> Figure:
    """Curves over the number of points or the batch size if one of them varies, otherwise bars.

    Args: result: as `bpfn bench --out` writes it.
    """
    cases = result["results"]
    sizes = [size for size in SIZES if len({one[size] for one in cases}) > 1]
    if len(sizes) == 1:
        return scaling_figure(scaling_panels({sizes[0]: cases}), title_of(result))
    bars = [Bar(_label(one, cases), _times(one, "median_ms"), _times(one, "p90_ms")) for one in cases]
    return bars_figure(bars, title_of(result))


def scaling_panels(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Scaling]:
    """Time and memory over each size. Args: measured: points or batch -> cases in which only that size varies."""
    panels = []
    for quantity, key in ((TIME, "median_ms"), (MEMORY, "peak_memory_mb")):
        for size, cases in measured.items():
            curves: dict[str, dict[int, float]] = {}
            for one in cases:
                for path in PATHS:
                    value = one[path] and one[path][key]
                    if value:
                        curves.setdefault(_curve(one, path, cases), {})[one[size]] = value
            if curves:
                panels.append(Scaling(SIZES[size], quantity, curves))
    return panels


def title_of(result: Mapping[str, Any]) -> str:
    """Such as "inference, float32; AMD EPYC, 2 threads"."""
    machine = result.get("machine", {})
    device = ", ".join([machine.get("cpu", "unknown CPU"), *machine.get("cuda", [])])
    return f"{result.get('mode')}; {device}, {machine.get('threads')} threads"


def _times(case: Mapping[str, Any], key: str) -> dict[str, float]:
    return {path: case[path][key] for path in PATHS if case[path]}


def _label(case: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> str:
    """The variant, and what else differs between the cases."""
    words = {"device": case["device"], "points": f"{case['points']} points", "batch": f"batch {case['batch']}"}
    differing = [text for key, text in words.items() if len({one[key] for one in cases}) > 1]
    return ", ".join([case["variant"], *differing])


def _curve(case: Mapping[str, Any], path: str, cases: Sequence[Mapping[str, Any]]) -> str:
    names = [case[key] for key in ("variant", "device") if len({one[key] for one in cases}) > 1]
    return ", ".join([*names, path])
