# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
from run_folders import evaluation, metrics

from bpfn_cli.reporting import Table, build_report, read_runs


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
    other = [evaluation()["rows"][0], metrics("zero_flow", 0.301, 0.05, 0.1, 0.95, 21.25, 0.02)]
    make_run("a", evaluation(0.1))
    make_run("b", evaluation(0.1, rows=other))
    (caution,) = [note for note in accuracy(runs).notes if note.startswith("Caution")]
    assert "zero flow is 0.3000 in run a and 0.3010 in run b" in caution


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
