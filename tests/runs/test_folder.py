# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import LEAST, tiny_network

from bpfn_cli.errors import CheckpointError, DiskError, NonFiniteError, UsageError
from bpfn_cli.files import sha256_of
from bpfn_cli.models import read_checkpoint
from bpfn_cli.runs import folder as run_folder
from bpfn_cli.runs.folder import RunFolder, check_run_name, file_identity, find_runs, find_teacher, latest_checkpoint


def create(runs: Path, name: str = "a", **about: Any) -> RunFolder:
    return RunFolder.create(runs, name, config="seed: 0\n", command="bpfn train", about=about)


def on_disk(run: RunFolder) -> dict[str, Any]:
    return json.loads((run.path / "run.json").read_text())


def past_run(runs: Path, name: str, *, weights: bool = True, **about: Any) -> Path:
    """A folder as a run leaves it; returns its deployed weights."""
    folder = runs / name
    folder.mkdir(parents=True)
    started = about.pop("started", "2025-03-01T10:00:00+00:00")
    record = {"format": 1, "state": "finished", "role": "student", "teacher_key": None, "started": started, **about}
    (folder / "run.json").write_text(json.dumps(record))
    if weights:
        (folder / "student.safetensors").write_bytes(b"weights")
    return folder / "student.safetensors"


# --- a new folder -----------------------------------------------------------------------------------


def test_create_writes_what_is_known_before_the_work(tmp_path: Path) -> None:
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
    assert about["started"].endswith("+00:00")
    assert about["versions"].keys() >= {"bpfn", "python", "torch", "numpy", "threads"}


def test_create_puts_a_number_behind_a_taken_name(tmp_path: Path) -> None:
    runs = [create(tmp_path, "one") for _ in range(3)]
    assert [run.path.name for run in runs] == ["one", "one-2", "one-3"]
    assert [on_disk(run)["name"] for run in runs] == ["one", "one-2", "one-3"]
    (tmp_path / "two").write_text("a file is in the way")
    assert create(tmp_path, "two").path.name == "two-2"


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/x", "a/", ".", "..", ".hidden", "latest", "-x", "--name", "a" * 201, "ü" * 101]
)
def test_bad_names_are_refused_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="give a plain folder name"):
        create(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


def test_empty_name_is_refused() -> None:
    with pytest.raises(UsageError, match="give a plain folder name"):
        check_run_name("")


def test_command_that_is_no_text_is_recorded_escaped(tmp_path: Path) -> None:
    """A folder may have any bytes for a name."""
    command = os.fsdecode(b"bpfn train --data a\xff")
    run = RunFolder.create(tmp_path, "a", config="", command=command, about={})
    assert (run.path / "command.txt").read_text() == "bpfn train --data a\\udcff\n"


def test_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--name a\\udcff: give a plain folder name"):
        check_run_name(os.fsdecode(b"a\xff"))


@pytest.mark.parametrize("name", ["student-1", "a b", "ü", "a.b", "latest-2", "a" * 200])
def test_plain_names_are_taken(tmp_path: Path, name: str) -> None:
    assert create(tmp_path, name).path == tmp_path / name


def test_refused_name_is_escaped() -> None:
    with pytest.raises(UsageError, match=r"--name \\x1b\[31m/x: "):
        check_run_name("\x1b[31m/x")


def test_runs_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(DiskError, match="runs: is a file; a folder is needed"):
        create(tmp_path / "runs")


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("runs").mkdir()

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "x")

    monkeypatch.setattr(run_folder, "make_folder", lambda path: path)
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskError, match="runs/a: no space left"):
        create(tmp_path / "runs")


# --- links ------------------------------------------------------------------------------------------


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        create(tmp_path, name).point_latest()
        assert (tmp_path / "latest").readlink() == Path(name)  # relative: the folder of runs may be moved
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one", "two"]


def test_latest_that_dangles_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    create(tmp_path, "one").point_latest()
    assert (tmp_path / "latest").readlink() == Path("one")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_latest_that_is_somebodys_own_is_left_alone(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "latest"
    mine.write_text("mine") if kind == "file" else mine.mkdir()
    create(tmp_path, "one").point_latest()
    assert not mine.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one"]


def test_file_system_without_links_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "x")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    create(tmp_path, "one").point_latest()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path, "one")
    assert list(tmp_path.iterdir()) == []


# --- how it ends ------------------------------------------------------------------------------------


def test_finished_work_is_recorded_with_a_summary(tmp_path: Path) -> None:
    run = create(tmp_path, variant="tiny")
    with run.working():
        assert on_disk(run)["state"] == "running"
        run.record(train_seconds=1.5)
        run.write_evaluation("e.json", {"rows": [1]})
    about = on_disk(run)
    assert (about["state"], about["reason"], about["train_seconds"]) == ("finished", None, 1.5)
    assert about["finished"] >= about["started"]
    assert json.loads((run.path / "summary.json").read_text()) == {**about, "result": {"rows": [1]}}


def test_finished_is_said_after_the_summary_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, written = create(tmp_path), []
    write_json = run_folder.write_json

    def spy(path: Path, value: Any) -> None:
        written.append((path.name, value["state"]))
        write_json(path, value)

    monkeypatch.setattr(run_folder, "write_json", spy)
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


def test_full_disk_at_the_end_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path)

    def full(path: Path, value: object) -> None:
        raise DiskError(f"{path}: no space left")

    with pytest.raises(NonFiniteError), run.working():
        monkeypatch.setattr(run_folder, "write_json", full)
        raise NonFiniteError("nan")


def test_finished_run_that_cannot_be_recorded_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write_json = create(tmp_path), run_folder.write_json

    def full_once(path: Path, value: object) -> None:
        if path.name == "run.json":
            raise DiskError(f"{path}: no space left")
        write_json(path, value)

    with pytest.raises(DiskError), run.working():
        monkeypatch.setattr(run_folder, "write_json", full_once)


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


def test_damaged_lines_and_those_of_epochs_to_come_are_trimmed(tmp_path: Path) -> None:
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


def test_deployed_is_the_network_of_a_checkpoint_alone(tmp_path: Path) -> None:
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


def test_the_last_evaluation_is_the_result_of_the_run(tmp_path: Path) -> None:
    run = create(tmp_path)
    with run.working():
        assert run.write_evaluation("one.json", {"rows": [1]}) == run.path / "evaluations" / "one.json"
        run.write_evaluation("two.json", {"rows": [2]})
    assert json.loads((run.path / "evaluations" / "one.json").read_text()) == {"rows": [1]}
    assert json.loads((run.path / "evaluations" / "two.json").read_text()) == {"rows": [2]}
    assert json.loads((run.path / "summary.json").read_text())["result"] == {"rows": [2]}


def test_identity_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert file_identity(path) == {"path": str(path), "sha256": sha256_of(path)}
    assert file_identity(path)["sha256"].startswith("ba7816bf8f01cfea")


# --- finding runs -----------------------------------------------------------------------------------


def test_runs_are_found_oldest_first_and_links_are_not_followed(tmp_path: Path) -> None:
    for name, day in (("b", 2), ("a", 3), ("c", 1)):
        past_run(tmp_path, name, started=f"2025-03-0{day}T10:00:00+00:00")
    (tmp_path / "latest").symlink_to("c")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "notes").mkdir()
    assert [folder.name for folder, _ in find_runs(tmp_path)] == ["c", "b", "a"]
    assert find_runs(tmp_path / "none") == []
    assert find_runs(tmp_path / "a" / "run.json") == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 2}', b'{"state": "finished"}']
)
def test_damaged_run_json_is_skipped(tmp_path: Path, content: bytes) -> None:
    past_run(tmp_path, "damaged", teacher_key="k", started="2025-04-01T00:00:00+00:00")
    good = past_run(tmp_path, "good", teacher_key="k")
    (tmp_path / "damaged" / "run.json").write_bytes(content)
    assert [folder.name for folder, _ in find_runs(tmp_path)] == ["good"]
    assert find_teacher(tmp_path, "k") == latest_checkpoint(tmp_path) == good


def test_run_json_that_is_a_folder_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    assert find_runs(tmp_path) == []


def test_teacher_is_the_newest_finished_one_with_the_key(tmp_path: Path) -> None:
    assert find_teacher(tmp_path / "none", "k") is None
    past_run(tmp_path, "z-old", teacher_key="k", started="2025-03-01T10:00:00+00:00")
    new = past_run(tmp_path, "a-new", teacher_key="k", role="teacher", started="2025-03-02T10:00:00+00:00")
    past_run(tmp_path, "stopped", teacher_key="k", state="interrupted", started="2025-03-03T10:00:00+00:00")
    past_run(tmp_path, "failed", teacher_key="k", state="failed", started="2025-03-03T11:00:00+00:00")
    past_run(tmp_path, "running", teacher_key="k", state="running", started="2025-03-03T12:00:00+00:00")
    past_run(tmp_path, "emptied", teacher_key="k", weights=False, started="2025-03-03T13:00:00+00:00")
    past_run(tmp_path, "other", teacher_key="other", started="2025-03-03T14:00:00+00:00")
    past_run(tmp_path, "keyless", started="2025-03-03T15:00:00+00:00")
    assert find_teacher(tmp_path, "k") == new
    assert find_teacher(tmp_path, "unknown") is None


def test_latest_checkpoint_is_the_newest_student_before_any_teacher(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    teacher = past_run(tmp_path, "t1", role="teacher", started="2025-03-01T10:00:00+00:00")
    assert latest_checkpoint(tmp_path) == teacher
    newer = past_run(tmp_path, "t0", role="teacher", started="2025-03-09T10:00:00+00:00")
    assert latest_checkpoint(tmp_path) == newer
    student = past_run(tmp_path, "s1", started="2025-03-02T10:00:00+00:00")
    assert latest_checkpoint(tmp_path) == student
    newest = past_run(tmp_path, "s0", started="2025-03-03T10:00:00+00:00")
    past_run(tmp_path, "s2", state="interrupted", started="2025-03-04T10:00:00+00:00")
    past_run(tmp_path, "s3", weights=False, started="2025-03-05T10:00:00+00:00")
    assert latest_checkpoint(tmp_path) == newest


def test_newest_is_by_what_was_recorded_not_by_file_times(tmp_path: Path) -> None:
    new = past_run(tmp_path, "new", teacher_key="k", started="2025-03-02T10:00:00+00:00")
    past_run(tmp_path, "old", teacher_key="k", started="2025-03-01T10:00:00+00:00")
    os.utime(new.parent / "run.json", (time.time() - 10**6,) * 2)
    os.utime(new, (time.time() - 10**6,) * 2)
    assert find_teacher(tmp_path, "k") == latest_checkpoint(tmp_path) == new
