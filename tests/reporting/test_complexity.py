# SPDX-License-Identifier: MIT
from __future__ import annotations

from decimal import Decimal

import pytest

from bpfn_cli.reporting import Table, build_report, read_runs


def test_sizes_are_absolute_and_relative_to_the_baseline_variant(runs, make_run):
    make_run("s", train_seconds=90.0)
    make_run("t", role="teacher", variant="baseline", complexity__checkpoint_bytes=31000000, train_seconds=240)
    assert cells(runs) == [
        ["baseline", 1024, 7.958604, 100, 7958604, 512, 1.672, 100, 31.0, 100, "4.0"],
        [
            "weightnet48",
            1024,
            3.857356,
            pytest.approx(48.46775, abs=1e-4),
            3857356,
            512,
            0.956,
            pytest.approx(57.17703, abs=1e-4),
            15.5,
            50,
            "1.5",
        ],
    ]


def test_relative_sizes_are_empty_without_the_baseline_variant(runs, make_run):
    make_run("s")
    assert cells(runs)[0][3] is None and cells(runs)[0][7] is None


def test_sizes_at_different_points_are_not_compared(runs, make_run):
    make_run("t", role="teacher", variant="baseline", complexity__points=2048)
    make_run("s", complexity__points=1024)
    make_run("l", complexity__points=4096)
    assert [[*row[:2], row[7]] for row in cells(runs)] == [
        ["weightnet48", 1024, None],
        ["baseline", 2048, 100],
        ["weightnet48", 4096, None],
    ]


def test_baseline_variant_comes_first_then_the_largest(runs, make_run):
    make_run("a", variant="weightnet4")
    make_run("b", variant="wide", complexity__parameters=9_000_000)
    make_run("c", variant="baseline")
    assert [row[0] for row in cells(runs)] == ["baseline", "wide", "weightnet4"]


def test_training_time_is_the_range_over_finished_runs(runs, make_run):
    make_run("a", train_seconds=90.0)
    make_run("b", train_seconds=150.0, method="hint")
    make_run("c", train_seconds=3.0, state="interrupted")
    (row,) = cells(runs)
    assert row[-1] == "1.5 to 2.5"


def test_networks_whose_files_differ_in_size_share_a_row(runs, make_run):
    make_run("a", complexity__checkpoint_bytes=15500000, train_seconds=60.0)
    make_run("student-2", complexity__checkpoint_bytes=15500008, train_seconds=120.0, method="hint")
    (row,) = cells(runs)
    assert row[4] == 3857356
    assert row[8] in (15.5, 15.500008)
    assert row[-1] == "1.0 to 2.0"


@pytest.mark.parametrize("other", [{"parameters": 3857357}, {"module_macs": 956000001}, {"points": 8192}])
def test_networks_of_different_sizes_have_separate_rows(runs, make_run, other):
    make_run("a")
    make_run("b", **{f"complexity__{key}": value for key, value in other.items()})
    assert len(cells(runs)) == 2


def test_run_without_sizes_has_no_row(runs, make_run):
    make_run("a", complexity=None)
    assert build_report(read_runs(runs)).tables[0].kind == "without_results"
    assert len(build_report(read_runs(runs)).tables) == 1


def test_published_sizes_have_columns_of_their_own(runs, make_run):
    make_run("s")
    make_run("fast", variant="weightnet4")  # report 10 has its inference time alone
    make_run("other", variant="custom")
    table = complexity(runs, published=True)
    titles = [column.title for column in table.columns[-3:]]
    assert titles == ["published Params [M]", "published MACs [G]", "published File [MB]"]
    beside = {row.cells[0]: row.cells[-3:] for row in table.rows}
    assert beside == {
        "weightnet48": (Decimal("3.85"), Decimal("7.65"), None),
        "weightnet4": (Decimal("2.73"), Decimal("7.37"), None),
        "custom": (None, None, None),
    }
    assert any("not measured here" in note and "8192" in note for note in table.notes)


def complexity(runs, *, published: bool = False) -> Table:
    found = build_report(read_runs(runs), published=published).tables
    (table,) = [table for table in found if table.kind == "complexity"]
    return table


def cells(runs) -> list[list[object]]:
    return [list(row.cells) for row in complexity(runs).rows]
