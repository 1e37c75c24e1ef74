# SPDX-License-Identifier: MIT
"""What befalls a training that is left alone for days: each ends with its exit code, one line, and nothing lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    NAME,
    about,
    brief,
    carried_out,
    digest,
    experiment,
    gone_on,
    has_checkpoint,
    last_line,
    metrics,
    signal_group,
    start,
    wait_until,
)
from faults import Fault
from tiny_world import BIG, LEAST, Quiet, tiny_network, write_things

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.loader import epoch_order
from bpfn_cli.errors import BusyError, CheckpointError, DataError, DiskError, UsageError
from bpfn_cli.files import TEMPORARY_PREFIX
from bpfn_cli.models import save_checkpoint, slim
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs.checkpoints import Checkpoints
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.training import resume, run_experiment
from bpfn_cli.training.loop.fit import split_of

EVERY_STEP = brief()
WITH_WORKERS = brief(data={"workers": 2})

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(things: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a training that nothing befell."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    run_experiment(experiment(things, runs, EVERY_STEP), Quiet())
    return runs


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "runs", symlinks=True))


def unfinished(runs: Path, **more: Any) -> None:
    """Make a finished run look as if it had been killed before its evaluation."""
    folder = runs / NAME
    for path in (folder / "summary.json", folder / "student.safetensors", *folder.glob("evaluations/*")):
        path.unlink()
    (folder / "run.json").write_text(json.dumps(about(runs) | {"state": "running"} | more))


def struck(
    data: Path, runs: Path, recipe: Recipe, fault: str, *, is_seen: bool = False
) -> tuple[ForkServerProcess, Path]:
    """A training that a fault of `faults` met after its first checkpoint, and the file whose removal ends the fault.

    Args: is_seen: wait until the fault has done its work, where it says so.
    """
    switch = runs.parent / fault
    process = start(data, runs, recipe, Fault(fault, switch))
    wait_until(has_checkpoint(runs))
    switch.touch()
    if is_seen:
        wait_until(switch.with_suffix(".begun").exists)
    return process, switch


def checkpoints(runs: Path) -> list[Path]:
    """Newest first."""
    return sorted((runs / NAME / "checkpoints").glob("step-*.safetensors"), reverse=True)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- rows 60 to 62: signals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)],
    ids=str,
)
def test_signal_to_the_whole_group_saves_and_ends(
    things: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    runs = tmp_path / "runs"
    process = start(things, runs, WITH_WORKERS)
    wait_until(has_checkpoint(runs, 2))
    signal_group(process, number)
    process.join(20)
    assert process.exitcode == code
    assert last_line(runs) == f"bpfn: stopped by {number.name}; resume with: bpfn resume {runs / NAME}"
    assert (about(runs)["state"], about(runs)["reason"]) == ("interrupted", f"stopped by {number.name}")
    assert carried_out(things, runs, WITH_WORKERS)[0] == 0
    assert digest(runs) == digest(whole)
    assert metrics(runs) == metrics(whole)


def test_second_signal_during_a_save_ends_at_once_and_costs_nothing(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, _ = struck(things, runs, EVERY_STEP, "slow_save", is_seen=True)
    before = checkpoints(runs)
    signal_group(process, signal.SIGTERM)
    time.sleep(0.3)
    assert process.exitcode is None  # it waits for the disk
    began = time.monotonic()
    signal_group(process, signal.SIGTERM)
    process.join(20)
    assert (process.exitcode, time.monotonic() - began < 5) == (143, True)
    assert set(before) <= set(checkpoints(runs))
    assert any(path.name.startswith(TEMPORARY_PREFIX) for path in (runs / NAME / "checkpoints").iterdir())
    assert carried_out(things, runs, EVERY_STEP)[0] == 0
    assert digest(runs) == digest(whole)
    # Row 67: what the killed writer left is swept.
    assert not any(path.name.startswith(TEMPORARY_PREFIX) for path in (runs / NAME / "checkpoints").iterdir())


def test_what_killed_writers_left_is_swept(finished: Path) -> None:
    """Row 67, in the folders beside."""
    unfinished(finished)
    folder = finished / NAME
    left = [below / f"{TEMPORARY_PREFIX}0123456789abcdef" for below in (folder, folder / "evaluations", finished)]
    for path in left[:2]:
        path.write_bytes(b"half")
    left[2].mkdir()
    (left[2] / "run.json").write_bytes(b"half")
    fresh = [path.with_name(f"{TEMPORARY_PREFIX}fedcba9876543210") for path in left[1:]]  # another is at it
    for path in left:
        os.utime(path, (0, 0))
    for path in fresh:
        path.touch()
    gone_on(finished)
    RunFolder.create(finished, "next", config="", command="", about={})
    assert [path.exists() for path in left] == [False] * 3
    assert [path.exists() for path in fresh] == [True] * 2


def test_name_that_another_has_just_taken_is_busy(things: Path, finished: Path) -> None:
    only = replace(experiment(things, finished, EVERY_STEP), has_own_name=True)
    with pytest.raises(BusyError, match="another process has just begun this run; repeat to go on with it"):
        run_experiment(only, Quiet())
    assert sorted(path.name for path in finished.iterdir()) == [NAME, "latest"]


@pytest.mark.parametrize(("key", "below"), [("data", "sha256"), ("epochs_done", None), ("place", "device")])
def test_damaged_record_is_told(finished: Path, key: str, below: str | None) -> None:
    record = about(finished) | {"state": "running"}
    record[key] = {name: value for name, value in record[key].items() if name != below} if below else "x"
    (finished / NAME / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"run\.json: damaged, or of another bpfn \(`{key}"):
        gone_on(finished)


def test_data_that_are_gone_are_asked_for(things: Path, finished: Path, whole: Path, tmp_path: Path) -> None:
    unfinished(finished)
    record = about(finished)
    record["place"]["data"] = str(tmp_path / "nowhere")
    (finished / NAME / "run.json").write_text(json.dumps(record))
    (finished / NAME / "command.txt").unlink()  # for people alone
    with pytest.raises(DataError, match="nowhere: the data of this run are gone; say where they are by --data"):
        gone_on(finished)
    gone_on(finished, data=things)
    assert digest(finished) == digest(whole)


def test_training_whose_workers_hang_ends_on_a_signal(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, switch = struck(things, runs, WITH_WORKERS, "hanging_workers", is_seen=True)
    began = time.monotonic()
    signal_group(process, signal.SIGTERM)
    process.join(30)
    assert (process.exitcode, time.monotonic() - began < 10) == (143, True)
    switch.unlink()
    assert carried_out(things, runs, WITH_WORKERS)[0] == 0
    assert digest(runs) == digest(whole)


# --- rows 63, 64: disks -------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_that_fills_up_costs_no_checkpoint(things: Path, whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "16m"):
        (disk / "runs").mkdir()
        runs = tmp_path / "runs"  # beside what is said on stderr
        runs.symlink_to(disk / "runs")
        process = start(things, runs, EVERY_STEP)
        wait_until(has_checkpoint(runs, 2))
        with (disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while True:
                other.write(bytes(1 << 12))
        process.join(60)
        assert process.exitcode == 5
        assert "no space left on the disk" in last_line(runs)
        assert about(runs)["state"] in ("failed", "running")  # run.json may not fit either
        (disk / "other").unlink()
        assert carried_out(things, runs, EVERY_STEP)[0] == 0
        assert digest(runs) == digest(whole)


def nearly_full(monkeypatch: pytest.MonkeyPatch, free: int = 0) -> None:
    """Let every disk have so many bytes left, it seems."""
    real = os.statvfs

    def stand_in(path: Any) -> Any:
        found = real(path)
        blocks = free // found.f_frsize
        return os.statvfs_result((found.f_bsize, found.f_frsize, found.f_blocks, blocks, blocks, *tuple(found)[5:10]))

    monkeypatch.setattr(os, "statvfs", stand_in)


def test_checkpoints_that_fill_the_disk_make_room_for_the_next(
    finished: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(finished)
    nearly_full(monkeypatch)
    gone_on(finished)  # nothing is to be trained
    unfinished(finished)
    checkpoints(finished)[0].unlink()
    with pytest.raises(DiskError, match=r"checkpoints need \d+ MB, 0 MB are free"):
        gone_on(finished)
    nearly_full(monkeypatch, 3 * checkpoints(finished)[0].stat().st_size)  # with those there
    gone_on(finished)
    assert digest(finished) == digest(whole)


def test_disk_too_small_for_checkpoints_is_found_before_the_first_step(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full(monkeypatch)
    with pytest.raises(DiskError, match=r"checkpoints need \d+ MB, 0 MB are free; free some, or choose another --runs"):
        run_experiment(experiment(things, tmp_path / "runs", EVERY_STEP), Quiet())
    assert about(tmp_path / "runs")["state"] == "failed"
    assert not checkpoints(tmp_path / "runs")


def test_failing_disk_costs_no_checkpoint(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, _ = struck(things, runs, EVERY_STEP, "broken_disk")
    before = checkpoints(runs)[0]
    process.join(60)
    assert process.exitcode == 5
    assert "Input/output error" in last_line(runs)
    assert before.exists()
    assert carried_out(things, runs, EVERY_STEP)[0] == 0
    assert "going on: " in (runs / NAME / "train.log").read_text()  # not from the beginning
    assert digest(runs) == digest(whole)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path: Path) -> None:
    """SIGKILL is no power cut: the order of the calls is what a power cut asks for."""
    script = (
        "from pathlib import Path; from tiny_world import tiny_network;"
        "from bpfn_cli.runs.checkpoints import Checkpoints;"
        f"Checkpoints(Path({str(tmp_path)!r})).save(1, tiny_network(), {{}})"
    )
    trace = tmp_path / "trace"
    import sys

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-e",
            "trace=write,fsync,rename,renameat,renameat2",
            "-o",
            trace,
            sys.executable,
            "-c",
            script,
        ],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    calls = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if str(tmp_path) in line]
    kinds = [call.partition("(")[0] for call in calls if "step-" in call or TEMPORARY_PREFIX in call or "fsync" in call]
    order = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    assert order[:4] == ["write", "fsync", "rename", "fsync"]


# --- rows 65, 66: two of them -------------------------------------------------------------------------


def test_second_process_on_a_run_is_refused_and_told_by_whom(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = start(things, runs, brief(train={"epochs": 50}))
    wait_until(has_checkpoint(runs, 1))
    code, line = carried_out(things, runs, EVERY_STEP)
    assert code == 6
    assert f"{NAME}/.lock: in use by process {process.pid} on {os.uname().nodename}; wait for it to end" in line
    assert about(runs)["state"] == "running"
    process.kill()
    process.join()


def test_orphaned_workers_hold_no_lock(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, switch = struck(things, runs, WITH_WORKERS, "hanging_workers", is_seen=True)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    switch.unlink()
    code, line = carried_out(things, runs, WITH_WORKERS)
    assert code == 0, line
    assert digest(runs) == digest(whole)


# --- rows 68 to 71: what is found when going on --------------------------------------------------------


def test_damaged_newest_checkpoint_is_told_and_the_one_before_taken(finished: Path, whole: Path) -> None:
    unfinished(finished)
    newest, before = checkpoints(finished)[:2]
    damage(newest)
    said = gone_on(finished).lines
    assert any(line.startswith(f"warning: {newest}: damaged") and "trying the one before" in line for line in said)
    assert any(line.startswith("going on: epoch 3 of 3, batch") for line in said)
    assert digest(finished) == digest(whole)
    assert before.exists()


def test_newest_is_told_by_its_number_not_by_the_clock(finished: Path, whole: Path) -> None:
    unfinished(finished)
    newest, before = checkpoints(finished)[:2]
    os.utime(newest, (0, 0))
    os.utime(before, (2**31, 2**31))
    assert "going on: all 3 epochs are trained" in gone_on(finished).lines


@pytest.mark.parametrize("how", ["damaged", "gone", "without a folder"])
def test_run_without_a_whole_checkpoint_never_begins_anew(finished: Path, how: str) -> None:
    unfinished(finished)
    for path in checkpoints(finished):
        damage(path) if how == "damaged" else path.unlink()
    if how == "without a folder":
        shutil.rmtree(finished / NAME / "checkpoints")
    with pytest.raises(CheckpointError, match="begin anew under another --name"):
        gone_on(finished)
    assert about(finished)["state"] == "failed"
    assert len(metrics(finished)) == 3


def test_run_killed_before_its_first_checkpoint_begins_again_and_says_so(finished: Path, whole: Path) -> None:
    unfinished(finished, has_checkpoints=False)
    for path in checkpoints(finished):
        path.unlink()
    assert any("since it was stopped before its first checkpoint" in line for line in gone_on(finished).lines)
    assert digest(finished) == digest(whole)
    assert metrics(finished) == metrics(whole)


def test_first_epoch_ends_with_a_checkpoint(things: Path, tmp_path: Path) -> None:
    recipe = brief(train={"checkpoint_minutes": 100, "validate_every": 3})
    process = start(things, tmp_path / "runs", recipe)
    wait_until(has_checkpoint(tmp_path / "runs", 3))
    process.kill()
    process.join()
    assert checkpoints(tmp_path / "runs")


def test_run_killed_after_its_last_save_finishes(finished: Path, whole: Path) -> None:
    unfinished(finished)
    assert "going on: all 3 epochs are trained" in gone_on(finished).lines
    assert about(finished)["state"] == "finished"
    deployed = [runs / NAME / "student.safetensors" for runs in (finished, whole)]
    assert deployed[0].read_bytes() == deployed[1].read_bytes()
    results = [json.loads((runs / NAME / "summary.json").read_text())["result"]["rows"] for runs in (finished, whole)]
    assert results[0] == results[1]


def test_run_whose_summary_is_gone_is_told(finished: Path) -> None:
    (finished / NAME / "summary.json").unlink()
    with pytest.raises(DataError, match=r"finished, but its summary\.json is damaged or gone"):
        gone_on(finished)


def test_run_is_gone_on_with_by_its_link(finished: Path, whole: Path) -> None:
    unfinished(finished)
    (finished / "latest").unlink(missing_ok=True)
    (finished / "latest").symlink_to(NAME)
    resume(finished / "latest", Quiet())
    assert (finished / "latest").readlink() == Path(NAME)
    assert about(finished)["state"] == "finished"


def test_going_on_with_fewer_scenes_loses_no_new_checkpoint(finished: Path, tmp_path: Path) -> None:
    unfinished(finished)
    edited(finished, "epochs: 3", "epochs: 5")
    fewer = write_things(tmp_path / "fewer", train=3)
    before = newest_number(finished)
    gone_on(finished, data=fewer, allow=True)
    assert about(finished)["epochs_done"] == 5
    assert newest_number(finished) > before


def newest_number(runs: Path) -> int:
    return int(checkpoints(runs)[0].stem[5:])


def test_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.read_bytes() for path in (finished / NAME).rglob("*") if path.is_file()}
    gone_on(finished)
    assert {path: path.read_bytes() for path in (finished / NAME).rglob("*") if path.is_file()} == before


def edited(runs: Path, old: str, new: str) -> None:
    path = runs / NAME / "config.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_changed_recipe_data_and_versions_are_listed_and_allowed_only_when_asked(
    finished: Path, tmp_path: Path
) -> None:
    versions = about(finished)["versions"] | {"torch": "1.0"}
    unfinished(finished, versions=versions)
    edited(finished, "epochs: 3", "epochs: 4")
    other = write_things(tmp_path / "other", train=6)
    with pytest.raises(UsageError) as refused:
        gone_on(finished, data=other)
    for phrase in (
        f"torch 1.0, now {torch.__version__}",
        "train.epochs 3, now 4",
        "data sha256 ",
        "restore what it was, or go on all the same with --allow",
    ):
        assert phrase in str(refused.value)
    assert len(metrics(finished)) == 3
    gone_on(finished, allow=True)
    assert about(finished)["epochs_done"] == 4
    assert len(about(finished)["resumed"][-1]["differences"]) == 2  # on the old data again


def test_threads_asked_for_anew_are_a_difference(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(finished)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    with pytest.raises(UsageError, match="threads 1, now 2"):
        gone_on(finished)
    monkeypatch.delenv("OMP_NUM_THREADS")
    gone_on(finished)  # takes the one it was begun with
    assert torch.get_num_threads() == 1


def test_keys_that_change_no_number_may_change(finished: Path, whole: Path) -> None:
    unfinished(finished)
    checkpoints(finished)[0].unlink()
    edited(finished, "checkpoint_minutes: 0.0", "checkpoint_minutes: 5.0")
    edited(finished, "workers: null", "workers: 1")
    gone_on(finished)
    assert digest(finished) == digest(whole)


# --- rows 72 to 78: what happens in the midst of it ------------------------------------------------------


def test_loss_that_is_nan_is_skipped_told_and_at_last_fatal(things: Path, whole: Path, tmp_path: Path) -> None:
    runs, switch = tmp_path / "runs", tmp_path / "nan"
    switch.touch()
    recipe = brief(train={"most_skipped": 1})
    code, line = carried_out(things, runs, recipe, before=Fault("poisoned_loss", switch))
    assert code == 7
    assert "term supervised is nan for the samples 00000" in line
    assert "2 steps of epoch 2 were left out (train.most_skipped)" in line
    log = (runs / NAME / "train.log").read_text()
    assert log.count("skipped: step 3, epoch 1: term supervised is nan for the samples 00000") == 1
    assert (about(runs)["state"], about(runs)["failed_by"]) == ("failed", "NonFiniteError")
    assert not (runs / NAME / "student.safetensors").exists()
    switch.unlink()
    assert carried_out(things, runs, recipe)[0] == 0  # from the last good state on


def test_killed_worker_is_a_matter_of_memory(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, switch = struck(things, runs, WITH_WORKERS, "killed_workers")
    process.join(60)
    assert process.exitcode == 8
    assert "a loader process was killed, probably because memory ran out; lower data.workers" in last_line(runs)
    switch.unlink()
    assert carried_out(things, runs, WITH_WORKERS)[0] == 0
    assert digest(runs) == digest(whole)


def test_hanging_worker_is_given_up_and_the_samples_named(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    recipe = brief(data={"workers": 1, "timeout": 2})
    process, switch = struck(things, runs, recipe, "hanging_workers")
    process.join(60)
    assert process.exitcode == 3
    assert "no data for 2" in last_line(runs)
    assert "a loader process hangs at one of the samples 00000" in last_line(runs)
    switch.unlink()
    assert carried_out(things, runs, recipe)[0] == 0
    assert digest(runs) == digest(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_scene_damaged_in_the_midst_is_named_and_nothing_lost(
    things: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    data, runs = Path(shutil.copytree(things, tmp_path / "things")), tmp_path / "runs"
    recipe = brief(data={"workers": workers}, train={"checkpoint_minutes": 100, "validate_every": 3})
    dataset = open_dataset(data, "train")
    learn = split_of(dataset, recipe).learn
    last = dataset.names[learn[epoch_order(len(learn), recipe.seed, 1)[-1]]]  # of the second epoch
    file = data / "train" / last / "pc1.npy"
    kept = file.read_bytes()
    process = start(data, runs, recipe)
    wait_until((runs / NAME / "metrics.jsonl").exists)
    file.write_bytes(kept[:200])
    process.join(60)
    assert process.exitcode == 3
    assert f"{last}/pc1.npy" in last_line(runs) and "200" in last_line(runs)
    assert newest_number(runs) > 3  # the first epoch ends with one; the others are far away
    file.write_bytes(kept)
    expected = tmp_path / "expected"
    assert carried_out(data, expected, recipe)[0] == 0
    assert carried_out(data, runs, recipe)[0] == 0
    assert digest(runs) == digest(expected)


def test_memory_that_runs_out_says_what_fits_and_keeps_the_checkpoint(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    recipe = brief(train={"batch_size": 4})
    process, switch = struck(things, runs, recipe, "gpu_memory")
    process.join(60)
    assert process.exitcode == 8
    assert (
        f"out of memory with 4 samples of {LEAST} points at once: 1 fit; --set train.accumulate=4 takes a batch of 4 "
        "in parts of 1, batch norm seeing one at a time (or --set train.batch_size=1); the last checkpoint is kept"
    ) in last_line(runs)
    switch.unlink()
    assert carried_out(things, runs, recipe)[0] == 0


def test_host_memory_that_runs_out_is_one_line(things: Path, whole: Path, tmp_path: Path) -> None:
    runs, switch = tmp_path / "runs", tmp_path / "memory"
    switch.touch()
    code, line = carried_out(things, runs, EVERY_STEP, before=Fault("little_memory", switch))
    assert code == 8
    assert f"out of memory with 1 samples of {LEAST} points at once" in line
    switch.unlink()
    assert carried_out(things, runs, EVERY_STEP)[0] == 0
    assert digest(runs) == digest(whole)


# --- rows 79 to 81 ----------------------------------------------------------------------------------------


def test_teacher_of_other_points_is_refused_before_there_is_a_run(things: Path, tmp_path: Path) -> None:
    other = slim(BIG, "other", width=0.5)
    other = type(other)(**{**vars(other), "encoder_neighbors": other.encoder_neighbors + 1})
    save_checkpoint(tmp_path / "t.safetensors", tiny_network(0, other))
    code, line = carried_out(things, tmp_path / "runs", brief(loss=["basic"]), teacher=tmp_path / "t.safetensors")
    assert code == 4
    assert "teacher and student sample different points" in line
    assert not (tmp_path / "runs" / NAME).exists()


def test_teacher_that_has_changed_is_refused_when_going_on(things: Path, tmp_path: Path) -> None:
    teacher, runs = tmp_path / "t.safetensors", tmp_path / "runs"
    save_checkpoint(teacher, tiny_network(6, BIG))
    run_experiment(experiment(things, runs, brief(loss=["basic"]), teacher=teacher), Quiet())
    unfinished(runs)
    save_checkpoint(teacher, tiny_network(7, BIG))
    with pytest.raises(UsageError, match=r"teacher sha256 \w{8}, now \w{8}; restore what it was"):
        gone_on(runs)
    gone_on(runs, allow=True)
    unfinished(runs)
    teacher.unlink()
    with pytest.raises(
        CheckpointError, match=r"t\.safetensors: the teacher of this run is gone; say where it is by --teacher"
    ):
        gone_on(runs)


def test_run_folder_that_was_moved_finds_its_teacher_where_it_was(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run_experiment(experiment(things, runs, brief(loss=["basic"], train={"epochs": 1})), Quiet())
    assert about(runs)["teacher"]["run"]  # it was trained first, in the same folder
    far = tmp_path / "far"
    shutil.copytree(runs / NAME, far / NAME, symlinks=True)
    unfinished(far)
    gone_on(far)
    assert about(far)["state"] == "finished"


def test_teacher_is_the_one_that_was_begun_with_though_a_newer_one_is_there(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    recipe = brief(loss=["basic"], train={"epochs": 1})
    run_experiment(experiment(things, runs, recipe), Quiet())
    unfinished(runs)
    alone = brief(variant="big", loss=["none"], train={"epochs": 1})
    run_experiment(replace(experiment(things, runs, alone), name="newer"), Quiet())
    gone_on(runs)
    assert about(runs)["teacher"]["run"].startswith("teacher-big-")


def test_checkpoints_that_cannot_be_removed_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path, lambda number: number % 4 == 0)
    for number in range(1, 8):
        kept.save(number, tiny_network(), {}, best=2 if number >= 2 else None)
    assert kept.numbers() == [7, 6, 4, 2]  # the newest two, each fourth, the best
    assert (tmp_path / "best.safetensors").readlink() == Path("step-00000002.safetensors")
    assert (tmp_path / "last.safetensors").readlink() == Path("step-00000007.safetensors")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EPERM, "x")

    monkeypatch.setattr(Path, "unlink", refuse)
    kept.save(9, tiny_network(), {}, best=2)
    assert kept.numbers() == [9, 7, 6, 4, 2]


def test_metrics_cut_off_in_a_line_are_mended(finished: Path, whole: Path) -> None:
    unfinished(finished)
    path = finished / NAME / "metrics.jsonl"
    checkpoints(finished)[0].unlink()  # the newest of those left is of the last epoch's second last batch
    path.write_bytes(path.read_bytes()[:-20])
    gone_on(finished)
    assert metrics(finished) == metrics(whole)
