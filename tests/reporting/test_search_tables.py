# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from bpfn_cli.reporting.search import comparisons, search_figure, search_table
from bpfn_cli.runs.searches import Definition, SearchState, Trained


def made(name: str, macs: float, epe3d_m: float, is_named: bool = False) -> Trained:
    sizes = {"parameters": int(1e6 * macs), "macs": int(1e9 * macs), "latency_ms": 10 * macs}
    file = None if is_named or name == "teacher" else f"{name}.safetensors"
    return Trained(name=name, is_named=is_named, file=file, **sizes, cut_m=2 * epe3d_m, epe3d_m=epe3d_m)


@pytest.fixture
def state() -> SearchState:
    scenes = {"used": 4, "held_out": 2, "scene_points": 1024, "points": 8192}
    counts = {"seed": 0, "budgets": 2, "tries": 1, "keep": 2, "recovery_steps": 50}
    hashes = {"bpfn": "1", "teacher_sha256": "a", "data_sha256": "b"}
    definition = Definition(**hashes, **scenes, **counts, importance="l1", latency=True)
    found = made("1-3G", 3, 0.2), made("2-7G", 7, 0.15)
    named = made("weightnet4", 7.4, 0.16, True), made("half", 6, 0.1, True), made("least", 1, 0.5, True)
    return SearchState(definition=definition, teacher=made("teacher", 19, 0.1), networks=(*found, *named))


def test_all_networks_by_macs_with_the_named_variants_among_them(state: SearchState) -> None:
    table = search_table(state)
    assert [row.cells[0] for row in table.rows] == ["teacher", "weightnet4", "2-7G", "half", "1-3G", "least"]
    assert [row.cells[1] for row in table.rows][:3] == ["teacher", "named variant", "found"]


def test_named_variants_are_compared_with_the_best_of_at_most_their_macs(state: SearchState) -> None:
    assert list(comparisons(state)) == [
        "weightnet4: 2-7G (7 of 7.4 G MACs) is 0.0100 m better.",
        "half: 1-3G (3 of 6 G MACs) is 0.1000 m worse.",
        "least: no network with at most its MACs was trained.",
    ]


def test_figure_has_all_networks_against_each_cost(state: SearchState) -> None:
    figure = search_figure(state)
    assert [axes.get_xlabel() for axes in figure.axes] == ["MACs [G]", "parameters [M]", "latency [ms]"]
    (legend,) = figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    assert labels >= {"found", "teacher", *(one.name for one in state.networks if one.is_named)}
