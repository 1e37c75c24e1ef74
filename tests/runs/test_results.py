# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from run_folders import evaluation, record

from bpfn_cli.errors import DataError
from bpfn_cli.runs.results import metric_curves, read_runs


def test_read_runs_sorts_by_start_whatever_the_time_zone(runs, make_run):
    make_run("late", started="2025-03-01T12:00:00+00:00")
    make_run("early", started="2025-03-01T12:30:00+02:00")
    make_run("between", started="2025-03-01T11:00:00")
    assert [run.name for run in read_runs(runs).runs] == ["early", "between", "late"]


def test_read_runs_keeps_all_digits(runs, make_run):
    make_run("one", evaluation(0.123456789))
    (run,) = read_runs(runs).runs
    assert run.evaluations[0].model.epe3d == 0.123456789
    assert run.evaluations[0].row("nearest_neighbor").epe2d == 15.0
    assert run.record.complexity.parameters == 3857356


def test_read_runs_in_a_missing_folder_finds_nothing(tmp_path):
    results = read_runs(tmp_path / "runs")
    assert results.runs == () and results.problems == ()


def test_read_runs_rejects_a_file(tmp_path):
    path = tmp_path / "runs"
    path.write_text("")
    with pytest.raises(DataError, match="is a file"):
        read_runs(path)


def test_read_runs_accepts_a_single_run_folder(make_run):
    folder = make_run("only", evaluation())
    assert [run.name for run in read_runs(folder).runs] == ["only"]


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_read_runs_keeps_a_run_that_did_not_finish(runs, make_run, state):
    make_run("one", state=state, complexity=None, train_seconds=None, finished=None, reason="killed")
    (run,) = read_runs(runs).runs
    assert not run.complete


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        json.dumps(record()).encode()[:-20],
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(record(seed=1)).replace('"seed": 1', '"seed": NaN').encode(),
        json.dumps(record(train_seconds=1.5)).replace("1.5", "1e999").encode(),
        json.dumps(record()).replace('"points": 1024', '"points": ' + "9" * 5000).encode(),
        json.dumps(record()).replace('"variant": "weightnet48"', '"variant": "\\ud800"').encode(),
        json.dumps(record(format=2)).encode(),
        json.dumps(record(seed="0")).encode(),
        json.dumps(record(seed=True)).encode(),
        json.dumps(record(variant="v" * 300)).encode(),
        json.dumps(record(state="done")).encode(),
        json.dumps(record(started="yesterday")).encode(),
        json.dumps(record(data__fraction=0)).encode(),
        json.dumps({"format": 1}).encode(),
    ],
)
def test_damaged_run_is_reported_in_one_line_and_the_others_are_read(runs, make_run, content):
    make_run("bad")
    make_run("good", evaluation())
    (runs / "bad" / "run.json").write_bytes(content)
    results = read_runs(runs)
    assert [run.name for run in results.runs] == ["good"]
    assert_one_line(results.problems, runs / "bad" / "run.json")


@pytest.mark.parametrize(
    "content",
    [
        b'{"format": 1',
        b"[1, 2]",
        json.dumps(evaluation(7.5)).replace("7.5", "NaN").encode(),
        json.dumps(evaluation(-0.1)).encode(),
        json.dumps(evaluation(rows=[])).encode(),
        json.dumps(evaluation(rows=evaluation()["rows"][1:])).encode(),
        json.dumps(evaluation(rows=evaluation()["rows"] * 2)).encode(),
        json.dumps(evaluation(rows=[{**evaluation()["rows"][0], "acc3d_strict": 40.0}])).encode(),
        json.dumps(evaluation(rows=[{**evaluation()["rows"][0], "name": "zero"}])).encode(),
        json.dumps(evaluation(dataset__scenes="many")).encode(),
    ],
)
def test_damaged_evaluation_is_reported_in_one_line_and_the_run_is_read(runs, make_run, content):
    make_run("one", evaluation(0.1), evaluation(0.2))
    path = runs / "one" / "evaluations" / "0.json"
    path.write_bytes(content)
    results = read_runs(runs)
    assert [one.model.epe3d for one in results.runs[0].evaluations] == [0.2]
    assert_one_line(results.problems, path)


def test_run_json_that_is_a_folder_pipe_or_huge_is_reported(runs, make_run):
    for name in ("folder", "pipe", "huge"):
        make_run(name)
        (runs / name / "run.json").unlink()
    (runs / "folder" / "run.json").mkdir()
    os.mkfifo(runs / "pipe" / "run.json")
    with (runs / "huge" / "run.json").open("wb") as stream:
        stream.truncate(1 << 40)
    folder, huge, pipe = read_runs(runs).problems
    assert "folder/run.json: not a regular file" in folder
    assert "pipe/run.json: not a regular file" in pipe
    assert "huge/run.json: too large" in huge and "1099511627776 bytes" in huge


def test_metrics_that_are_a_folder_pipe_or_huge_are_left_out(runs, make_run):
    for name in ("folder", "pipe", "huge", "sound"):
        make_run(name)
        (runs / name / "metrics.jsonl").write_text('{"epoch": 3, "validation_epe3d": 0.5}\n')
    (runs / "folder" / "metrics.jsonl").unlink()
    (runs / "folder" / "metrics.jsonl").mkdir()
    (runs / "pipe" / "metrics.jsonl").unlink()
    os.mkfifo(runs / "pipe" / "metrics.jsonl")
    with (runs / "huge" / "metrics.jsonl").open("ab") as stream:
        stream.truncate(1 << 40)
    found = {run.name: run.best_epoch for run in read_runs(runs).runs}
    assert found == {"folder": None, "pipe": None, "huge": None, "sound": 3}


def test_linked_run_is_read_once(runs, make_run, tmp_path):
    make_run("one")
    (runs / "latest").symlink_to("one")
    (runs / "dangling").symlink_to("gone")
    (runs / "loop").symlink_to("loop")
    make_run("moved").rename(tmp_path / "elsewhere")
    (runs / "linked").symlink_to(tmp_path / "elsewhere")
    results = read_runs(runs)
    assert sorted(run.name for run in results.runs) == ["linked", "one"]
    (problem,) = results.problems
    assert "loop" in problem


def test_run_without_run_json_is_reported_and_other_folders_are_ignored(runs, make_run):
    make_run("killed")
    (runs / "killed" / "run.json").unlink()
    (runs / "killed" / "config.yaml").write_text("")
    (runs / "notes").mkdir()
    (runs / "readme.txt").write_text("")
    results = read_runs(runs)
    assert results.runs == ()
    assert_one_line(results.problems, runs / "killed" / "run.json")


def test_evaluations_that_is_a_file_is_reported(runs, make_run):
    folder = make_run("one")
    (folder / "evaluations").rmdir()
    (folder / "evaluations").write_text("")
    results = read_runs(runs)
    assert results.runs[0].evaluations == ()
    assert_one_line(results.problems, folder / "evaluations")


def test_control_characters_of_a_damaged_run_are_escaped(runs, make_run):
    make_run("a\nb\x1b[31m")
    (runs / "a\nb\x1b[31m" / "run.json").write_text("{")
    (problem,) = read_runs(runs).problems
    assert "a\\nb\\x1b[31m" in problem and "\n" not in problem and "\x1b" not in problem


def assert_one_line(problems: tuple[str, ...], path: Path) -> None:
    (problem,) = problems
    assert problem.startswith(f"{path}: ") and "\n" not in problem and len(problem) < 500


def test_metric_curves_keep_finite_numbers_and_name_the_others(tmp_path: Path) -> None:
    text = (
        '{"epoch": 1, "lr": 0.1, "a": NaN, "name": "x", "on": true}\n{"epoch": 2, "lr": 0.2, "a": 1, "b": Infinity}\n'
    )
    text += '[1]\nnot json\n{"epoch": true, "lr": 9}\n{"epoch": "3", "lr": 9}\n{"epoch": 4, "lr"'
    (tmp_path / "metrics.jsonl").write_text(text)
    found = metric_curves(tmp_path)
    assert found.values == {"lr": {1: 0.1, 2: 0.2}, "a": {2: 1.0}}
    assert found.omitted == ("a", "b")
    assert metric_curves(tmp_path / "none").values == {}
