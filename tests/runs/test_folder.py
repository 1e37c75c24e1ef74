# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from records import record_with
from run_folders import evaluation
from tiny_world import LEAST, tiny_network

from bpfn_cli import files
from bpfn_cli.errors import CheckpointError, DiskError, NonFiniteError, UsageError
from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.models import read_checkpoint
from bpfn_cli.runs.folder import RunFolder, check_run_name
from bpfn_cli.runs.record import RunRecord


def create(runs: Path, name: str = "a", **entries: Any) -> RunFolder:
    return RunFolder.create(runs, name, config="seed: 0\n", command="bpfn train", record=record_with(**entries))


def evaluation_result(epe3d: float = 0.1, seed: int = 0) -> EvaluationResult:
    return EvaluationResult.model_validate_json(json.dumps(evaluation(epe3d, seed=seed)))


def on_disk(run: RunFolder) -> dict[str, Any]:
    return json.loads((run.path / "run.json").read_text())


# --- a new folder -----------------------------------------------------------------------------------


def test_create_writes_config_command_and_record(tmp_path: Path) -> None:
    run = create(tmp_path / "new" / "runs", "one", variant="tiny", seed=3)
    assert run.path == tmp_path / "new" / "runs" / "one"
    assert {path.name for path in run.path.iterdir()} == {
        "run.json",
        "config.yaml",
        "command.txt",
        "checkpoints",
        "evaluations",
    }
    assert (run.path / "config.yaml").read_text() == "seed: 0\n"
    assert (run.path / "command.txt").read_text() == "bpfn train\n"
    about = on_disk(run)
    assert {key: about[key] for key in ("format", "name", "state", "reason", "variant", "seed", "finished")} == {
        "format": 1,
        "name": "one",
        "state": "running",
        "reason": None,
        "variant": "tiny",
        "seed": 3,
        "finished": None,
    }
    assert about["started"] == "2025-03-01T10:00:00Z"
    assert run.record == record_with(name="one", variant="tiny", seed=3)


def test_create_appends_a_number_to_a_taken_name(tmp_path: Path) -> None:
    runs = [create(tmp_path, "one") for _ in range(3)]
    assert [run.path.name for run in runs] == ["one", "one-2", "one-3"]
    assert [on_disk(run)["name"] for run in runs] == ["one", "one-2", "one-3"]
    (tmp_path / "two").write_text("a file is in the way")
    assert create(tmp_path, "two").path.name == "two-2"


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/x", "a/", ".", "..", ".hidden", "latest", "-x", "--name", "a" * 201, "ü" * 101]
)
def test_bad_names_are_refused_and_nothing_is_created(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="give a plain folder name"):
        create(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


def test_empty_name_is_refused() -> None:
    with pytest.raises(UsageError, match="give a plain folder name"):
        check_run_name("")


def test_command_that_is_not_text_is_recorded_escaped(tmp_path: Path) -> None:
    """The name of a folder may be any bytes."""
    command = os.fsdecode(b"bpfn train --data a\xff")
    run = RunFolder.create(tmp_path, "a", config="", command=command, record=record_with())
    assert (run.path / "command.txt").read_text() == "bpfn train --data a\\udcff\n"


def test_name_that_is_not_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--name a\\udcff: give a plain folder name"):
        check_run_name(os.fsdecode(b"a\xff"))


@pytest.mark.parametrize("name", ["student-1", "a b", "ü", "a.b", "latest-2", "a" * 200])
def test_plain_names_are_accepted(tmp_path: Path, name: str) -> None:
    assert create(tmp_path, name).path == tmp_path / name


def test_refused_name_is_escaped() -> None:
    with pytest.raises(UsageError, match=r"--name \\x1b\[31m/x: "):
        check_run_name("\x1b[31m/x")


def test_runs_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(DiskError, match="runs: is a file; a folder is needed"):
        create(tmp_path / "runs")


def test_folder_that_cannot_be_created_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("runs").mkdir()

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "x")

    monkeypatch.setattr(files, "make_folder", lambda path: path)
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskError, match="runs/a: no space left"):
        create(tmp_path / "runs")


# --- links ------------------------------------------------------------------------------------------


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        create(tmp_path, name).link_latest()
        assert (tmp_path / "latest").readlink() == Path(name)  # relative, so that the folder of runs can be moved
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one", "two"]


def test_latest_that_dangles_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    create(tmp_path, "one").link_latest()
    assert (tmp_path / "latest").readlink() == Path("one")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_latest_that_is_not_a_link_is_left_alone(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "latest"
    mine.write_text("mine") if kind == "file" else mine.mkdir()
    create(tmp_path, "one").link_latest()
    assert not mine.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one"]


def test_file_system_without_links_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "x")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    create(tmp_path, "one").link_latest()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: RunRecord, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecord, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path, "one")
    assert list(tmp_path.iterdir()) == []


# --- how it ends ------------------------------------------------------------------------------------


def test_finished_work_is_recorded_with_a_summary(tmp_path: Path) -> None:
    run, result = create(tmp_path, variant="tiny"), evaluation_result()
    with run.working():
        assert on_disk(run)["state"] == "running"
        run.update(train_seconds=1.5)
        run.write_evaluation(result)
    about = on_disk(run)
    assert (about["state"], about["reason"], about["train_seconds"]) == ("finished", None, 1.5)
    assert about["finished"] >= about["started"]
    assert json.loads((run.path / "summary.json").read_text()) == {**about, "result": result.as_dict()}


def test_run_is_marked_finished_after_its_summary_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, written = create(tmp_path), []
    write_json, write = files.write_json, RunRecord.write

    def spy_on_json(path: Path, value: Any) -> None:
        written.append((path.name, value["state"]))
        write_json(path, value)

    def spy_on_record(self: RunRecord, folder: Path) -> None:
        written.append(("run.json", self.state))
        write(self, folder)

    monkeypatch.setattr(files, "write_json", spy_on_json)
    monkeypatch.setattr(RunRecord, "write", spy_on_record)
    with run.working():
        pass
    assert written == [("summary.json", "finished"), ("run.json", "finished")]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_interrupted_work_is_recorded_and_ends(tmp_path: Path, signal: type[BaseException]) -> None:
    run = create(tmp_path)
    with pytest.raises(signal), run.working():
        raise signal(143)
    assert (on_disk(run)["state"], on_disk(run)["reason"]) == ("interrupted", "stopped by a signal")
    assert on_disk(run)["finished"]
    assert not (run.path / "summary.json").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NonFiniteError("term hint is nan for\x1b a"), r"term hint is nan for\x1b a"),
        (MemoryError("17 GB"), "MemoryError: 17 GB"),
        (ValueError("two\nlines"), r"ValueError: two\nlines"),
    ],
)
def test_failed_work_is_recorded_with_its_reason(tmp_path: Path, error: Exception, reason: str) -> None:
    run = create(tmp_path)
    with pytest.raises(type(error)) as raised, run.working():
        raise error
    assert raised.value is error
    assert (on_disk(run)["state"], on_disk(run)["reason"]) == ("failed", reason)
    assert not (run.path / "summary.json").exists()


def test_full_disk_does_not_hide_the_error_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path)

    def full(self: RunRecord, folder: Path) -> None:
        raise DiskError(f"{folder}: no space left")

    with pytest.raises(NonFiniteError), run.working():
        monkeypatch.setattr(RunRecord, "write", full)
        raise NonFiniteError("nan")


def test_finished_run_that_cannot_be_recorded_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path)

    def full(self: RunRecord, folder: Path) -> None:
        raise DiskError(f"{folder}: no space left")

    with pytest.raises(DiskError), run.working():
        monkeypatch.setattr(RunRecord, "write", full)


# --- what it keeps ----------------------------------------------------------------------------------


def test_metrics_are_appended_a_line_each(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.log_metrics({"epoch": 1, "loss": 0.5})
    run.log_metrics({"epoch": 2, "loss": 0.25})
    assert (run.path / "metrics.jsonl").read_text() == '{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.25}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        run.log_metrics({"loss": float("nan")})
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_metrics_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    run = create(tmp_path)
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(DiskError, match=r"metrics\.jsonl: is a folder; a file is needed"):
        run.log_metrics({})


def test_trim_metrics_removes_damaged_lines_and_later_epochs(tmp_path: Path) -> None:
    run = create(tmp_path)
    path = run.path / "metrics.jsonl"
    run.trim_metrics(0)
    assert not path.exists()
    for epoch in (1, 2, 3):
        run.log_metrics({"epoch": epoch})
    whole = path.read_text()
    run.trim_metrics(3)
    assert path.read_text() == whole
    path.write_bytes(whole.encode()[:-4])  # the third is cut off, as by a kill
    run.trim_metrics(3)
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    path.write_bytes(b'{"epoch": 1}\n\x00\xff\n[1]\n{"epoch": "x"}\n{"epoch": 2}\n')
    run.trim_metrics(1)
    assert path.read_text() == '{"epoch": 1}\n'


def test_deploy_writes_only_the_network_of_a_checkpoint(tmp_path: Path) -> None:
    create(tmp_path, "one")
    run = create(tmp_path, "one")
    state = {"optimizer": {0: torch.ones(3)}, "epoch": 2}
    path = run.checkpoints.save(7, tiny_network(), state, run="one-2", epoch=2, validation_epe3d=0.5)
    assert path == run.path / "checkpoints" / "step-00000007.safetensors"
    deployed = run.deploy(7)
    assert deployed == run.path / "student.safetensors"
    read = read_checkpoint(deployed)
    assert read.metadata == {"run": "one-2", "epoch": 2, "validation_epe3d": 0.5}
    assert (read.variant.name, read.num_points, read.beside) == ("tiny", LEAST, {})
    assert all(torch.equal(read.state[name], tensor) for name, tensor in tiny_network().state_dict().items())
    path.unlink()
    with pytest.raises(CheckpointError, match=r"step-00000007\.safetensors: no such"):
        run.deploy(7)


def test_last_evaluation_is_the_result_of_the_run(tmp_path: Path) -> None:
    run = create(tmp_path)
    results = [evaluation_result(epe3d, seed) for seed, epe3d in enumerate((0.1, 0.2))]
    with run.working():
        for result in results:
            run.write_evaluation(result)
    for result in results:
        written = run.path / "evaluations" / result.file_name
        assert json.loads(written.read_text()) == result.as_dict()
    assert json.loads((run.path / "summary.json").read_text())["result"] == results[1].as_dict()
