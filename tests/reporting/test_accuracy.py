# SPDX-License-Identifier: MIT
from __future__ import annotations

import json

import pytest
from command import bpfn, refused, succeeded
from run_folders import evaluation, metrics

from bpfn_cli.reporting import Planned, Table, build_report, read_runs, to_markdown


def test_rows_are_sorted_by_role_and_method(runs, make_run):
    make_run("1", evaluation(0.11), method="bihint+basic")
    make_run("2", evaluation(0.12), method="bihint")
    make_run("3", evaluation(0.13), method="hint", seed=1)
    make_run("4", evaluation(0.14), method="hint", seed=0)
    make_run("5", evaluation(0.15), method="basic")
    make_run("6", evaluation(0.16), method="scratch", teacher=None)
    make_run("7", evaluation(0.17), role="teacher", variant="baseline", method="scratch", teacher=None)
    table = accuracy(runs)
    assert column(table, "model")[:3] == ["zero flow", "nearest neighbor", "baseline"]
    assert column(table, "method") == [
        None,
        None,
        "teacher",
        "scratch",
        "basic",
        "hint",
        "hint",
        "bihint",
        "bihint+basic",
    ]
    assert column(table, "seed")[5:7] == [0, 1]


def test_rigid_icp_is_a_reference_row_and_counts_as_the_best_baseline(runs, make_run):
    rows = [*evaluation(0.12)["rows"], metrics("rigid_icp", 0.16, 0.1, 0.2, 0.9, None, None)]
    make_run("a", evaluation(0.12, rows=rows))
    table = accuracy(runs)
    assert column(table, "model")[:3] == ["zero flow", "nearest neighbor", "rigid ICP"]
    assert column(table, "below_best_baseline_percent")[3] == pytest.approx(25)


def test_metrics_are_those_of_the_file_and_each_baseline_has_one_row(runs, make_run):
    make_run("a", evaluation(0.12))
    make_run("b", evaluation(0.13), method="basic")
    table = accuracy(runs)
    keys = ("epe3d", "acc3d_strict", "acc3d_relax", "outliers3d", "epe2d", "acc2d")
    found = [tuple(column(table, key)[row] for key in keys) for row in range(len(table.rows))]
    assert found == [
        (0.3, 0.05, 0.1, 0.95, 21.25, 0.02),
        (0.2, 0.2, 0.45, 0.8, 15.0, 0.1),
        (0.13, 0.4, 0.7, 0.5, 9.5, 0.25),
        (0.12, 0.4, 0.7, 0.5, 9.5, 0.25),
    ]


@pytest.mark.parametrize(("epe3d", "percent"), [(0.1, 50.0), (0.2, 0.0), (0.25, -25.0)])
def test_below_best_baseline_is_relative_to_the_lower_baseline(runs, make_run, epe3d, percent):
    make_run("one", evaluation(epe3d))
    assert column(accuracy(runs), "below_best_baseline_percent") == [None, None, pytest.approx(percent)]


def test_below_best_baseline_is_empty_without_baselines_or_at_zero(runs, make_run):
    make_run("one", evaluation(rows=[metrics("model", 0.1, 0, 0, 1, None, None)]))
    still = [metrics("model", 0.1, 0, 0, 1, None, None), metrics("zero_flow", 0, 1, 1, 0, None, None)]
    make_run("two", evaluation(rows=still), method="hint")
    assert column(accuracy(runs), "below_best_baseline_percent") == [None, None, None]


def test_best_is_the_finished_student_with_the_lowest_epe3d(runs, make_run):
    make_run("teacher", evaluation(0.08), role="teacher", variant="baseline", method="scratch")
    make_run("good", evaluation(0.11), method="hint")
    make_run("better", evaluation(0.10), method="basic")
    make_run("killed", evaluation(0.05), state="running")
    marks = dict(zip(column(accuracy(runs), "run"), accuracy(runs).marks, strict=True))
    assert marks == {None: "reference", "teacher": "", "good": "", "better": "best", "killed": "incomplete"}


def test_no_student_is_the_best_that_is_no_better_than_zero_flow_and_nearest_neighbor(runs, make_run):
    make_run("poor", evaluation(0.21))
    make_run("poorer", evaluation(0.25), method="hint")
    assert "best" not in accuracy(runs).marks
    make_run("good", evaluation(0.19), method="basic")
    marks = dict(zip(column(accuracy(runs), "run"), accuracy(runs).marks, strict=True))
    assert (marks["good"], marks["poor"]) == ("best", "")


def test_weights_of_no_run_have_a_row(runs, make_run):
    make_run("a", evaluation(0.12))
    (runs / "evaluations").mkdir()
    other = evaluation(0.09, checkpoint={"which": "last", "sha256": "9" * 64, "variant": "half", "path": "w/mine.pth"})
    (runs / "evaluations" / "one.json").write_text(json.dumps(other))
    table = accuracy(runs)
    found = list(zip(*(column(table, key) for key in ("model", "method", "run", "epe3d")), strict=True))
    assert found[2:] == [("half", "given weights", "mine.pth", 0.09), ("weightnet48", "bihint", "a", 0.12)]
    assert table.marks[2:] == ["", "best"]


def test_weights_of_no_run_are_reported_alone_and_not_twice(runs, make_run):
    (runs / "evaluations").mkdir()
    checkpoint = {"which": "last", "sha256": "e" * 64, "variant": "half", "path": "mine.pth"}
    (runs / "evaluations" / "one.json").write_text(json.dumps(evaluation(0.09, checkpoint=checkpoint)))
    assert column(accuracy(runs), "run")[2:] == ["mine.pth"]
    rows = [*evaluation(0.12)["rows"], metrics("teacher", 0.09, 0.1, 0.2, 0.9, None, None)]
    make_run("a", evaluation(0.12, rows=rows), teacher={"run": None, "variant": "half", "sha256": "e" * 64})
    assert column(accuracy(runs), "run")[2:] == ["e" * 8, "a"]


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_incomplete_run_comes_last_and_is_not_compared(runs, make_run, state):
    make_run("teacher", evaluation(0.08), role="teacher", variant="baseline", method="scratch", state=state)
    make_run("whole", evaluation(0.15))
    table = accuracy(runs)
    assert column(table, "run") == [None, None, "whole", "teacher"]
    assert column(table, "state")[-1] == f"incomplete ({state})"
    assert column(table, "below_best_baseline_percent")[-1] is None
    assert any("Incomplete runs" in note for note in table.notes)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset__kind": "kitti"},
        {"dataset__split": "val"},
        {"dataset__sha256": "f" * 64},
        {"dataset__scenes": 41},
        {"points": 2048},
        {"seed": 1},
    ],
)
def test_different_protocols_never_share_a_table(runs, make_run, other):
    make_run("one", evaluation(0.1), evaluation(0.05, **other))
    report = build_report(read_runs(runs))
    tables = [table for table in report.tables if table.kind == "accuracy"]
    assert sorted(column(table, "epe3d")[-1] for table in tables) == [0.05, 0.1]
    assert len({table.title for table in tables}) == 2
    assert "2 accuracy tables: " in report.notes[0]


def test_title_names_the_protocol(runs, make_run):
    make_run("one", evaluation(0.1))
    assert accuracy(runs).title == "synthetic, test split, 40 scenes, 1024 points"


def test_only_synthetic_tables_have_the_flyingthings3d_caveat(runs, make_run):
    make_run("one", evaluation(0.1), evaluation(0.1, dataset__kind="flyingthings3d"))
    notes = {table.title.split(",")[0]: " ".join(table.notes) for table in tables(runs)}
    assert "not FlyingThings3D" in notes["synthetic"]
    assert "not FlyingThings3D" not in notes["FlyingThings3D"]


def test_notes_name_runs_selected_on_the_test_split_and_runs_in_reduced_precision(runs, make_run):
    make_run("one", evaluation(0.1))
    assert "chosen on the test split" not in " ".join(accuracy(runs).notes)
    make_run("two", evaluation(0.1), selected_on="test", recipe={"train": {"precision": "bf16", "lr": 1}, "seed": 0})
    notes = accuracy(runs).notes
    assert any(note.startswith("Weights chosen on the test split, as published: two. ") for note in notes)
    assert "Trained with reduced precision of the matrix products: two (bf16)." in notes


def test_training_errors_are_noted_and_not_ranked(runs, make_run):
    make_run("honest", evaluation(0.09), method="basic")
    learned = {"recipe": {"data": {"split": "test"}}, "data__source_kind": "synthetic"}
    make_run("same", evaluation(0.05), evaluation(0.05, dataset__kind="kitti"), **learned)
    elsewhere, table = tables(runs)
    assert dict(zip(column(table, "run"), table.marks, strict=True)) == {
        None: "reference",
        "honest": "best",
        "same": "",
    }
    told = "Training errors, since they learned from the scenes that they are tested on: same."
    assert told in table.notes and told not in elsewhere.notes
    assert column(table, "trained_on")[2:] == ["synthetic 1/5, 80 scenes", "synthetic 1/5, 80 test scenes"]
    assert elsewhere.marks[-1] == "best"


@pytest.mark.parametrize(
    ("learned", "tested", "is_training_error"),
    [
        ("train", "test", False),
        ("train", "val", False),
        ("train", "train", True),
        ("train", "all", True),
        ("test", "test", True),
        ("test", "val", True),
        ("test", "train", False),
    ],
)
def test_training_errors_are_those_on_the_learned_split(
    runs, make_run, learned: str, tested: str, is_training_error: bool
) -> None:
    make_run("one", evaluation(0.05, dataset__split=tested), recipe={"data": {"split": learned}})
    table = accuracy(runs)
    assert ("best" in table.marks) == (not is_training_error)
    assert any(note.startswith("Training errors") for note in table.notes) == is_training_error


def test_evaluation_of_the_same_weights_from_another_folder_has_no_row_of_its_own(runs, make_run):
    make_run("one", evaluation(0.1, dataset__path="/a"), evaluation(0.1, dataset__path="/b"))
    assert len(accuracy(runs).rows) == 3


def test_repeated_evaluation_has_one_row_and_another_checkpoint_its_own(runs, make_run):
    make_run("one", evaluation(0.1), evaluation(0.1), evaluation(0.12, checkpoint__which="last"))
    table = accuracy(runs)
    assert list(zip(column(table, "weights"), column(table, "epe3d"), strict=True))[2:] == [
        ("best", 0.1),
        ("last", 0.12),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "synthetic 1/5, 80 scenes"),
        ({"data__fraction": None}, "synthetic, 80 scenes"),
        ({"data__fraction": 1.0}, "synthetic, 80 scenes"),
        ({"data__fraction": 0.3}, "synthetic 30 %, 80 scenes"),
        (
            {"data__source_kind": "flyingthings3d", "points": 8192},
            "FlyingThings3D 1/5, 80 scenes, 8192 points",
        ),
    ],
)
def test_trained_on_names_dataset_fraction_and_differing_points(runs, make_run, changes, expected):
    make_run("one", evaluation(0.1), **changes)
    assert column(accuracy(runs), "trained_on")[-1] == expected


def test_teacher_names_variant_and_run(runs, make_run):
    make_run("a", evaluation(0.1), method="basic")
    make_run("b", evaluation(0.1), method="hint", teacher__run=None)
    assert column(accuracy(runs), "teacher")[2:] == ["baseline (teacher-a)", "baseline"]


def test_scratch_run_that_others_learned_from_is_a_teacher(runs, make_run):
    alone = {"method": "scratch", "teacher": None, "variant": "baseline"}
    make_run("mine", evaluation(0.08), weights_sha256="e" * 64, **alone)
    make_run("other", evaluation(0.09), weights_sha256="f" * 64, **alone)
    make_run("student", evaluation(0.12), teacher__run="mine", teacher__sha256="e" * 64)
    table = accuracy(runs)
    assert list(zip(column(table, "run"), column(table, "method"), strict=True))[2:] == [
        ("mine", "teacher"),
        ("other", "scratch"),
        ("student", "bihint"),
    ]
    assert table.marks[2:] == ["", "best", ""]  # teachers are not ranked
    (note,) = [note for note in build_report(read_runs(runs)).notes if note.startswith("Method")]
    assert "teacher: " in note and "scratch: " in note


def test_only_scratch_runs_become_teachers(runs, make_run):
    make_run("tuned", evaluation(0.08), method="fine-tuned", weights_sha256="e" * 64, teacher=None)
    make_run("first", evaluation(0.1), method="basic", weights_sha256="e" * 64)
    make_run("old", evaluation(0.11), method="scratch", weights_sha256=None, teacher=None)
    make_run("second", evaluation(0.12))
    assert sorted(column(accuracy(runs), "method")[2:]) == ["basic", "bihint", "fine-tuned", "scratch"]


def test_scratch_run_without_students_is_a_student(runs, make_run):
    make_run("mine", evaluation(0.08), method="scratch", teacher=None, weights_sha256="e" * 64)
    assert column(accuracy(runs), "method")[2:] == ["scratch"]


def test_teacher_from_elsewhere_has_one_row_for_all_its_students(runs, make_run):
    outside = metrics("teacher", 0.07, 0.6, 0.9, 0.2, 5.5, 0.5)
    rows = [*evaluation(0.12)["rows"], outside]
    published = {"teacher__run": None, "teacher__sha256": "ab12cd34" + "0" * 56}
    make_run("a", evaluation(0.12, rows=rows), method="hint", **published)
    make_run("b", evaluation(0.12, rows=rows), method="bihint", **published)
    table = accuracy(runs)
    assert column(table, "method") == [None, None, "teacher", "hint", "bihint"]
    keys = ("model", "run", "epe3d", "acc3d_strict", "acc3d_relax", "outliers3d", "epe2d", "acc2d", "seed")
    assert [column(table, key)[2] for key in keys] == [
        "baseline",
        "ab12cd34",
        0.07,
        0.6,
        0.9,
        0.2,
        5.5,
        0.5,
        None,
    ]
    assert table.marks == ["reference", "reference", "", "best", "best"]
    assert column(table, "epe3d")[3:] == [0.12, 0.12]


def test_teachers_from_elsewhere_are_distinguished_by_their_weights(runs, make_run):
    for name, epe3d, sha256 in (("a", 0.07, "a" * 64), ("b", 0.06, "b" * 64)):
        rows = [*evaluation(0.12)["rows"], metrics("teacher", epe3d, 0.6, 0.9, 0.2, 5.5, 0.5)]
        make_run(name, evaluation(0.12, rows=rows), teacher__run=None, teacher__sha256=sha256, teacher__variant="half")
    table = accuracy(runs)
    found = zip(*(column(table, key)[2:4] for key in ("model", "run", "epe3d")), strict=True)
    assert list(found) == [("half", "a" * 8, 0.07), ("half", "b" * 8, 0.06)]


def test_held_out_scenes_do_not_count_as_training_scenes(runs, make_run):
    make_run("one", evaluation(0.1), data__train_scenes=100, data__held_out_scenes=15)
    assert column(accuracy(runs), "trained_on")[-1] == "synthetic 1/5, 85 scenes"


def test_differing_baselines_are_reported(runs, make_run):
    other = [*evaluation()["rows"][:2], metrics("nearest_neighbor", 0.201, 0.2, 0.45, 0.8, 15.0, 0.1)]
    make_run("a", evaluation(0.1))
    make_run("b", evaluation(0.1, rows=other))
    (caution,) = [note for note in accuracy(runs).notes if note.startswith("Caution")]
    assert "nearest neighbor is 0.2000 in run a and 0.2010 in run b" in caution


def test_a_table_is_split_where_zero_flow_has_other_errors(runs, make_run):
    other = [
        metrics("model", 0.05, 0.4, 0.7, 0.5, 9.5, 0.25),
        metrics("zero_flow", 0.301, 0.05, 0.1, 0.95, 21.25, 0.02),
    ]
    make_run("a", evaluation(0.1))
    make_run("b", evaluation(0.11), seed=1)
    make_run("c", evaluation(rows=other))
    first, second = tables(runs, "accuracy")
    assert (column(first, "run")[2:], column(second, "run")[1:]) == (["a", "b"], ["c"])
    assert ", zero flow 0.3000 m" in first.title and ", zero flow 0.3010 m" in second.title
    assert all(any("scenes differ" in note for note in table.notes) for table in (first, second))
    assert [table.marks.count("best") for table in (first, second)] == [1, 1]


def test_baselines_that_differ_by_rounding_are_not_reported(runs, make_run):
    other = [evaluation()["rows"][0], metrics("zero_flow", 0.3000001, 0.05, 0.1, 0.95, 21.25, 0.02)]
    make_run("a", evaluation(0.1))
    make_run("b", evaluation(0.1, rows=other))
    assert not [note for note in accuracy(runs).notes if note.startswith("Caution")]


def test_runs_without_results_have_their_own_table(runs, make_run):
    make_run("stopped", state="failed", epochs_done=3, reason="loss is NaN")
    make_run("waiting")
    (table,) = tables(runs, "without_results")
    assert column(table, "run") == ["waiting", "stopped"]
    assert column(table, "state") == ["finished", "incomplete (failed)"]
    assert column(table, "epochs_done") == [8, 3]
    assert column(table, "reason") == [None, "loss is NaN"]
    assert any("bpfn eval" in note for note in table.notes)
    assert tables(runs) == []


def validated(folder, **epe3d: float) -> None:
    """Write the metrics of an epoch for each keyword, such as `epoch4=0.25`, and of an epoch without validation."""
    lines = [{"epoch": int(key.removeprefix("epoch")), "validation_epe3d": value} for key, value in epe3d.items()]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [{"epoch": 1}, *lines]))


def test_best_epoch_is_the_first_with_the_lowest_validation_epe3d(runs, make_run):
    validated(make_run("a", evaluation(0.1)), epoch2=0.5, epoch4=0.25, epoch6=0.25, epoch8=0.3)
    make_run("b", evaluation(0.12), method="basic")
    validated(make_run("c"), epoch5=0.4)
    table = accuracy(runs)
    assert dict(zip(column(table, "run")[2:], column(table, "best_epoch")[2:], strict=True)) == {"a": 4, "b": None}
    assert column(table, "progress") == [None, None, None, None]
    assert "Validation EPE3D" not in to_markdown(build_report(read_runs(runs)))
    (waiting,) = tables(runs, "without_results")
    assert column(waiting, "best_epoch") == [5]


def test_incomplete_run_shows_its_last_validated_epoch(runs, make_run):
    validated(make_run("a", state="running", epochs_done=51), epoch45=0.0481, epoch50=0.04918)
    validated(make_run("b", evaluation(0.1), state="interrupted"), epoch2=0.25)
    make_run("c", state="running", epochs_done=1)
    (waiting,) = tables(runs, "without_results")
    assert column(waiting, "progress") == ["epoch 50: 0.0492", None]
    assert column(accuracy(runs), "progress") == [None, None, "epoch 2: 0.2500"]
    assert "epoch 50: 0.0492" in to_markdown(build_report(read_runs(runs)))


def test_planned_trainings_come_after_the_runs_without_results(runs, make_run):
    make_run("waiting")
    planned = [Planned("tiny-hint-seed1", "tiny", "hint", 1, 8), Planned("tiny-equal_time-seed1", "tiny", "a", 1, None)]
    report = build_report(read_runs(runs), planned=planned)
    (table,) = [one for one in report.tables if one.kind == "without_results"]
    keys = ("model", "method", "state", "seed", "epochs", "run", "epochs_done")
    assert [tuple(column(table, key)[row] for key in keys) for row in (1, 2)] == [
        ("tiny", "hint", "planned", 1, 8, "tiny-hint-seed1", None),
        ("tiny", "a", "planned", 1, None, "tiny-equal_time-seed1", None),
    ]
    assert any(note.startswith("Planned: ") for note in table.notes)
    assert column(table, "state")[0] == "finished"


def test_plan_without_any_run_is_a_report(tmp_path):
    report = build_report(read_runs(tmp_path / "none"), planned=[Planned("a", "half", "hint", 0, 8)])
    assert report.message is None
    assert [len(table.rows) for table in report.tables] == [1]


def test_report_command_adds_what_is_left_of_a_study(tmp_path, make_run):
    path = tmp_path / "mine.yaml"
    path.write_text("variants: [half]\nlosses: [none, basic]\nseeds: [0]\ncontrols: [equal_time]\n")
    make_run("other")

    def planned() -> list[tuple[str, str, int | None]]:
        tables = json.loads(succeeded(bpfn("report", "--planned", path, "--json", cwd=tmp_path)).stdout)["tables"]
        rows = [row for table in tables if table["kind"] == "without_results" for row in table["rows"]]
        return [(row["state"], row["run"], row["epochs"]) for row in rows]

    basic, timed = ("planned", "half-basic-seed0", 12), ("planned", "half-equal_time-seed0", None)
    assert planned() == [("finished", "other", 8), ("planned", "half-scratch-seed0", 12), basic, timed]
    make_run("mine/half-scratch-seed0", cell="half-scratch-seed0", state="running")
    assert planned() == [("incomplete (running)", "half-scratch-seed0", 8), basic, timed]
    refused(bpfn("report", "--planned", "none.yaml", cwd=tmp_path), 2, "none.yaml: no such study file")


def test_notes_explain_the_methods_used_and_no_other(runs, make_run):
    make_run("a", evaluation(0.1), method="bihint+basic")
    (note,) = [note for note in build_report(read_runs(runs)).notes if note.startswith("Method")]
    assert "basic: " in note and "bihint: " in note
    assert "scratch: " not in note and "; hint: " not in note


def tables(runs, kind: str = "accuracy") -> list[Table]:
    return [table for table in build_report(read_runs(runs)).tables if table.kind == kind]


def accuracy(runs) -> Table:
    (table,) = tables(runs)
    return table


def column(table: Table, key: str) -> list[object]:
    index = [column.key for column in table.columns].index(key)
    return [row.cells[index] for row in table.rows]
