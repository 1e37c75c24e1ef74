# SPDX-License-Identifier: MIT
"""What each kind of figure shows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from bpfn_cli.figures.curves import Curve, Panel, band_figure, panels_figure
from bpfn_cli.figures.differences import Interval, forest_figure
from bpfn_cli.figures.errors import class_figure, distribution_figure
from bpfn_cli.figures.timing import Bar, Scaling, bars_figure, scaling_figure
from bpfn_cli.figures.tradeoffs import TradeoffPoint, front, tradeoff_figure


def test_curve_has_the_epochs_of_all_seeds() -> None:
    curve = Curve.of([{2: 0.5, 4: 0.3, 6: 0.2}, {2: 0.7, 6: 0.4}])
    assert curve.epochs.tolist() == [2, 6]
    assert curve.values.tolist() == [[0.5, 0.2], [0.7, 0.4]]
    assert Curve.of([{1: 0.5}, {2: 0.5}]).values.shape == (2, 0)
    assert Curve.of([]).epochs.size == 0


def test_band_reaches_from_the_lowest_to_the_highest_seed() -> None:
    curves = {"two": Curve.of([{1: 0.5, 2: 0.2}, {1: 0.7, 2: 0.4}]), "one": Curve.of([{1: 0.9}])}
    (axes,) = band_figure(Panel("EPE3D [m]", curves, {"teacher": 0.1}, log=True), "t").axes
    two, one, teacher = axes.get_lines()
    assert two.get_ydata() == pytest.approx([0.6, 0.3])
    assert (one.get_xdata().tolist(), one.get_marker()) == ([1], "s")  # a single epoch is seen
    assert teacher.get_ydata() == [0.1, 0.1]
    (band,) = axes.collections
    extents = band.get_paths()[0].get_extents()
    assert (extents.ymin, extents.ymax) == pytest.approx((0.2, 0.7))
    assert axes.get_yscale() == "log"


def test_zero_makes_the_axis_linear() -> None:
    (axes,) = band_figure(Panel("loss", {"a": Curve.of([{1: 0.0, 2: 1.0}])}, log=True), "t").axes
    assert axes.get_yscale() == "linear"


def test_panel_without_curves_says_so() -> None:
    drawn = panels_figure([Panel("share", {}, missing="not measured"), Panel("b", {"a": Curve.of([{1: 1.0}])})], "t")
    assert [text.get_text() for text in drawn.axes[0].texts] == ["not measured"]


def test_forest_draws_an_interval_only_where_there_is_one() -> None:
    rows = [Interval("a", -0.1, 3, -0.2, 0.0, (-0.3, 0.1)), Interval("b", 0.1, 2)]
    (axes,) = forest_figure(rows, "t", "m").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (3)", "b (2)"]
    _, wide, narrow, whole, alone = axes.get_lines()
    assert list(wide.get_xdata()) == [-0.3, 0.1] and list(narrow.get_xdata()) == [-0.2, 0.0]
    assert whole.get_markerfacecolor() != "white" and alone.get_markerfacecolor() == "white"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top


def test_class_without_points_leaves_a_gap() -> None:
    (axes,) = class_figure(["0-10", "10+"], {"zero flow": [1.0, 2.0], "a": [0.5, None]}, "t", "distance").axes
    assert np.isnan(axes.get_lines()[1].get_ydata()[1])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0-10", "10+"]


def test_distribution_ends_at_all_scenes() -> None:
    (axes,) = distribution_figure({"a": [0.3, 0.1, 0.2, 0.4]}, "t").axes
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [0.1, 0.2, 0.3, 0.4]
    assert list(line.get_ydata()) == [25, 50, 75, 100]


def test_front_leaves_out_what_costs_more_and_errs_more() -> None:
    assert front([(3, 0.3), (1, 0.4), (2, 0.5), (3, 0.2), (4, 0.2)]) == [(1, 0.4), (3, 0.2)]


def test_tradeoff_has_a_panel_for_each_cost() -> None:
    networks = [
        TradeoffPoint("hint", "half", {"MACs [G]": 7, "time [ms]": 90}, 0.2),
        TradeoffPoint("hint", "b", {"MACs [G]": 9}, 0.1),
    ]
    drawn = tradeoff_figure(networks, "t", {"teacher": 0.05})
    assert [axes.get_xlabel() for axes in drawn.axes] == ["MACs [G]", "time [ms]"]
    assert [text.get_text() for text in drawn.axes[0].texts] == ["half", "b"]
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["best for its cost", "hint", "teacher"]


def test_bars_have_a_value_each() -> None:
    (axes,) = bars_figure(
        [Bar("a", {"fast": 10.0, "plain": 150.0}, {"fast": 12.0}), Bar("b", {"fast": 20.0})], "t"
    ).axes
    assert [text.get_text() for text in axes.texts] == ["10", "20", "150"]


def test_scaling_draws_the_proportional_line_through_the_largest_size() -> None:
    (axes,) = scaling_figure([Scaling("points", "time [ms]", {"fast": {1024: 3.0, 4096: 8.0}})], "t").axes
    measured, proportional = axes.get_lines()
    assert list(measured.get_ydata()) == [3, 8]
    assert list(proportional.get_ydata()) == [2, 8]
