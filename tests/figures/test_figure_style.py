# SPDX-License-Identifier: MIT
from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from bpfn_cli.figures.curves import Curve, Panel, band_figure
from bpfn_cli.figures.style import (
    MOST_CURVES,
    curve_style,
    figure_bytes,
    label_of,
    paper_style,
    styles_of,
    write_figure,
)


def figure(*labels: str):  # type: ignore[no-untyped-def]
    curves = {label: Curve(np.array([1, 2]), np.array([[0.5, 0.25]])) for label in labels}
    return band_figure(Panel("EPE3D [m]", curves), "title")


def test_files_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    first, second = (
        write_figure(figure("a"), tmp_path / name, "f") for name in ("one", "two") if _made(tmp_path / name)
    )
    assert [path.name for path in first] == ["f.png", "f.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")


def _made(folder: Path) -> bool:
    folder.mkdir()
    return True


def test_svg_is_as_wide_as_a_column_and_its_text_is_text() -> None:
    text = figure_bytes(figure("a & b"), "svg").decode()
    assert ">a &amp; b</text>" in text and ">EPE3D [m]</text>" in text
    width = re.search(r'width="([\d.]+)pt"', text)
    assert width and float(width[1]) == pytest.approx(3.35 * 72)
    sizes = [float(size) for size in re.findall(r"([\d.]+)px", text)]
    assert min(sizes) >= 7


def test_names_are_drawn_as_they_are() -> None:
    names = ["$x$ <script>", "_hidden"]
    text = figure_bytes(figure(*names), "svg").decode()
    assert ">$x$ &lt;script&gt;</text>" in text and "_hidden</text>" in text
    assert label_of("a\nb") == "a\\nb"
    assert len(label_of("x" * 100)) < 50


def test_long_labels_take_a_row_each_and_nothing_is_cut_off() -> None:
    short, long = figure("a", "b"), figure(40 * "a", 40 * "b")
    assert long.get_figheight() > short.get_figheight()
    for drawn in (short, long):
        with paper_style():
            drawn.draw_without_rendering()
        (legend,) = drawn.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= drawn.bbox.x1 and box.y0 >= 0


def test_style_tells_all_curves_apart_and_repeats_none() -> None:
    with paper_style():
        looks = [curve_style(number) for number in range(MOST_CURVES)]
        assert len({look["marker"] for look in looks}) == MOST_CURVES  # also in gray
        assert len({(look["color"], look["linestyle"]) for look in looks}) == MOST_CURVES
        assert curve_style(MOST_CURVES) == curve_style(0)


def test_baselines_take_no_color_from_networks() -> None:
    with paper_style():
        found = styles_of(["zero flow", "a", "teacher", "b"])
        assert [found["a"], found["b"]] == [curve_style(0), curve_style(1)]
        assert found["zero flow"]["marker"] == ""


def test_figures_need_no_pyplot() -> None:
    figure("a")
    assert "matplotlib.pyplot" not in sys.modules
