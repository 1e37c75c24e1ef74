# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import drawn, evaluation
from test_comparison import six  # noqa: F401

from bpfn_cli.reporting import build_report, read_runs
from bpfn_cli.reporting.comparison import comparison_report
from bpfn_cli.reporting.statuses import status_table
from bpfn_cli.reporting.tables import NO_VALUE
from bpfn_cli.reporting.terminal import print_table
from bpfn_cli.runs.listing import RunStatus


@pytest.mark.parametrize("width", [80, 100, 140, 400])
def test_terminal_output_fits_the_width_and_is_complete(runs, make_run, width):
    long_name = "distill-weightnet48-bihint-20250301-101010"
    make_run(long_name, evaluation(0.1234))
    make_run("train-baseline-20250301-095501", evaluation(0.1), role="teacher", variant="baseline")
    make_run("c", evaluation(0.09), state="interrupted", epochs_done=3, seed=7)
    text = drawn(build_report(read_runs(runs)), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(part in text for part in ("0.1234*", "0.3000", "38.3", long_name, "baseline (teacher-a)"))
    assert "nearest" in text and "incomplete" in text
    assert "1.5" in text and "synthetic 1/5, 80 scenes" in text
    if width >= 100:  # no word broken
        assert "(interrupted)" in text and "weightnet48" in text and "Outliers3D" in text


def test_columns_that_do_not_fit_are_listed_below_the_table(runs, make_run):
    make_run("a" * 30, evaluation(0.1))
    make_run("b" * 30, evaluation(0.2), seed=0, method="scratch", teacher=None)
    wide = drawn(build_report(read_runs(runs)), 250)
    narrow = drawn(build_report(read_runs(runs)), 100)
    assert "#" not in wide and f" 4 teacher baseline (teacher-a); run {'a' * 30}" not in wide
    assert " 4 teacher baseline (teacher-a); run " + "a" * 30 in narrow


def test_zero_that_does_not_fit_is_listed_below_the_table(runs, make_run):
    make_run("a" * 40, evaluation(0.1), seed=0)
    make_run("b" * 40, evaluation(0.2), seed=1)
    text = drawn(build_report(read_runs(runs)), 80)
    assert "\n 3 seed 0; " in text and "\n 4 seed 1; " in text


@pytest.mark.parametrize("width", [80, 100])
def test_numbers_and_words_of_a_study_are_whole_on_a_narrow_terminal(six, width):  # noqa: F811
    report = comparison_report(read_runs(six))
    text = drawn(report, width)
    assert max(map(len, text.splitlines())) <= width
    for table in report.tables:
        for row in table.rows:
            cells = [column.text(value) for column, value in zip(table.columns, row.cells, strict=True)]
            assert all(word in text for cell in cells for word in cell.split() if cell != NO_VALUE), cells
    assert "Deviation" in text and "scratch" in text


@pytest.mark.parametrize("width", [80, 120])
def test_run_statuses_are_whole_on_a_narrow_terminal(width):
    reason = "stopped by SIGTERM while the checkpoint of epoch 3 was written to a slow disk"
    names = ("student-weightnet48-bihint-20250301-101010", "b")
    statuses = [
        RunStatus(name, f"runs/{name}", "interrupted", reason, epochs_done=3, epochs=12, seconds_left=7200.0,
                  epe3d=0.1234, validation_epe3d=0.2345)
        for name in names
    ]  # fmt: skip
    stream = io.StringIO()
    print_table(status_table(Path("runs"), statuses), Console(file=stream, width=width, color_system=None))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert all(word in text for word in (*names, "interrupted", "3/12", "0.1234", "0.2345", "2.0 h", *reason.split()))
