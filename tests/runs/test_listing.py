# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bpfn_cli.locks import only_holder
from bpfn_cli.runs.folder import LOCK
from bpfn_cli.runs.listing import overview


def run(runs: Path, name: str, **about: Any) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    known = {"format": 1, "state": "running", "started": name, "epochs": 10, "epochs_done": 4, "method": "hint"}
    (folder / "run.json").write_text(json.dumps(known | about))
    return folder


def test_time_left_is_that_of_recent_epochs_and_of_validations_to_come(tmp_path: Path) -> None:
    recipe = {"train": {"validation_calendar": "every", "validate_every": 4}}
    run(tmp_path, "a", epoch_seconds=[900, 9, 10, 11], validation_seconds=5, recipe=recipe)
    (one,) = overview(tmp_path)
    # Six epochs of 10.5 s (the median), and validations after epochs 8 and 10.
    assert one.seconds_left == 6 * 10.5 + 2 * 5


def test_time_left_before_the_first_epoch_is_that_of_the_plan(tmp_path: Path) -> None:
    run(tmp_path, "a", epochs_done=0, plan={"seconds_per_epoch": 7.0})
    run(tmp_path, "b", epochs_done=0)
    assert [one.seconds_left for one in overview(tmp_path)] == [70.0, None]


def test_run_that_no_process_works_on_is_killed(tmp_path: Path) -> None:
    killed, running = run(tmp_path, "a"), run(tmp_path, "b")
    with only_holder(running / LOCK):
        assert [one.state for one in overview(tmp_path)] == ["killed", "running"]
    assert json.loads((killed / "run.json").read_text())["state"] == "running"  # looking changes nothing
    assert [path.name for path in killed.iterdir()] == ["run.json"]


def test_looking_at_a_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that runs of others can be listed, whose folders are not ours to write in."""
    folder = run(tmp_path, "a")
    (folder / LOCK).write_text("process 1 on elsewhere\n")
    flags_seen = []
    usual = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *more, **rest: flags_seen.append(flags) or usual(path, flags))
    assert [one.state for one in overview(tmp_path)] == ["killed"]
    assert flags_seen == [os.O_RDONLY]
    assert (folder / LOCK).read_text() == "process 1 on elsewhere\n"


def test_figures_are_those_of_the_test_split_and_of_the_best_validation(tmp_path: Path) -> None:
    run(tmp_path, "a", state="finished", epoch_seconds=[1], epe3d=0.1, best_validation_epe3d=0.2)
    run(tmp_path, "b", best_validation_epe3d=0.2)
    run(tmp_path, "c", state="interrupted", reason="stopped by SIGTERM")
    assert [(one.epe3d, one.validation_epe3d, one.reason) for one in overview(tmp_path)] == [
        (0.1, 0.2, None),
        (None, 0.2, None),
        (None, None, "stopped by SIGTERM"),
    ]
    assert overview(tmp_path)[0].seconds_left is None


def test_damaged_runs_are_told_and_other_folders_passed_over(tmp_path: Path) -> None:
    run(tmp_path, "b", epoch_seconds=None, plan=None, recipe=None)
    for name, text in (("a", "{"), ("c", '{"format": 99, "state": "finished"}'), ("d", '{"format": 1, "state": 7}')):
        (run(tmp_path, name) / "run.json").write_text(text)
    (tmp_path / "e").mkdir()
    assert [(one.name, one.state) for one in overview(tmp_path)] == [
        ("b", "killed"),
        ("a", "damaged"),
        ("c", "damaged"),
        ("d", "damaged"),
    ]
    assert overview(tmp_path / "nowhere") == []
