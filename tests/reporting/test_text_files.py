# SPDX-License-Identifier: MIT
from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import drawn, evaluation

from bpfn_cli.reporting import build_report, read_runs, to_csv, to_json, to_markdown
from bpfn_cli.reporting.text_files import _csv_cell

MARKDOWN = """\
# Report

## synthetic, test split, 40 scenes, 1024 points

| Model            | Method   |   EPE3D [m] |   Acc3DS |   Acc3DR |   Outliers3D |   EPE2D [px] |   Acc2D |\
   Below best baseline [%] |   Training [min] | Teacher              | Run   |
|:-----------------|:---------|------------:|---------:|---------:|-------------:|-------------:|--------:|\
--------------------------:|-----------------:|:---------------------|:------|
| zero flow        | –        |      0.3000 |   0.0500 |   0.1000 |       0.9500 |       21.250 |  0.0200 |\
                         – |                – | –                    | –     |
| nearest neighbor | –        |      0.2000 |   0.2000 |   0.4500 |       0.8000 |       15.000 |  0.1000 |\
                         – |                – | –                    | –     |
| weightnet48      | scratch  |      0.1300 |   0.4000 |   0.7000 |       0.5000 |        9.500 |  0.2500 |\
                      35.0 |              1.0 | –                    | a     |
| weightnet48      | bihint   |  **0.1200** |   0.4000 |   0.7000 |       0.5000 |        9.500 |  0.2500 |\
                      40.0 |              1.5 | baseline (teacher-a) | b     |

- All networks: trained on synthetic 1/5, 80 scenes; seed 0; weights best; epochs done 8; epochs 8.
- Test data a1b2c3d4e5f6, sampling seed 0.
- Synthetic scenes are not FlyingThings3D: do not compare these rows with published numbers.

## Complexity

| Model       |   Points |   Params [M] |   Params exact |   Params unused |   MACs [G] |   File [MB] |\
   Training [min] |
|:------------|---------:|-------------:|---------------:|----------------:|-----------:|------------:|\
-----------------:|
"""
CSV = """\
table,dataset,split,scenes,points,sampling_seed,data_sha256,model,method,state,progress,trained_on,epe3d,\
acc3d_strict,acc3d_relax,outliers3d,epe2d,acc2d,below_best_baseline_percent,seed,weights,best_epoch,epochs_done,\
epochs,train_minutes,teacher,run
"synthetic, test split, 40 scenes, 1024 points",synthetic,test,40,1024,0,SHA,zero flow,,,,,0.3,0.05,0.1,0.95,\
21.25,0.02,,,,,,,,,
"synthetic, test split, 40 scenes, 1024 points",synthetic,test,40,1024,0,SHA,nearest neighbor,,,,,0.2,0.2,\
0.45,0.8,15.0,0.1,,,,,,,,,
"synthetic, test split, 40 scenes, 1024 points",synthetic,test,40,1024,0,SHA,weightnet48,bihint,finished,,\
"synthetic 1/5, 80 scenes",0.25,0.4,0.7,0.5,9.5,0.25,-25.0,0,best,,8,8,1.5,baseline (teacher-a),b
"""
HOSTILE = "<script>alert(1)</script>|*_`[x](y)\n\x1b[31m\u202e[bold]"


def test_markdown_of_two_runs(runs, make_run):
    make_run("a", evaluation(0.13), method="scratch", teacher=None, train_seconds=60)
    make_run("b", evaluation(0.12))
    text = to_markdown(build_report(read_runs(runs)))
    # Columns relative to the baseline variant are empty without it, so they are not drawn.
    assert text[: len(MARKDOWN)].splitlines() == MARKDOWN.splitlines()
    assert "| weightnet48 |     1024 |         3.86 |      3,857,356 |             512 |       0.96 |" in text
    assert "## How to read" in text and "## Left out" not in text


def test_csv_has_unrounded_numbers(runs, make_run):
    make_run("b", evaluation(0.25))
    texts = to_csv(build_report(read_runs(runs)))
    assert list(texts) == ["accuracy", "complexity"]
    assert texts["accuracy"].replace("a1b2c3d4e5f6" + "0" * 52, "SHA") == CSV


def test_csv_distinguishes_protocols_by_columns(runs, make_run):
    make_run("b", evaluation(0.1), evaluation(0.2, dataset__kind="kitti", points=8192))
    rows = list(csv.DictReader(io.StringIO(to_csv(build_report(read_runs(runs)))["accuracy"])))
    found = [(row["dataset"], row["points"], row["epe3d"]) for row in rows if row["run"] == "b"]
    assert found == [("kitti", "8192", "0.2"), ("synthetic", "1024", "0.1")]


def test_report_with_a_run_has_no_message(runs, make_run):
    make_run("a", evaluation(0.1))
    assert build_report(read_runs(runs)).message is None


def test_json_marks_the_best_row(runs, make_run):
    make_run("b", evaluation(0.1))
    content = to_json(build_report(read_runs(runs), published=True))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    accuracy = content["tables"][0]
    assert [row["mark"] for row in accuracy["rows"]] == ["reference", "reference", "best"]
    assert accuracy["rows"][2]["epe3d"] == 0.1
    assert accuracy["context"]["points"] == 1024
    assert content["tables"][2]["rows"][0]["epe3d"] == 0.05


@pytest.mark.parametrize("published", [False, True])
def test_without_runs_every_format_suggests_a_command(tmp_path, published):
    report = build_report(read_runs(tmp_path / "runs"), published=published)
    command = "bpfn distill --loss bihint"
    assert command in to_markdown(report)
    assert command in to_json(report)["message"]
    assert command in drawn(report, 200)
    assert ("accuracy" in to_csv(report)) is False


def test_incomplete_runs_keep_their_mark_when_all_are_incomplete(runs, make_run):
    make_run("a", evaluation(0.1), state="running")
    make_run("b", evaluation(0.2), state="running")
    assert "All networks: state" not in (text := to_markdown(build_report(read_runs(runs))))
    assert text.count("incomplete (running)") == 2
    assert "**" not in text


def test_hostile_names_are_escaped_in_every_format(runs, make_run):
    name = HOSTILE.replace("/", "")
    make_run(name, evaluation(0.1, dataset__split=HOSTILE), variant=HOSTILE, method=HOSTILE)
    make_run("failed", state="failed", reason=HOSTILE)
    make_run("broken" + name)
    (runs / ("broken" + name) / "run.json").write_text("{")
    report = build_report(read_runs(runs))
    markdown, console = to_markdown(report), drawn(report, 100)
    for text in (markdown, console, *to_csv(report).values()):
        assert "\x1b" not in text and "\u202e" not in text
    assert "<" not in markdown and "&lt;script&gt;" in markdown
    assert "[x](y)" not in markdown and "\\[x\\](y)" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == table[0].count("|") for line in table[:5])
    assert "[bold]" in drawn(report, 2000)
    for text in to_csv(report).values():
        widths = {len(row) for row in csv.reader(io.StringIO(text))}
        assert len(widths) == 1


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1+1", "'  =1+1"),
        ("\t=1", "\\t=1"),
        ("-0.5", "-0.5"),
        (-0.5, "-0.5"),
        (-1e-07, "-1e-07"),
        ("a=b", "a=b"),
        (None, ""),
        (0, "0"),
    ],
)
def test_csv_cell(value, cell):
    assert _csv_cell(value) == cell


@given(st.text())
def test_csv_cell_never_starts_a_formula(text):
    cell = _csv_cell(text)
    if cell.lstrip().startswith(("=", "+", "-", "@")):
        float(cell)
    assert "\n" not in cell and "\r" not in cell


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_csv_cell_keeps_numbers(number):
    assert float(_csv_cell(number)) == number or math.isclose(float(_csv_cell(number)), number)
