# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest

from bpfn_cli.profiling.figures import bench_figure, scaling_panels

pytest.importorskip("matplotlib")


def case(variant: str = "half", points: int = 1024, batch: int = 1, plain: float | None = 90.0) -> dict[str, Any]:
    path = {"median_ms": points / 100, "p90_ms": points / 80, "peak_memory_mb": None if batch > 1 else 5.0}
    slow = None if plain is None else {**path, "median_ms": plain}
    return {"variant": variant, "points": points, "batch": batch, "device": "cpu", "fast": path, "plain": slow}


def test_one_size_is_drawn_as_bars() -> None:
    result = {"mode": "inference", "machine": {"cpu": "CPU", "threads": 2}, "results": [case(), case("b", plain=None)]}
    (axes,) = bench_figure(result).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["half", "b"]
    assert [text.get_text() for text in axes.texts] == ["10.24", "10.24", "90"]
    assert axes.get_title(loc="left") == "inference; CPU, 2 threads"


def test_several_sizes_are_drawn_as_curves() -> None:
    result = {"results": [case(points=points) for points in (1024, 2048)]}
    time, memory = bench_figure(result).axes
    assert [axes.get_xlabel() for axes in (time, memory)] == ["points per cloud"] * 2
    assert [line.get_label() for line in time.get_lines()] == ["fast", "plain", "proportional"]


def test_what_varies_besides_the_size_is_in_the_name_of_the_curve() -> None:
    cases = [case(variant, batch=batch, plain=None) for variant in ("a", "b") for batch in (1, 2)]
    time, memory = scaling_panels({"batch": cases})
    assert list(time.curves) == ["a, fast", "b, fast"]
    assert memory.curves["a, fast"] == {1: 5.0}  # not measured with two pairs
