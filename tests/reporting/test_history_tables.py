# SPDX-License-Identifier: MIT
from __future__ import annotations

import json

from run_folders import evaluation, metrics

from bpfn_cli.reporting import Table, build_report, read_runs

TEACHER = {
    "step": "teacher",
    "network": "baseline",
    "parameters": 8_000_000,
    "macs": 20_000_000_000,
    "points": 8192,
    "bytes": 32_000_000,
    "epe3d_m": 0.1,
    "on": "32 held-out scenes, 2048 points",
    "sha256": "e" * 64,
}
PRUNED = {
    **TEACHER,
    "step": "pruned",
    "network": "five",
    "parameters": 2_000_000,
    "macs": 5_000_000_000,
    "bytes": 8_000_000,
    "epe3d_m": 0.2,
    "sha256": "b" * 64,
}
DISTILLED = {**PRUNED, "step": "distilled", "epe3d_m": 0.15, "sha256": "c" * 64}


def histories(runs) -> list[Table]:
    return [table for table in build_report(read_runs(runs)).tables if table.kind == "history"]


def column(table: Table, key: str) -> list[object]:
    return table.values(next(column for column in table.columns if column.key == key))


def run_from_a_pruned_network(make_run) -> None:
    tested = evaluation(epe3d=0.12)
    tested["rows"].append(metrics("teacher", 0.09, 0.5, 0.8, 0.4, 9.0, 0.3))
    make_run("s", tested, history=[TEACHER, PRUNED], trained=DISTILLED, variant="five")


def test_each_step_has_its_sizes_and_errors(runs, make_run) -> None:
    run_from_a_pruned_network(make_run)
    (table,) = histories(runs)
    assert table.title == "History of s: synthetic, test split, 40 scenes, 1024 points"
    assert column(table, "step") == ["teacher", "pruned", "distilled"]
    assert column(table, "macs_percent") == [100, 25, 25]
    assert column(table, "file_mb") == [32, 8, 8]
    assert column(table, "epe3d") == [0.1, 0.2, 0.15]
    assert column(table, "test_epe3d") == [0.09, None, 0.12]


def test_a_stored_network_carries_the_history_on(runs, make_run) -> None:
    run_from_a_pruned_network(make_run)
    stored = {**PRUNED, "step": "stored int8", "bytes": 2_000_000, "moved_m": 0.001, "sha256": "f" * 64}
    del stored["epe3d_m"], stored["on"]
    (runs / "evaluations").mkdir()
    all_steps = [TEACHER, PRUNED, DISTILLED, stored]
    for number, (sha256, steps, epe3d) in enumerate((("f", all_steps, 0.13), ("b", [], 0.25))):
        one = evaluation(epe3d=epe3d, checkpoint__sha256=sha256 * 64, checkpoint__path="a/int8.safetensors")
        one["checkpoint"]["history"] = steps
        (runs / "evaluations" / f"{number}.json").write_text(json.dumps(one))
    (table,) = histories(runs)  # that of the run goes on in it
    assert table.title.startswith("History of int8.safetensors: ")
    assert column(table, "step") == ["teacher", "pruned", "distilled", "stored int8"]
    assert column(table, "test_epe3d") == [0.09, 0.25, 0.12, 0.13]
    assert column(table, "moved") == [None, None, None, 0.001]
    assert column(table, "file_percent") == [100, 25, 25, 6.25]


def test_runs_without_steps_have_no_history(runs, make_run) -> None:
    make_run("s", evaluation())
    assert not histories(runs)


def test_macs_of_other_numbers_of_points_are_not_compared(runs, make_run) -> None:
    make_run("s", history=[{**TEACHER, "points": 1024}, PRUNED], trained=DISTILLED)
    (table,) = histories(runs)
    assert table.title == "History of s"
    assert column(table, "macs_percent") == [100, None, None]
