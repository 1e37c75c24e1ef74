# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
from run_folders import drawn, evaluation

from bpfn_cli.reporting import build_report, read_runs


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
