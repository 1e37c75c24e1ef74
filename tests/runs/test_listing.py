# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from records import START, past_run, record_with

from bpfn_cli.errors import DataError
from bpfn_cli.locks import only_holder
from bpfn_cli.runs.folder import LOCK
from bpfn_cli.runs.listing import FoundRuns, find_runs, find_teacher, latest_checkpoint, run_statuses


def run(runs: Path, name: str, **entries: Any) -> Path:
    """A run folder marked as running; runs are ordered by name."""
    folder = runs / name
    folder.mkdir(parents=True)
    started = START.replace(minute=ord(name) % 60)
    record_with(**{"started": started, "epochs_done": 4, **entries}).write(folder)
    return folder


def test_seconds_left_count_recent_epochs_and_remaining_validations(tmp_path: Path) -> None:
    recipe = {"train": {"validation_calendar": "every", "validate_every": 4}}
    run(tmp_path, "a", epoch_seconds=(900.0, 9.0, 10.0, 11.0), validation_seconds=5.0, recipe=recipe)
    (one,) = run_statuses(tmp_path)
    # Six epochs of 10.5 s (the median), and validations after epochs 8 and 10.
    assert one.seconds_left == 6 * 10.5 + 2 * 5


def test_seconds_left_before_the_first_epoch_come_from_the_plan(tmp_path: Path) -> None:
    run(tmp_path, "a", epochs_done=0, plan={"seconds_per_epoch": 7.0})
    run(tmp_path, "b", epochs_done=0)
    assert [one.seconds_left for one in run_statuses(tmp_path)] == [70.0, None]


def test_running_run_without_a_process_is_killed(tmp_path: Path) -> None:
    killed, running = run(tmp_path, "a"), run(tmp_path, "b")
    with only_holder(running / LOCK):
        found = run_statuses(tmp_path)
        assert [(one.state, one.can_resume) for one in found] == [("killed", True), ("running", False)]
    assert json.loads((killed / "run.json").read_text())["state"] == "running"  # looking changes nothing
    assert [path.name for path in killed.iterdir()] == ["run.json"]


def test_run_statuses_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that runs of other users can be listed."""
    folder = run(tmp_path, "a")
    (folder / LOCK).write_text("process 1 on elsewhere\n")
    flags_seen = []
    usual = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *more, **rest: flags_seen.append(flags) or usual(path, flags))
    assert [one.state for one in run_statuses(tmp_path)] == ["killed"]
    assert flags_seen == [os.O_RDONLY]
    assert (folder / LOCK).read_text() == "process 1 on elsewhere\n"


def test_run_statuses_hold_test_and_best_validation_epe3d(tmp_path: Path) -> None:
    run(tmp_path, "a", state="finished", epoch_seconds=(1.0,), epe3d=0.1, best_validation_epe3d=0.2)
    run(tmp_path, "b", best_validation_epe3d=0.2)
    run(tmp_path, "c", state="interrupted", reason="stopped by SIGTERM")
    assert [(one.epe3d, one.validation_epe3d, one.reason) for one in run_statuses(tmp_path)] == [
        (0.1, 0.2, None),
        (None, 0.2, None),
        (None, None, "stopped by SIGTERM"),
    ]
    assert run_statuses(tmp_path)[0].seconds_left is None


def test_damaged_runs_are_listed_and_other_folders_ignored(tmp_path: Path) -> None:
    run(tmp_path, "b")
    for name, text in (("a", "{"), ("c", '{"format": 99, "state": "finished"}'), ("d", '{"format": 1, "state": 7}')):
        (run(tmp_path, name) / "run.json").write_text(text)
    (tmp_path / "e").mkdir()
    assert [(one.name, one.state) for one in run_statuses(tmp_path)] == [
        ("b", "killed"),
        ("a", "damaged"),
        ("c", "damaged"),
        ("d", "damaged"),
    ]
    assert run_statuses(tmp_path / "nowhere") == []


def test_runs_are_found_oldest_first_and_links_are_not_followed(tmp_path: Path) -> None:
    for name, day in (("b", 2), ("a", 3), ("c", 1)):
        past_run(tmp_path, name, day=day)
    (tmp_path / "latest").symlink_to("c")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "notes").mkdir()
    assert [run.path.name for run in find_runs(tmp_path).runs] == ["c", "b", "a"]
    assert find_runs(tmp_path / "none") == FoundRuns(())
    with pytest.raises(DataError, match="is a file; name the folder that holds the runs"):
        find_runs(tmp_path / "a" / "run.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 2}', b'{"state": "finished"}']
)
def test_run_with_a_damaged_record_is_left_out(tmp_path: Path, content: bytes) -> None:
    past_run(tmp_path, "damaged", teacher_key="k", day=1)
    good = past_run(tmp_path, "good", teacher_key="k")
    (tmp_path / "damaged" / "run.json").write_bytes(content)
    assert [run.path.name for run in find_runs(tmp_path).runs] == ["good"]
    assert find_teacher(tmp_path, "k") == latest_checkpoint(tmp_path) == good


def test_run_json_that_is_a_folder_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    found = find_runs(tmp_path)
    assert (found.runs, found.damaged) == ((), (tmp_path / "odd",))


def test_find_teacher_chooses_the_newest_finished_one_with_the_key(tmp_path: Path) -> None:
    assert find_teacher(tmp_path / "none", "k") is None
    past_run(tmp_path, "z-old", teacher_key="k", day=1)
    new = past_run(tmp_path, "a-new", teacher_key="k", role="teacher", day=2)
    past_run(tmp_path, "stopped", teacher_key="k", state="interrupted", day=3)
    past_run(tmp_path, "failed", teacher_key="k", state="failed", day=3, hour=11)
    past_run(tmp_path, "running", teacher_key="k", state="running", day=3, hour=12)
    past_run(tmp_path, "emptied", teacher_key="k", weights=False, day=3, hour=13)
    past_run(tmp_path, "other", teacher_key="other", day=3, hour=14)
    past_run(tmp_path, "keyless", day=3, hour=15)
    assert find_teacher(tmp_path, "k") == new
    assert find_teacher(tmp_path, "unknown") is None


def test_latest_checkpoint_prefers_the_newest_student_to_any_teacher(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    teacher = past_run(tmp_path, "t1", role="teacher", day=1)
    assert latest_checkpoint(tmp_path) == teacher
    newer = past_run(tmp_path, "t0", role="teacher", day=9)
    assert latest_checkpoint(tmp_path) == newer
    student = past_run(tmp_path, "s1", day=2)
    assert latest_checkpoint(tmp_path) == student
    newest = past_run(tmp_path, "s0", day=3)
    past_run(tmp_path, "s2", state="interrupted", day=4)
    past_run(tmp_path, "s3", weights=False, day=5)
    assert latest_checkpoint(tmp_path) == newest


def test_newest_run_is_chosen_by_its_record_not_by_file_times(tmp_path: Path) -> None:
    new = past_run(tmp_path, "new", teacher_key="k", day=2)
    past_run(tmp_path, "old", teacher_key="k", day=1)
    os.utime(new.parent / "run.json", (time.time() - 10**6,) * 2)
    os.utime(new, (time.time() - 10**6,) * 2)
    assert find_teacher(tmp_path, "k") == latest_checkpoint(tmp_path) == new
