# SPDX-License-Identifier: MIT
"""A resumed training gives the weights of one that was never stopped, whatever the reason for stopping."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from run_processes import last_error_line, start_process, wait_until
from small_runs import (
    NAME,
    StopAfter,
    checkpoints_of,
    damage,
    digest,
    digest_of_uninterrupted,
    edit_config,
    edit_record,
    job_for,
    mark_unfinished,
    metrics_of,
    newest_number,
    record_of,
    resume_run,
    small_recipe,
    train_run,
)
from tiny_world import BIG, Quiet, tiny_network, write_things

from bpfn_cli.data.synthetic.driving.live import write_live
from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
from bpfn_cli.errors import BusyError, CheckpointError, DataError, DiskError, Interrupted, UsageError
from bpfn_cli.files import TEMPORARY_PREFIX
from bpfn_cli.models import save_checkpoint
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import STRATEGIES, Strategy
from bpfn_cli.training import resume, run_or_resume
from bpfn_cli.training.start import create_run

EVERY_STEP = small_recipe()

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the same weights ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "optimizer"), [*((name, "adam") for name in STRATEGIES), ("plain", "muon")])
def test_training_stopped_at_every_step_equals_the_uninterrupted_one(
    things: Path, teacher: Path, tmp_path: Path, name: str, optimizer: str
) -> None:
    """All state: critic, adapters, peer, moved teacher, early stop, validations; also between epochs."""
    strategy = {"kind": name, "online": {"target": "general"}, "meta": {"every": 2}}
    recipe = small_recipe(
        loss=["adversarial", "hint"],
        strategy=strategy,
        early_stop={"kind": "auto", "checks": 1},
        data={"holdout": 0.2, "meta_val": 0.2},
        train={"epochs": 2, "keep_every": 1, "optimizer": optimizer},
    )
    expected = digest_of_uninterrupted(things, tmp_path / "whole", recipe, teacher=teacher)
    runs = tmp_path / "runs"
    with pytest.raises(Interrupted):
        train_run(things, runs, recipe, teacher=teacher, stop=StopAfter(0))
    for stops in range(1, 30):  # after one batch or scene, then after two, or no validation would ever be finished
        assert record_of(runs)["state"] == "interrupted"
        try:
            resume_run(runs, StopAfter(stops % 2))
            break
        except Interrupted:
            pass
    assert 6 <= stops < 29
    assert digest(runs) == expected
    assert metrics_of(runs) == metrics_of(tmp_path / "whole")
    for path in checkpoints_of(runs)[:-1]:  # also from an earlier checkpoint
        path.unlink()
    (runs / NAME / "summary.json").unlink()
    edit_record(runs, state="running")
    resume_run(runs)
    assert digest(runs) == expected


@pytest.mark.slow
def test_number_of_workers_does_not_change_a_training(things: Path, tmp_path: Path) -> None:
    found = [digest_of_uninterrupted(things, tmp_path / str(n), small_recipe(data={"workers": n})) for n in (0, 1, 2)]
    assert len(set(found)) == 1


@pytest.mark.slow
def test_training_on_live_scenes_is_resumed_and_does_not_depend_on_workers(tmp_path: Path) -> None:
    """Scenes that exist nowhere on disk, new ones in every epoch."""
    live, runs = tmp_path / "live", tmp_path / "runs"
    write_live(live, DrivingOptions(train=4, val=1, points=1024))
    recipe = small_recipe(train={"epochs": 2})
    expected = digest_of_uninterrupted(live, tmp_path / "whole", recipe)
    with pytest.raises(Interrupted):
        train_run(live, runs, small_recipe(train={"epochs": 2}, data={"workers": 2}), stop=StopAfter(1))
    with pytest.raises(Interrupted):
        resume_run(runs, StopAfter(3))
    resume_run(runs)
    assert digest(runs) == expected


@pytest.mark.slow
def test_another_seed_gives_another_digest(things: Path, whole: Path, tmp_path: Path) -> None:
    assert digest_of_uninterrupted(things, tmp_path, small_recipe(seed=1)) != digest(whole)


@pytest.mark.slow
def test_stopped_teacher_is_resumed_and_then_its_student(things: Path, tmp_path: Path) -> None:
    recipe = small_recipe(loss=["bihint"], train={"epochs": 2})
    expected = digest_of_uninterrupted(things, tmp_path / "whole", recipe)
    runs = tmp_path / "runs"
    with pytest.raises(Interrupted, match=f"enough; resume with: bpfn resume {runs / NAME}"):
        train_run(things, runs, recipe, stop=StopAfter(4))
    assert record_of(runs)["state"] == "interrupted"
    said = resume_run(runs).lines
    assert any(line.startswith(f"teacher: resuming {runs / 'teacher-big-scratch-'}") for line in said)
    assert digest(runs) == expected
    assert len([path for path in runs.iterdir() if path.name.startswith("teacher-")]) == 1


@pytest.mark.slow
def test_training_with_a_teacher_cache_is_resumed(things: Path, teacher: Path, tmp_path: Path) -> None:
    plain = small_recipe(loss=["basic"])
    expected = digest_of_uninterrupted(things, tmp_path / "whole", plain, teacher=teacher)
    cached = small_recipe(loss=["basic"], train={"teacher_cache": str(tmp_path / "cache")})
    runs = tmp_path / "runs"
    with pytest.raises(Interrupted):
        train_run(things, runs, cached, teacher=teacher, stop=StopAfter(5))
    resume_run(runs)
    assert digest(runs) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)],
    ids=str,
)
def test_training_stopped_by_a_signal_saves_and_resumes(
    things: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    step, runs = Strategy.step, tmp_path / "runs"

    def signaled(self: Strategy, *rest: Any) -> Any:
        if self.steps == 4:
            os.kill(os.getpid(), number)
        return step(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Strategy, "step", signaled)
        with pytest.raises(Interrupted, match=f"stopped by {number.name}; resume with: bpfn resume") as raised:
            train_run(things, runs, EVERY_STEP)
    assert raised.value.exit_code == code
    assert (record_of(runs)["state"], record_of(runs)["reason"]) == ("interrupted", f"stopped by {number.name}")
    assert newest_number(runs) == 5  # the step in which the signal came is finished
    resume_run(runs)
    assert digest(runs) == digest(whole)
    assert metrics_of(runs) == metrics_of(whole)


@pytest.mark.slow
def test_training_killed_once_equals_the_uninterrupted_one(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = start_process(things, runs, EVERY_STEP)
    wait_until(partial(is_further, process, runs, 2))
    assert process.exitcode is None
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert record_of(runs)["state"] == "running"
    resume_run(runs)
    assert digest(runs) == digest(whole)
    assert metrics_of(runs) == metrics_of(whole)


def is_further(process: ForkServerProcess, runs: Path, number: int) -> bool:
    """Whether a training is past a checkpoint, or has ended."""
    return newest_number(runs) > number or process.exitcode is not None


def kill_loop(data: Path, tmp_path: Path, recipe: Recipe, kills: int, seed: int) -> None:
    """Kill trainings at random moments until they finish, and start again, until `kills` are reached."""
    expected = digest_of_uninterrupted(data, tmp_path / "whole", recipe)
    generator, killed, rounds = random.Random(seed), 0, 0
    while killed < kills:
        runs = tmp_path / f"round{rounds}" / "runs"
        rounds += 1
        while True:
            before = newest_number(runs)
            process = start_process(data, runs, recipe)
            if killed % 2:  # at any time, also while it starts
                process.join(generator.uniform(0, 2.5))
            else:  # soon after it has got further, however slow the machine is
                wait_until(partial(is_further, process, runs, before))
                process.join(generator.uniform(0, 0.5))
            if process.exitcode is None:
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
                killed += 1
                continue
            assert process.exitcode == 0, last_error_line(runs)
            break
        assert digest(runs) == expected
        assert metrics_of(runs) == metrics_of(tmp_path / "whole")
        shutil.rmtree(runs)
    print(f"{killed} kills in {rounds} trainings")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_killed_10_times_equals_the_uninterrupted_one(things: Path, tmp_path: Path, workers: int) -> None:
    kill_loop(things, tmp_path, small_recipe(data={"workers": workers}), 10, seed=workers)


@pytest.mark.endurance
@pytest.mark.parametrize("workers", [0, 2])
def test_training_killed_100_times_equals_the_uninterrupted_one(things: Path, tmp_path: Path, workers: int) -> None:
    kill_loop(things, tmp_path, small_recipe(data={"workers": workers}), 100, seed=10 + workers)


# --- what resuming finds ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(things: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of an uninterrupted training."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    train_run(things, runs, EVERY_STEP)
    return runs


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`."""
    return Path(shutil.copytree(whole, tmp_path / "runs", symlinks=True))


def test_resume_removes_temporaries_of_killed_writers(things: Path, finished: Path) -> None:
    mark_unfinished(finished)
    folder = finished / NAME
    left = [below / f"{TEMPORARY_PREFIX}0123456789abcdef" for below in (folder, folder / "evaluations", finished)]
    for path in left[:2]:
        path.write_bytes(b"half")
    left[2].mkdir()
    (left[2] / "run.json").write_bytes(b"half")
    fresh = [path.with_name(f"{TEMPORARY_PREFIX}fedcba9876543210") for path in left[1:]]  # may still be in use
    for path in left:
        os.utime(path, (0, 0))
    for path in fresh:
        path.touch()
    resume_run(finished)
    create_run(replace(job_for(things, finished, EVERY_STEP), name="next"), "student")
    assert [path.exists() for path in left] == [False] * 3
    assert [path.exists() for path in fresh] == [True] * 2


def test_run_that_must_be_new_is_busy_if_its_name_is_taken(things: Path, finished: Path) -> None:
    with pytest.raises(BusyError, match="another process has just started this run; repeat to resume it"):
        train_run(things, finished, EVERY_STEP, must_be_new=True)
    assert sorted(path.name for path in finished.iterdir()) == [NAME, "latest"]


@pytest.mark.parametrize(
    ("key", "below"),
    [("data", "train_scenes"), ("epochs_done", None), ("paths", "device"), ("versions", None), ("teacher", None)],
)
def test_resume_rejects_a_damaged_record(finished: Path, key: str, below: str | None) -> None:
    entry = record_of(finished)[key]
    damaged = {name: value for name, value in entry.items() if name != below} if below else "x"
    edit_record(finished, state="running", **{key: damaged})
    with pytest.raises(
        DataError, match=rf"run\.json: damaged: {key}.*; restore it, repeat the run or delete its folder"
    ):
        resume_run(finished)


def test_resume_with_missing_data_asks_for_their_new_path(
    things: Path, finished: Path, whole: Path, tmp_path: Path
) -> None:
    mark_unfinished(finished)
    edit_record(finished, paths=record_of(finished)["paths"] | {"data": str(tmp_path / "nowhere")})
    (finished / NAME / "command.txt").unlink()  # not needed
    with pytest.raises(DataError, match="nowhere: the data of this run are gone; give their new path with --data"):
        resume_run(finished)
    resume_run(finished, data=things)
    assert digest(finished) == digest(whole)


def nearly_full(monkeypatch: pytest.MonkeyPatch, free: int = 0) -> None:
    """Pretend that every disk has `free` bytes left."""
    real = os.statvfs

    def stand_in(path: Any) -> Any:
        found = real(path)
        blocks = free // found.f_frsize
        return os.statvfs_result((found.f_bsize, found.f_frsize, found.f_blocks, blocks, blocks, *tuple(found)[5:10]))

    monkeypatch.setattr(os, "statvfs", stand_in)


def test_existing_checkpoints_count_as_space_for_later_ones(
    finished: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_unfinished(finished)
    nearly_full(monkeypatch)
    resume_run(finished)  # nothing is to be trained
    mark_unfinished(finished)
    checkpoints_of(finished)[0].unlink()
    with pytest.raises(DiskError, match=r"checkpoints need \d+ MB, but only 0 MB are free"):
        resume_run(finished)
    nearly_full(monkeypatch, 3 * checkpoints_of(finished)[0].stat().st_size)  # together with the existing ones
    resume_run(finished)
    assert digest(finished) == digest(whole)


def test_disk_too_small_for_checkpoints_is_reported_before_the_first_step(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full(monkeypatch)
    with pytest.raises(
        DiskError, match=r"checkpoints need \d+ MB, but only 0 MB are free; free some space, or choose another --runs"
    ):
        train_run(things, tmp_path / "runs", EVERY_STEP)
    assert record_of(tmp_path / "runs")["state"] == "failed"
    assert not checkpoints_of(tmp_path / "runs")


def test_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(finished: Path, whole: Path) -> None:
    mark_unfinished(finished)
    newest, before = checkpoints_of(finished)[:2]
    damage(newest)
    said = resume_run(finished).lines
    assert any(line.startswith(f"warning: {newest}: damaged") and "using the previous one" in line for line in said)
    assert any(line.startswith("resuming at epoch 3 of 3, batch") for line in said)
    assert digest(finished) == digest(whole)
    assert before.exists()


def test_newest_checkpoint_is_chosen_by_number_not_by_time_stamp(finished: Path, whole: Path) -> None:
    mark_unfinished(finished)
    newest, before = checkpoints_of(finished)[:2]
    os.utime(newest, (0, 0))
    os.utime(before, (2**31, 2**31))
    assert "resuming: all 3 epochs are trained" in resume_run(finished).lines


@pytest.mark.parametrize("how", ["damaged", "gone", "without a folder"])
def test_resume_without_an_undamaged_checkpoint_never_restarts(finished: Path, how: str) -> None:
    mark_unfinished(finished)
    for path in checkpoints_of(finished):
        damage(path) if how == "damaged" else path.unlink()
    if how == "without a folder":
        shutil.rmtree(finished / NAME / "checkpoints")
    with pytest.raises(CheckpointError, match="start again under another --name"):
        resume_run(finished)
    assert record_of(finished)["state"] == "failed"
    assert len(metrics_of(finished)) == 3


@pytest.mark.slow
def test_run_killed_before_its_first_checkpoint_restarts_and_says_so(finished: Path, whole: Path) -> None:
    mark_unfinished(finished, has_checkpoints=False)
    for path in checkpoints_of(finished):
        path.unlink()
    assert any(
        "resuming from the start: the run was stopped before its first checkpoint" in line
        for line in resume_run(finished).lines
    )
    assert digest(finished) == digest(whole)
    assert metrics_of(finished) == metrics_of(whole)


def test_run_killed_after_its_last_save_is_evaluated_when_resumed(finished: Path, whole: Path) -> None:
    mark_unfinished(finished)
    assert "resuming: all 3 epochs are trained" in resume_run(finished).lines
    assert record_of(finished)["state"] == "finished"
    deployed = [runs / NAME / "student.safetensors" for runs in (finished, whole)]
    assert deployed[0].read_bytes() == deployed[1].read_bytes()
    results = [json.loads((runs / NAME / "summary.json").read_text())["result"]["rows"] for runs in (finished, whole)]
    assert results[0] == results[1]


def test_resume_of_a_finished_run_rejects_a_missing_summary(finished: Path) -> None:
    (finished / NAME / "summary.json").unlink()
    with pytest.raises(DataError, match=r"finished, but its summary\.json is damaged or gone"):
        resume_run(finished)


def test_run_is_resumed_through_the_latest_link(finished: Path, whole: Path) -> None:
    mark_unfinished(finished)
    (finished / "latest").unlink(missing_ok=True)
    (finished / "latest").symlink_to(NAME)
    resume(finished / "latest", Quiet())
    assert (finished / "latest").readlink() == Path(NAME)
    assert record_of(finished)["state"] == "finished"


def test_resume_with_fewer_scenes_keeps_new_checkpoints(finished: Path, tmp_path: Path) -> None:
    mark_unfinished(finished)
    edit_config(finished, "epochs: 3", "epochs: 4")
    fewer = write_things(tmp_path / "fewer", train=3)
    before = newest_number(finished)
    resume_run(finished, data=fewer, allow=True)
    assert record_of(finished)["epochs_done"] == 4
    assert newest_number(finished) > before


def test_resume_leaves_a_finished_run_unchanged(finished: Path) -> None:
    before = {path: path.read_bytes() for path in (finished / NAME).rglob("*") if path.is_file()}
    resume_run(finished)
    assert {path: path.read_bytes() for path in (finished / NAME).rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("old", "new"), [("optimizer: adam", "optimizer: muon"), ("kind: plain", "kind: self")])
def test_changes_that_no_checkpoint_fits_are_refused_before_anything_is_written(
    finished: Path, old: str, new: str
) -> None:
    mark_unfinished(finished)
    edit_config(finished, old, new)
    before = (finished / NAME / "run.json").read_bytes()
    with pytest.raises(UsageError, match=r"the checkpoints of the run belong to other settings: .*, now (muon|self); "):
        resume_run(finished, allow=True)
    assert (finished / NAME / "run.json").read_bytes() == before


def test_changed_recipe_data_and_versions_are_refused_unless_allowed(finished: Path, tmp_path: Path) -> None:
    versions = record_of(finished)["versions"] | {"torch": "1.0"}
    mark_unfinished(finished, versions=versions, cell="tiny-basic-seed0", cell_key="k")
    edit_config(finished, "epochs: 3", "epochs: 4")
    other = write_things(tmp_path / "other", train=6)
    with pytest.raises(UsageError) as refused:
        resume_run(finished, data=other)
    for phrase in (
        f"torch 1.0, now {torch.__version__}",
        "train.epochs 3, now 4",
        "data sha256 ",
        "settings differ from the original run",
        "restore them, or continue with --allow",
    ):
        assert phrase in str(refused.value)
    assert len(metrics_of(finished)) == 3
    resume_run(finished, allow=True)
    assert record_of(finished)["epochs_done"] == 4
    assert len(record_of(finished)["resumed"][-1]["differences"]) == 2  # on the old data again
    assert record_of(finished)["cell"] is None  # it is no longer the training of its study


def test_rewritten_scenes_of_equal_names_and_sizes_are_other_data(things: Path, finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "rewritten"
    shutil.copytree(things, root)
    mark_unfinished(finished)
    resume_run(finished, data=root)  # an equal copy
    mark_unfinished(finished)
    for path in root.glob("train/*/pc1.npy"):
        content = bytearray(path.read_bytes())
        content[-4:] = content[-8:-4]
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"data sha256 \w{8}, now \w{8}; restore them, or continue with --allow"):
        resume_run(finished, data=root)
    with pytest.raises(UsageError, match="is a different training: other data"):
        run_or_resume(job_for(root, finished, EVERY_STEP), Quiet())


def test_files_written_since_the_start_are_reported(things: Path, finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copied"
    shutil.copytree(things, root)
    mark_unfinished(finished)
    assert not [line for line in resume_run(finished, data=root).lines if "written since" in line]
    mark_unfinished(finished)
    os.utime(next(root.glob("val/*/pc2.npy")), (4e9, 4e9))
    (note,) = [line for line in resume_run(finished, data=root).lines if "written since" in line]
    assert "now 2096-10-02T07:06:40+00:00" in note


def test_another_number_of_threads_is_a_difference_if_set_by_the_user(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_unfinished(finished)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    with pytest.raises(UsageError, match="threads 1, now 2"):
        resume_run(finished)
    monkeypatch.delenv("OMP_NUM_THREADS")
    resume_run(finished)  # with the recorded number
    assert torch.get_num_threads() == 1


def test_keys_that_decide_no_numbers_may_change(finished: Path, whole: Path) -> None:
    mark_unfinished(finished)
    checkpoints_of(finished)[0].unlink()
    edit_config(finished, "checkpoint_minutes: 0.0", "checkpoint_minutes: 5.0")
    edit_config(finished, "workers: null", "workers: 1")
    resume_run(finished)
    assert digest(finished) == digest(whole)


def test_resume_takes_the_teacher_that_was_used_although_its_run_has_another(things: Path, tmp_path: Path) -> None:
    """As a checkpoint or a copy of a run's network is, whose metadata name the run."""
    teacher, runs = tmp_path / "t.safetensors", tmp_path / "runs"
    save_checkpoint(teacher, tiny_network(6, BIG), run="t")
    train_run(things, runs, small_recipe(loss=["basic"], train={"epochs": 1}), teacher=teacher)
    mark_unfinished(runs)
    (runs / "t").mkdir()
    save_checkpoint(runs / "t" / "student.safetensors", tiny_network(7, BIG))
    resume_run(runs)
    assert record_of(runs)["state"] == "finished"


def test_resume_rejects_a_changed_or_missing_teacher(things: Path, tmp_path: Path) -> None:
    teacher, runs = tmp_path / "t.safetensors", tmp_path / "runs"
    save_checkpoint(teacher, tiny_network(6, BIG))
    train_run(things, runs, small_recipe(loss=["basic"], train={"epochs": 1}), teacher=teacher)
    mark_unfinished(runs)
    save_checkpoint(teacher, tiny_network(7, BIG))
    with pytest.raises(UsageError, match=r"teacher sha256 \w{8}, now \w{8}; restore them, or continue with --allow"):
        resume_run(runs)
    resume_run(runs, allow=True)
    mark_unfinished(runs)
    teacher.unlink()
    with pytest.raises(
        CheckpointError, match=r"t\.safetensors: the teacher of this run is gone; give its new path with --teacher"
    ):
        resume_run(runs)


@pytest.mark.slow
def test_moved_run_finds_its_teacher_at_the_recorded_path(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    train_run(things, runs, small_recipe(loss=["basic"], train={"epochs": 1}))
    assert record_of(runs)["teacher"]["run"]  # trained first, in the same folder
    far = tmp_path / "far"
    shutil.copytree(runs / NAME, far / NAME, symlinks=True)
    mark_unfinished(far)
    resume_run(far)
    assert record_of(far)["state"] == "finished"


def test_run_tests_on_another_dataset_and_finds_it_again(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, runs = write_things(tmp_path / "other", train=1, val=2, points=1100), tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    train_run(things, runs, small_recipe(data={"test": "other"}, train={"epochs": 1}))
    (evaluation,) = (json.loads(path.read_text()) for path in runs.glob(f"{NAME}/evaluations/*.json"))
    assert (evaluation["dataset"]["path"], evaluation["dataset"]["scenes"]) == ("other", 2)
    mark_unfinished(runs)
    monkeypatch.chdir("/")
    resume_run(runs)
    mark_unfinished(runs)
    other = other.rename(tmp_path / "moved")
    moved = small_recipe(data={"test": str(other)}, train={"epochs": 1})
    run_or_resume(job_for(things, runs, moved), Quiet())
    mark_unfinished(runs)
    shutil.copytree(other / "val" / "0000000", other / "val" / "0000099")
    with pytest.raises(UsageError, match="data sha256"):
        resume_run(runs)


@pytest.mark.slow
def test_resume_keeps_the_teacher_although_a_newer_one_exists(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    recipe = small_recipe(loss=["basic"], train={"epochs": 1})
    train_run(things, runs, recipe)
    mark_unfinished(runs)
    alone = small_recipe(variant="big", loss=["none"], train={"epochs": 1})
    train_run(things, runs, alone, name="newer")
    resume_run(runs)
    assert record_of(runs)["teacher"]["run"].startswith("teacher-big-")


def test_truncated_metrics_are_repaired(finished: Path, whole: Path) -> None:
    mark_unfinished(finished)
    path = finished / NAME / "metrics.jsonl"
    checkpoints_of(finished)[0].unlink()  # the newest one left is within the last epoch
    path.write_bytes(path.read_bytes()[:-20])
    resume_run(finished)
    assert metrics_of(finished) == metrics_of(whole)


# --- run or resume ------------------------------------------------------------------------------------


def test_run_or_resume_continues_the_run_of_its_name(things: Path, finished: Path, whole: Path) -> None:
    mark_unfinished(finished)
    checkpoints_of(finished)[0].unlink()
    run_or_resume(job_for(things, finished, EVERY_STEP), Quiet())
    assert digest(finished) == digest(whole)
    assert sorted(path.name for path in finished.iterdir()) == [NAME, "latest"]


def test_run_or_resume_rejects_another_recipe_other_data_and_other_folders(
    things: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"is a different training: seed 0, now 1; choose another --name"):
        run_or_resume(job_for(things, finished, small_recipe(seed=1)), Quiet())
    other = write_things(tmp_path / "other", train=6)
    with pytest.raises(UsageError, match=r"is a different training: other data; choose another --name"):
        run_or_resume(job_for(other, finished, EVERY_STEP), Quiet())
    (finished / "notes").mkdir()
    with pytest.raises(UsageError, match=r"notes exists, but is not a run; choose another --name"):
        run_or_resume(job_for(things, finished, EVERY_STEP, name="notes"), Quiet())
