# SPDX-License-Identifier: MIT
"""Faults during a training: each ends with its exit code and one line, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Fault
from run_processes import (
    finish_in_process,
    has_checkpoint,
    last_error_line,
    signal_group,
    start_process,
    start_with_fault,
    wait_until,
)
from small_runs import (
    NAME,
    checkpoints_of,
    digest,
    job_for,
    metrics_of,
    newest_number,
    record_of,
    small_recipe,
    train_run,
)
from tiny_world import BIG, LEAST, tiny_network

from bpfn_cli.data.loader import epoch_order
from bpfn_cli.files import TEMPORARY_PREFIX
from bpfn_cli.models import save_checkpoint, slim

EVERY_STEP = small_recipe()
WITH_WORKERS = small_recipe(data={"workers": 2})

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def whole(things: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of an uninterrupted training."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    train_run(things, runs, EVERY_STEP)
    return runs


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)],
    ids=str,
)
def test_signal_to_the_process_group_saves_and_stops(
    things: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    runs = tmp_path / "runs"
    process = start_process(things, runs, WITH_WORKERS)
    wait_until(has_checkpoint(runs, 2))
    signal_group(process, number)
    process.join(20)
    assert process.exitcode == code
    assert last_error_line(runs) == f"bpfn: stopped by {number.name}; resume with: bpfn resume {runs / NAME}"
    assert (record_of(runs)["state"], record_of(runs)["reason"]) == ("interrupted", f"stopped by {number.name}")
    assert finish_in_process(things, runs, WITH_WORKERS)[0] == 0
    assert digest(runs) == digest(whole)
    assert metrics_of(runs) == metrics_of(whole)


def test_second_signal_during_a_save_ends_at_once_and_loses_nothing(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, _ = start_with_fault(things, runs, EVERY_STEP, "slow_save", wait_for_fault=True)
    before = checkpoints_of(runs)
    signal_group(process, signal.SIGTERM)
    time.sleep(0.3)
    assert process.exitcode is None  # it waits for the disk
    began = time.monotonic()
    signal_group(process, signal.SIGTERM)
    process.join(20)
    assert (process.exitcode, time.monotonic() - began < 5) == (143, True)
    assert set(before) <= set(checkpoints_of(runs))
    assert any(path.name.startswith(TEMPORARY_PREFIX) for path in (runs / NAME / "checkpoints").iterdir())
    assert finish_in_process(things, runs, EVERY_STEP)[0] == 0
    assert digest(runs) == digest(whole)
    assert not any(path.name.startswith(TEMPORARY_PREFIX) for path in (runs / NAME / "checkpoints").iterdir())


def test_signal_stops_a_training_whose_workers_hang(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, switch = start_with_fault(things, runs, WITH_WORKERS, "hanging_workers", wait_for_fault=True)
    began = time.monotonic()
    signal_group(process, signal.SIGTERM)
    process.join(30)
    assert (process.exitcode, time.monotonic() - began < 10) == (143, True)
    switch.unlink()
    assert finish_in_process(things, runs, WITH_WORKERS)[0] == 0
    assert digest(runs) == digest(whole)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of `size` in the block. Skips the test without the right to mount one."""
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


def test_full_disk_loses_no_checkpoint(things: Path, whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "16m"):
        (disk / "runs").mkdir()
        runs = tmp_path / "runs"  # beside the file of stderr
        runs.symlink_to(disk / "runs")
        process = start_process(things, runs, EVERY_STEP)
        wait_until(has_checkpoint(runs, 2))
        with (disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while True:
                other.write(bytes(1 << 12))
        process.join(60)
        assert process.exitcode == 5
        assert "no space left on the disk" in last_error_line(runs)
        assert record_of(runs)["state"] in ("failed", "running")  # run.json may not fit either
        (disk / "other").unlink()
        assert finish_in_process(things, runs, EVERY_STEP)[0] == 0
        assert digest(runs) == digest(whole)


def test_failing_disk_loses_no_checkpoint(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, _ = start_with_fault(things, runs, EVERY_STEP, "broken_disk")
    before = checkpoints_of(runs)[0]
    process.join(60)
    assert process.exitcode == 5
    assert "Input/output error" in last_error_line(runs)
    assert before.exists()
    assert finish_in_process(things, runs, EVERY_STEP)[0] == 0
    assert "resuming at " in (runs / NAME / "train.log").read_text()  # not from the start
    assert digest(runs) == digest(whole)


def test_second_process_on_a_run_is_refused_and_names_the_first(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = start_process(things, runs, small_recipe(train={"epochs": 50}))
    wait_until(has_checkpoint(runs, 1))
    code, line = finish_in_process(things, runs, EVERY_STEP)
    assert code == 6
    assert f"{NAME}/.lock: in use by process {process.pid} on {os.uname().nodename}; wait for it to end" in line
    assert record_of(runs)["state"] == "running"
    process.kill()
    process.join()


def test_orphaned_workers_hold_no_lock(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, switch = start_with_fault(things, runs, WITH_WORKERS, "hanging_workers", wait_for_fault=True)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    switch.unlink()
    code, line = finish_in_process(things, runs, WITH_WORKERS)
    assert code == 0, line
    assert digest(runs) == digest(whole)


def test_first_epoch_ends_with_a_checkpoint(things: Path, tmp_path: Path) -> None:
    recipe = small_recipe(train={"checkpoint_minutes": 100, "validate_every": 3})
    process = start_process(things, tmp_path / "runs", recipe)
    wait_until(has_checkpoint(tmp_path / "runs", 3))
    process.kill()
    process.join()
    assert checkpoints_of(tmp_path / "runs")


def test_nan_loss_is_skipped_reported_and_finally_fatal(things: Path, whole: Path, tmp_path: Path) -> None:
    runs, switch = tmp_path / "runs", tmp_path / "nan"
    switch.touch()
    recipe = small_recipe(train={"most_skipped": 1})
    code, line = finish_in_process(things, runs, recipe, before=Fault("poisoned_loss", switch))
    assert code == 7
    assert "term supervised is nan for the samples 00000" in line
    assert "2 steps of epoch 2 were skipped (train.most_skipped)" in line
    log = (runs / NAME / "train.log").read_text()
    assert log.count("skipped step 3, epoch 1: term supervised is nan for the samples 00000") == 1
    assert (record_of(runs)["state"], record_of(runs)["failed_by"]) == ("failed", "NonFiniteError")
    assert not (runs / NAME / "student.safetensors").exists()
    switch.unlink()
    assert finish_in_process(things, runs, recipe)[0] == 0  # from the last checkpoint


def test_killed_worker_is_reported_as_a_lack_of_memory(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process, switch = start_with_fault(things, runs, WITH_WORKERS, "killed_workers")
    process.join(60)
    assert process.exitcode == 8
    assert "a loader process was killed, probably because memory ran out; lower data.workers" in last_error_line(runs)
    switch.unlink()
    assert finish_in_process(things, runs, WITH_WORKERS)[0] == 0
    assert digest(runs) == digest(whole)


def test_hanging_worker_is_given_up_and_its_samples_named(things: Path, whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    recipe = small_recipe(data={"workers": 1, "timeout": 2})
    process, switch = start_with_fault(things, runs, recipe, "hanging_workers")
    process.join(60)
    assert process.exitcode == 3
    assert "no data for 2" in last_error_line(runs)
    assert "a loader process hangs at one of the samples 00000" in last_error_line(runs)
    switch.unlink()
    assert finish_in_process(things, runs, recipe)[0] == 0
    assert digest(runs) == digest(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_scene_damaged_during_training_is_named_and_nothing_lost(
    things: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    data, runs = Path(shutil.copytree(things, tmp_path / "things")), tmp_path / "runs"
    recipe = small_recipe(data={"workers": workers}, train={"checkpoint_minutes": 100, "validate_every": 3})
    job = job_for(data, runs, recipe)
    learn = job.split.learn
    last = job.data.train.names[learn[epoch_order(len(learn), recipe.seed, 1)[-1]]]  # of the second epoch
    file = data / "train" / last / "pc1.npy"
    kept = file.read_bytes()
    process = start_process(data, runs, recipe)
    wait_until((runs / NAME / "metrics.jsonl").exists)
    file.write_bytes(kept[:200])
    process.join(60)
    assert process.exitcode == 3
    assert f"{last}/pc1.npy" in last_error_line(runs) and "200" in last_error_line(runs)
    assert newest_number(runs) > 3  # of the end of the first epoch
    file.write_bytes(kept)
    expected = tmp_path / "expected"
    assert finish_in_process(data, expected, recipe)[0] == 0
    assert finish_in_process(data, runs, recipe)[0] == 0
    assert digest(runs) == digest(expected)


def test_lack_of_gpu_memory_names_the_batch_that_fits_and_keeps_the_checkpoint(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    recipe = small_recipe(train={"batch_size": 4})
    process, switch = start_with_fault(things, runs, recipe, "gpu_memory")
    process.join(60)
    assert process.exitcode == 8
    assert (
        f"out of memory with 4 samples of {LEAST} points at once: 1 fit; --set train.accumulate=4 computes a batch of "
        "4 in parts of 1, with batch norm over each part (or --set train.batch_size=1); the last checkpoint is kept"
    ) in last_error_line(runs)
    switch.unlink()
    assert finish_in_process(things, runs, recipe)[0] == 0


def test_lack_of_host_memory_is_one_line(things: Path, whole: Path, tmp_path: Path) -> None:
    runs, switch = tmp_path / "runs", tmp_path / "memory"
    switch.touch()
    code, line = finish_in_process(things, runs, EVERY_STEP, before=Fault("little_memory", switch))
    assert code == 8
    assert f"out of memory with 1 samples of {LEAST} points at once" in line
    switch.unlink()
    assert finish_in_process(things, runs, EVERY_STEP)[0] == 0
    assert digest(runs) == digest(whole)


def test_teacher_that_samples_other_points_is_refused_with_exit_code_4(things: Path, tmp_path: Path) -> None:
    other = slim(BIG, "other", width=0.5)
    other = type(other)(**{**vars(other), "encoder_neighbors": other.encoder_neighbors + 1})
    save_checkpoint(tmp_path / "t.safetensors", tiny_network(0, other))
    code, line = finish_in_process(
        things, tmp_path / "runs", small_recipe(loss=["basic"]), teacher=tmp_path / "t.safetensors"
    )
    assert code == 4
    assert "teacher other and student tiny sample different points" in line
    assert not (tmp_path / "runs" / NAME).exists()
