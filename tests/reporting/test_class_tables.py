# SPDX-License-Identifier: MIT
"""The tables by class of a report, from files typed by hand."""

from __future__ import annotations

from typing import Any

from run_folders import evaluation

from bpfn_cli.reporting import Table, build_report, read_runs, to_markdown


def by_class(epe3d: float, points: tuple[int, int] = (20, 0), **errors: float) -> dict[str, Any]:
    """Speeds below and above 2 m per frame; no point is fast."""
    known = {"model": epe3d, "zero_flow": 0.3, **errors}
    table = {"partition": "speed", "classes": ["0 to 2", "2 and more"], "points": list(points)}
    table["epe3d"] = {name: [error, None] for name, error in known.items()}
    rows = evaluation(epe3d)["rows"]
    rows += [{**rows[0], "name": name, "epe3d": error} for name, error in errors.items()]
    return evaluation(epe3d, rows=rows, by_class=[table], ego_motion="fitted")


def found(runs: Any) -> Table:
    (table,) = (one for one in build_report(read_runs(runs), detail=True).tables if one.kind == "classes_speed")
    return table


def test_networks_are_sorted_as_in_the_table_of_accuracy(runs, make_run):
    make_run("a", by_class(0.12, teacher=0.07), method="hint")
    make_run("b", by_class(0.16), method="scratch", teacher=None)
    table = found(runs)
    assert [column.title for column in table.columns] == ["Model", "Method", "Run", "0–2", "2+"]
    assert [row.cells for row in table.rows] == [
        ("zero flow", None, None, 0.3, None),
        ("baseline", "teacher", "eeeeeeee", 0.07, None),
        ("weightnet48", "scratch", "b", 0.16, None),
        ("weightnet48", "hint", "a", 0.12, None),
    ]
    assert table.title.startswith("EPE3D [m] by speed [m per frame]: ")
    assert table.notes == ["Points: 0 to 2: 20; 2 and more: 0."]


def test_results_on_other_points_are_left_out_and_said(runs, make_run):
    make_run("a", by_class(0.12))
    make_run("b", by_class(0.13, points=(19, 1)), method="hint")
    make_run("c", evaluation(0.14), method="basic")  # of an older version
    table = found(runs)
    assert [row.cells[2] for row in table.rows] == [None, "a"]
    assert "left out; repeat `bpfn eval`" in table.notes[-1]
    assert "classes_speed" not in {one.kind for one in build_report(read_runs(runs)).tables}
    assert "| –" in to_markdown(build_report(read_runs(runs), detail=True))
