# SPDX-License-Identifier: MIT
"""The tables of a study, from files typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import evaluation, record

from bpfn_cli.losses import LOSSES
from bpfn_cli.reporting import read_runs, to_csv, to_markdown
from bpfn_cli.reporting.comparison import DIFFERENCES, MEANS, comparison_report
from bpfn_cli.reporting.methods import method_meanings
from bpfn_cli.reporting.tables import Report, Table
from bpfn_cli.strategies import STRATEGIES

# EPE3D by method and seed, metres.
SCRATCH = [0.30, 0.31, 0.29, 0.30, 0.32, 0.28]
BASIC = [0.29, 0.29, 0.28, 0.28, 0.31, 0.26]


def write(
    folder: Path,
    method: str,
    seed: int,
    epe3d: float,
    control: str | None = None,
    has_scenes: bool = False,
    moving: float | None = None,
    **changes: Any,
) -> None:
    """moving: mean error of the moving points, 5 and 15 in two of three scenes; that of the 300 others is 0.1 m."""
    name = f"{method}-{control}-{seed}"
    run = folder / name
    (run / "evaluations").mkdir(parents=True)
    teacher = {"run": "t", "variant": "baseline", "sha256": "e" * 64, "test": {"epe3d": 0.2}}
    content = record(method=method, seed=seed, teacher=None if method == "scratch" else teacher, **changes)
    content |= {"cell": name, "control": control, "epe3d": epe3d}
    (run / "run.json").write_text(json.dumps(content))
    scenes = [{"name": f"{index:07d}", "model": epe3d + offset} for index, offset in enumerate((-0.1, 0.0, 0.1))]
    result = evaluation(epe3d)
    result |= {
        "scenes": scenes if has_scenes else [],
        "by_motion": [{"name": "model", "epe3d_dynamic": 0.4, "epe3d_static": 0.1}],
    }
    if moving is not None:
        table = {"partition": "motion", "classes": ["dynamic", "static"], "points": [20, 300]}
        result["by_class"] = [{**table, "epe3d": {"model": [moving, 0.1], "teacher": [0.4, 0.1]}}]
        result["ego_motion"] = "fitted"
        for scene, points in zip(scenes, (5, 15, 0), strict=True):
            scene["class_points"] = {"motion": [points, 100]}
            scene["class_errors_m"] = {"motion": [points * moving, 10]}
    (run / "evaluations" / "a.json").write_text(json.dumps(result))


def tables(folder: Path) -> tuple[Table, Table]:
    means, differences = comparison_report(read_runs(folder)).tables
    return means, differences


def cells(table: Table, label: str) -> dict[str, Any]:
    row = next(row for row in table.rows if row.cells[0] == label)
    return {column.key: value for column, value in zip(table.columns, row.cells, strict=True)}


def test_other_evaluations_of_a_study_do_not_change_its_tables(six: Path) -> None:
    before = tables(six)
    for run in six.iterdir():
        (run / "evaluations" / "0.json").write_text(json.dumps(evaluation(0.01, dataset__kind="kitti")))
        last = evaluation(0.9, checkpoint={"which": "last", "sha256": "f" * 64})
        (run / "evaluations" / "1.json").write_text(json.dumps(last))
    for one, other in zip(before, tables(six), strict=True):
        assert (one.title, one.rows) == (other.title, other.rows)


def test_teacher_that_was_not_evaluated_as_the_study_is_left_out(six: Path) -> None:
    assert "teacher (baseline)" in [row.cells[0] for row in tables(six)[0].rows]
    for run in six.iterdir():
        (run / "evaluations" / "0.json").write_text(json.dumps(evaluation(0.01, dataset__kind="kitti")))
        (run / "evaluations" / "a.json").unlink()
    means, differences = tables(six)
    assert "KITTI" in means.title and "teacher (baseline)" not in [row.cells[0] for row in means.rows]
    assert cells(differences, "basic")["gap_closed_percent"] is None


def test_study_that_is_tested_on_its_training_scenes_says_so(tmp_path: Path) -> None:
    told = "Training errors, since they learned from the scenes that they are tested on: {}."
    write(tmp_path, "scratch", 0, 0.3)
    assert not any(note.startswith(told[:20]) for note in comparison_report(read_runs(tmp_path)).notes)
    write(tmp_path, "scratch", 0, 0.3, control="again", recipe={"data": {"split": "test"}})
    (tmp_path / "scratch-None-0" / "run.json").unlink()
    assert told.format("scratch-again-0") in comparison_report(read_runs(tmp_path)).notes
    for seed in range(1, 9):
        write(tmp_path, "scratch", seed, 0.3, recipe={"data": {"split": "test"}})
    assert told.format("all runs") in comparison_report(read_runs(tmp_path)).notes


def test_note_on_weights_chosen_on_the_test_split(six: Path) -> None:
    path = six / "basic-None-0" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"selected_on": "test"}))
    notes = comparison_report(read_runs(six)).notes
    assert any("chosen on the test split, as published: basic-None-0." in note for note in notes)


def test_trainings_that_were_measured_with_other_points_are_named(six: Path) -> None:
    write(six, "dense", 0, 0.2)
    (six / "dense-None-0" / "evaluations" / "a.json").write_text(json.dumps(evaluation(0.2, points=4096)))
    report = comparison_report(read_runs(six))
    assert "dense" not in [row.cells[0] for row in report.tables[0].rows]
    (problem,) = report.problems
    assert problem.startswith("left out: dense-None-0, measured on ") and "4096 points; the others on " in problem


def test_gap_is_that_to_the_teacher_of_the_method(six: Path) -> None:
    other = {"run": "u", "variant": "half", "sha256": "d" * 64, "test": {"epe3d": 0.27}}
    for path in six.glob("hint-*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher": other}))
    for path in six.glob("hint-*/evaluations/a.json"):
        path.write_text(json.dumps(evaluation(0.285)))
    for path in six.glob("hint-*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"epe3d": 0.285}))
    means, differences = tables(six)
    assert [row.cells[0] for row in means.rows][:2] == ["teacher (baseline)", "teacher (half)"]
    assert cells(differences, "basic")["gap_closed_percent"] == pytest.approx(15)  # of 10 cm
    assert cells(differences, "hint")["gap_closed_percent"] == pytest.approx(50)  # 1.5 of 3 cm


@pytest.fixture
def six(tmp_path: Path) -> Path:
    for seed, (scratch, basic) in enumerate(zip(SCRATCH, BASIC, strict=True)):
        write(tmp_path, "scratch", seed, scratch)
        write(tmp_path, "basic", seed, basic)
        write(tmp_path, "hint", seed, scratch + 0.01 * (-1) ** seed)
    return tmp_path


def test_differences_by_hand(six: Path) -> None:
    means, differences = tables(six)
    basic = cells(differences, "basic")
    # -1, -2, -1, -2, -1, -2 cm: the mean is -1.5 cm, and all six have one sign: p 2 / 64.
    assert basic["difference"] == pytest.approx(-0.015)
    assert basic["pairs"] == 6
    assert basic["p"] == "0.031"
    assert basic["p_holm"] == "0.062"  # of two methods
    assert -0.02 < basic["low"] < -0.015 < basic["high"] < -0.01
    assert basic["pairs_needed"] == 3  # deviation 0.548 cm: (2.8 * 0.365)^2 = 1.04
    # Scratch 0.30, teacher 0.2, basic 0.285: 15 % of the way.
    assert basic["gap_closed_percent"] == pytest.approx(15)
    hint = cells(differences, "hint")
    assert hint["difference"] == pytest.approx(0, abs=1e-12)
    assert (hint["p"], hint["p_holm"]) == ("1.000", "1.000")
    assert cells(means, "scratch")["epe3d"] == pytest.approx(0.30)
    assert cells(means, "scratch")["epe3d_deviation"] == pytest.approx(0.014142, abs=1e-5)
    assert cells(means, "basic")["epe3d_dynamic"] == pytest.approx(0.4)
    assert cells(means, "basic")["epe3d_static"] == pytest.approx(0.1)
    assert cells(means, "teacher (baseline)")["epe3d"] == 0.2


def test_interval_over_seeds_and_scenes_needs_the_same_scenes(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path, "scratch", seed, SCRATCH[seed], has_scenes=True)
        write(tmp_path, "basic", seed, BASIC[seed], has_scenes=True)
        write(tmp_path, "hint", seed, SCRATCH[seed])
    differences = tables(tmp_path)[1]
    basic = cells(differences, "basic")
    assert -0.021 < basic["low_scenes"] < basic["difference"] < basic["high_scenes"] < -0.009
    assert cells(differences, "hint")["low_scenes"] is None
    (tmp_path / "basic-None-2" / "run.json").unlink()
    basic = cells(tables(tmp_path)[1], "basic")
    assert (basic["pairs"], basic["low"], basic["low_scenes"]) == (2, None, None)


def test_differences_by_class_by_hand(tmp_path: Path) -> None:
    """Distillation helps moving points alone, by 1 and 2 cm in turn."""
    for seed, scratch in enumerate(SCRATCH):
        gain = 0.01 * (1 + seed % 2)
        write(tmp_path, "scratch", seed, scratch, has_scenes=True, moving=scratch + 0.2)
        write(tmp_path, "basic", seed, BASIC[seed], has_scenes=True, moving=scratch + 0.2 - gain)
    report = comparison_report(read_runs(tmp_path), "motion")
    plain = comparison_report(read_runs(tmp_path))
    assert report.tables[:2] == plain.tables
    table = report.tables[2]
    assert [row.cells[:3] for row in table.rows] == [("basic", "dynamic", 20), ("basic", "static", 300)]
    moving, static = (dict(zip([column.key for column in table.columns], row.cells, strict=True)) for row in table.rows)
    assert moving["difference"] == pytest.approx(-0.015)
    assert (moving["pairs"], moving["p"], moving["p_holm"]) == (6, "0.031", "0.031")  # of one method
    assert -0.02 < moving["low"] < -0.015 < moving["high"] < -0.01
    assert moving["epe3d"] == pytest.approx(0.485)
    assert moving["gap_closed_percent"] == pytest.approx(15)  # from 0.5 to 0.485, on the way to 0.4
    # The scenes have as large differences per point: the interval is narrow only if their sums are weighted by points.
    assert -0.02 < moving["low_scenes"] < -0.015 < moving["high_scenes"] < -0.01
    assert (static["difference"], static["p"]) == (0, "1.000")
    assert "differences_motion" in to_csv(report)
    assert cells(report.tables[0], "basic")["epe3d_dynamic"] == pytest.approx(0.485)


def test_gap_by_class_to_a_teacher_that_the_study_trained(tmp_path: Path) -> None:
    for seed, scratch in enumerate(SCRATCH):
        write(tmp_path, "scratch", seed, scratch, moving=scratch + 0.2)
        write(tmp_path, "basic", seed, BASIC[seed], moving=scratch + 0.185)
    for path in tmp_path.glob("*/evaluations/a.json"):
        content = json.loads(path.read_text())
        del content["by_class"][0]["epe3d"]["teacher"]
        path.write_text(json.dumps(content))
    report = comparison_report(read_runs(tmp_path), "motion")
    assert cells(report.tables[2], "basic")["gap_closed_percent"] is None
    write(tmp_path, "teacher", 0, 0.2, moving=0.35)
    path = tmp_path / "teacher-None-0" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cell": None, "role": "teacher"}))
    path = path.parent / "evaluations" / "a.json"
    content = json.loads(path.read_text())
    content["checkpoint"]["sha256"] = "e" * 64
    path.write_text(json.dumps(content))
    report = comparison_report(read_runs(tmp_path), "motion")
    assert cells(report.tables[2], "basic")["gap_closed_percent"] == pytest.approx(10)  # 1.5 of 15 cm


def test_class_without_points_is_a_dash_with_its_count(tmp_path: Path) -> None:
    for method in ("scratch", "basic"):
        write(tmp_path, method, 0, 0.3, moving=0.5)
        path = tmp_path / f"{method}-None-0" / "evaluations" / "a.json"
        content = json.loads(path.read_text())
        content["by_class"][0] |= {"points": [0, 300], "epe3d": {"model": [None, 0.1]}}
        path.write_text(json.dumps(content))
    report = comparison_report(read_runs(tmp_path), "motion")
    assert [row.cells[:4] for row in report.tables[2].rows] == [
        ("basic", "static", 300, 0.1),
        (None, "dynamic", 0, None),
    ]
    assert "| –" in to_markdown(report)


def test_differences_by_class_need_classes_in_every_result(tmp_path: Path) -> None:
    write(tmp_path, "scratch", 0, 0.3, moving=0.5)
    write(tmp_path, "basic", 0, 0.3)
    report = comparison_report(read_runs(tmp_path), "motion")
    assert len(report.tables) == 2
    (problem,) = report.problems
    assert problem.startswith("differences by motion of weightnet48: basic-None-0 measured without them")
    (problem,) = comparison_report(read_runs(tmp_path), "three-way").problems
    assert problem == "differences by three-way: the test data has no categories"


def test_three_pairs_are_not_testable(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path, "scratch", seed, SCRATCH[seed])
        write(tmp_path, "basic", seed, BASIC[seed])
    found = cells(tables(tmp_path)[1], "basic")
    assert found["p"] == "not testable"
    assert found["p_holm"] is None


def test_pairs_share_their_seed(tmp_path: Path) -> None:
    for seed, value in ((0, 0.3), (1, 0.5)):
        write(tmp_path, "scratch", seed, value)
    for seed, value in ((1, 0.4), (2, 0.1)):
        write(tmp_path, "basic", seed, value)
    found = cells(tables(tmp_path)[1], "basic")
    assert found["pairs"] == 1
    assert found["difference"] == pytest.approx(-0.1)


def test_gap_within_the_noise_of_scratch_is_blank(tmp_path: Path) -> None:
    for seed, value in enumerate((0.15, 0.25, 0.2)):
        write(tmp_path, "scratch", seed, value)
        write(tmp_path, "basic", seed, value)
    assert cells(tables(tmp_path)[1], "basic")["gap_closed_percent"] is None


def test_controls_come_last_and_do_not_count_in_the_correction(six: Path) -> None:
    for seed, value in enumerate(SCRATCH):
        write(six, "scratch", seed, value - 0.02, control="equal_time", epochs=13)
        write(six, "hint+shuffled-teacher", seed, value + 0.01, control="shuffled_teacher")
        write(six, "hint+random-adapter", seed, value, control="random_adapter")
    means, differences = tables(six)
    assert [row.cells[0] for row in means.rows] == [
        "teacher (baseline)",
        "scratch",
        "scratch, equal time",
        "basic",
        "hint",
        "hint, random adapter",
        "hint, shuffled teacher",
    ]
    assert cells(differences, "scratch, equal time")["p_holm"] is None
    assert cells(differences, "basic")["p_holm"] == "0.062"
    assert cells(differences, "basic")["to_equal_time"] == pytest.approx(0.005)
    assert cells(differences, "scratch, equal time")["to_equal_time"] is None


def test_named_methods_have_rows_of_their_own_after_the_known_ones(six: Path) -> None:
    for seed, value in enumerate(SCRATCH):
        for method, gain in (("basic-0.7", 0.02), ("basic-0.1", 0.01), ("fine-tuned", 0.1)):
            write(six, method, seed, value - gain)
        write(six, "soft", seed, value, control="random_teacher")
    means, differences = tables(six)
    labels = ["scratch", "fine-tuned", "basic", "hint", "basic-0.1", "basic-0.7", "soft, random teacher"]
    assert [row.cells[0] for row in means.rows][1:] == labels
    assert cells(differences, "basic-0.1")["difference"] == pytest.approx(-0.01)
    assert cells(differences, "basic-0.7")["difference"] == pytest.approx(-0.02)
    assert cells(differences, "fine-tuned")["p_holm"] == "0.156"  # 2 / 64, of five methods


def test_only_finished_cells_count(six: Path) -> None:
    write(six, "basic", 6, 0.001, state="interrupted")
    other = six / "basic-None-6" / "run.json"
    assert cells(tables(six)[0], "basic")["seeds"] == 6
    content = json.loads(other.read_text()) | {"state": "finished"}
    content.pop("cell")
    other.write_text(json.dumps(content))
    assert cells(tables(six)[0], "basic")["seeds"] == 6


def test_markdown_and_csv_of_a_study(six: Path) -> None:
    made = comparison_report(read_runs(six))
    text = to_markdown(made)
    assert "| basic" in text and "not FlyingThings3D" in text
    files = to_csv(made)
    assert set(files) == {"means", "differences"}
    assert files["differences"].splitlines()[0] == "table," + ",".join(column.key for column in DIFFERENCES)
    assert files["means"].splitlines()[0] == "table," + ",".join(column.key for column in MEANS)


def test_evaluation_on_other_data_is_ignored(six: Path) -> None:
    other = evaluation(0.9, dataset__kind="kitti", dataset__split="test")
    (six / "basic-None-0" / "evaluations" / "0.json").write_text(json.dumps(other))
    assert cells(tables(six)[0], "basic")["seeds"] == 6


def test_repeated_cell_counts_once(six: Path) -> None:
    again = six / "basic-None-0-2"
    again.mkdir()
    for name in ("run.json", "evaluations/a.json"):
        (again / name).parent.mkdir(exist_ok=True)
        (again / name).write_text((six / "basic-None-0" / name).read_text())
    assert cells(tables(six)[0], "basic")["seeds"] == 6


def test_empty_folder_gives_a_message(tmp_path: Path) -> None:
    made = comparison_report(read_runs(tmp_path))
    assert isinstance(made, Report)
    assert made.tables == ()
    assert "No finished training" in (made.message or "")


def test_every_method_has_a_meaning() -> None:
    assert {*LOSSES, *STRATEGIES} - {"plain"} <= method_meanings().keys()
