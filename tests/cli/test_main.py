# SPDX-License-Identifier: MIT
"""Errors are one line with an exit code, and streams that nobody reads change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command import bpfn, launched, refused, succeeded
from run_folders import record
from tiny_world import tiny_network, write_things

from bpfn_cli.cli import main
from bpfn_cli.cli.help import doctor
from bpfn_cli.cli.results import predict
from bpfn_cli.models import save_checkpoint


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nonsense"], 2, ["nonsense"]),
        (["profile", "--variant", "weightnet84"], 2, ["weightnet48"]),
        (["profile", "--variant", "half", "--all"], 2, ["--all"]),
        (["profile", "--points", "100", "--variant", "half"], 2, ["1024"]),
        (["profile", "--checkpoint", "none.pth"], 4, ["none.pth"]),
        (["profile", "--checkpoint", "."], 4, ["folder"]),
        (["bench", "--points", "100"], 2, ["--points 100", "1024"]),
        (["slim", "--c-mid", "4,4"], 2, ["--c-mid 4,4"]),
        (["slim", "--c-mid", "four"], 2, ["whole numbers"]),
        (["slim", "--width", "0"], 2, ["--width"]),
        (["slim", "--neighbors", "8,16"], 2, ["--neighbors 8,16: write PART=K"]),
        (["slim", "--neighbors", "decoder=8"], 2, ["neighbors decoder: unknown; use encoder, embedding"]),
        (["slim", "--neighbors", "encoder=0"], 2, ["neighbors encoder 0: use 1 to 64"]),
        (["slim", "--separable-encoder", "0"], 2, ["separable: levels [0] of the encoder"]),
        (["slim", "--out", "x.onnx"], 2, ["--out x.onnx: use the suffix .safetensors, or .pth"]),
        (["distill", "--loss", "bihnt"], 2, ["bihnt", "bihint"]),
        (["distill", "--set", "train.epoch=3"], 2, ["train.epochs"]),
        (["distill", "--set", "train"], 2, ["key=value"]),
        (["distill", "--device", "cuda:99"], 2, ["cuda:99"]),
        (["distill", "-c", "missing.yaml"], 2, ["missing.yaml"]),
        (["train", "--data", "nowhere"], 3, ["nowhere"]),
        (["train", "--resume"], 2, ["--resume needs the --name"]),
        (["train", "--dry-run", "--name", "../x"], 2, ["--name ../x: give a plain folder name"]),
        (["train", "--name", "evaluations"], 2, ["--name evaluations"]),
        (["train", "--points", "100"], 2, ["--points", "1024"]),
        (["distill", "--set", "lr=1"], 2, ["unknown key lr, did you mean train.lr?"]),
        (["train", "--loss", "hint"], 2, ["--loss"]),
        (["train", "--set", "loss=[hint]"], 2, ["loss hint needs a teacher: use `bpfn distill`"]),
        (["train", "--select-on", "train"], 2, ["--select-on"]),
        (["train", "--precision", "8"], 2, ["'--precision': '8' is not one of '32', 'bf16', '16'; see"]),
        (["train", "--devices", "0"], 2, ["--devices"]),
        (["resume", "nowhere"], 2, ["nowhere"]),
        (["resume", "a", "--max-time", "soon"], 2, ["--max-time soon: write 90m, 36h"]),
        (["predict", "a.npy", "b.npy", "--out", "a.txt"], 2, [".npy"]),
        (["predict", "a.npy", "b.npy"], 3, ["a.npy"]),
        (["predict", ""], 2, ["'PC1': the path is empty; write . for the current folder"]),
        (["eval", "--out", " "], 2, ["'--out': the path is empty"]),
        (["predict", "a.npy", "b.npy", "--seed"], 2, ["Option '--seed' needs a value; see `bpfn predict --help`"]),
        (["eval", "--points", "1e3"], 2, ["'--points': use a whole number; see `bpfn eval --help`"]),
        (["eval", "--points", "0"], 2, ["'--points': use a number greater than or equal to 1"]),
        (["predict", "a.obj", "b.obj"], 3, [".ply"]),
        (["prepare", "kitti", "--source", "nowhere"], 3, ["nowhere"]),
        (["subset", "--source", "nowhere"], 3, ["nowhere"]),
        (["subset", "--fraction", "0"], 2, ["fraction"]),
        (["report", "--runs", "nowhere"], 3, ["nowhere"]),
        (["synth", "--height", "3"], 2, ["height"]),
        (["synth", "--style", "rooms", "--live"], 2, ["--live does not apply to --style rooms"]),
        (["synth", "--style", "driving", "--raw"], 2, ["--raw does not apply to --style driving"]),
        (["synth", "--style", "driving", "--hidden", "vanish"], 2, ["use it with --live"]),
        (["config", "validate", "nowhere.yaml"], 2, ["nowhere.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_get_one_line_and_leave_nothing(
    words: list[str], code: int, said: list[str], tmp_path: Path
) -> None:
    refused(bpfn(*words, cwd=tmp_path), code, *said)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.parts]
    assert not left


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc: this environment variable must be a number"),
        ({"SLURM_NTASKS": "x", "SLURM_STEP_ID": "0"}, "SLURM_NTASKS=x: this environment variable must be a number"),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "srun --ntasks-per-node=1 torchrun"),
    ],
)
def test_environment_that_makes_no_sense_is_one_line(environment: dict[str, str], words: str, tmp_path: Path) -> None:
    refused(bpfn("train", cwd=tmp_path, **environment), 2, words)
    assert not list(tmp_path.iterdir())


def test_doctor_lists_versions_as_json(tmp_path: Path) -> None:
    found = json.loads(succeeded(bpfn("doctor", "--json", cwd=tmp_path)).stdout)
    assert found["torch"][0].isdigit()
    assert "cpu" in found["devices"]


def test_doctor_and_help_work_with_a_broken_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open')")
    path = f"{tmp_path}:{':'.join(entry for entry in sys.path if entry)}"
    shown = launched("doctor", cwd=tmp_path, PYTHONPATH=path)
    assert shown.returncode == 0, shown.stderr
    assert "does not import: OSError: libtorch.so: cannot open" in shown.stdout
    assert launched("train", "--help", cwd=tmp_path, PYTHONPATH=path).returncode == 0


def test_poor_terminal_is_no_error(tmp_path: Path) -> None:
    for environment in ({"PYTHONIOENCODING": "ascii", "TERMINAL_WIDTH": "x"}, {"COLUMNS": "0", "TERM": "dumb"}):
        result = launched("--help", cwd=tmp_path, **environment)
        assert result.returncode == 0, result.stderr
    assert bpfn("report", cwd=tmp_path, COLUMNS="0", TERM="dumb").returncode == 0


HEAVY = pytest.mark.slow


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help | true", 0),
        ("--help >&- 2>&-", 0),
        ("--help >/dev/full", 5),
        ("nosuch 2>/dev/full", 2),
        ("nosuch 2>&-", 2),
        ("nosuch 2>&1 | true", 2),
        pytest.param("config show | head -n 1", 0, marks=HEAVY),
        pytest.param("losses | true", 0, marks=HEAVY),  # a table of rich
        pytest.param("losses --json >/dev/full", 5, marks=HEAVY),
    ],
)
def test_closed_streams_and_full_disks_do_not_change_the_exit_code(tmp_path: Path, line: str, code: int) -> None:
    command = f"{sys.executable} -m bpfn_cli.cli {line}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_terminal_escapes_in_paths_never_reach_the_terminal(tmp_path: Path) -> None:
    folder = write_things(tmp_path / "a\x1b]0;x\x07[bold]", train=2)
    pair = [folder / "val" / "0000000" / f"{cloud}.npy" for cloud in ("pc1", "pc2")]
    np.savez(folder / "pair.npz", pc1=np.load(pair[0]), pc2=np.load(pair[1]), flow=np.load(pair[1]))
    for words in (
        ["data", "check", folder],
        ["data", "show", folder / "val" / "0000000"],
        ["subset", "--source", folder, "--out", tmp_path / "b\x1b[1m", "--dry-run"],
        ["subset", "--source", folder, "--out", tmp_path / "b\x1b[1m", "--fraction", "0.5"],
        ["predict", folder / "pair.npz", "--out", folder / "flow.npy", "--points", "1024"],
        ["doctor"],
    ):
        result = succeeded(bpfn(*words, cwd=tmp_path, BPFN_DATA=str(folder)))
        assert not {"\x1b", "\x07"} & {*result.stdout, *result.stderr}, words
        assert "\\x1b" in result.stdout + result.stderr, words


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes, and weights that belong to no run."""
    folder = tmp_path_factory.mktemp("weights")
    write_things(folder / "things", train=1, val=1)
    save_checkpoint(folder / "mine.safetensors", tiny_network())
    return folder


def test_evaluation_of_any_weights_is_saved_and_reported(weights: Path) -> None:
    words = ["eval", "--checkpoint", "mine.safetensors", "--data", "things", "--device", "cpu"]
    said = succeeded(bpfn(*words, cwd=weights)).stderr
    (result,) = (weights / "runs" / "evaluations").iterdir()
    assert f"written: runs/evaluations/{result.name}" in said and said.splitlines()[-1] == "next: bpfn report"
    table = succeeded(bpfn("report", cwd=weights, COLUMNS="200")).stdout
    assert "given weights" in table and "mine.safetensors" in table
    written = succeeded(bpfn(*words, "--out", "a.json", cwd=weights)).stderr.splitlines()[-1]
    assert written.startswith("written: a.json") and len(list((weights / "runs").rglob("*.json"))) == 1
    elsewhere = succeeded(bpfn(*words, "--runs", "other runs", cwd=weights)).stderr.splitlines()[-1]
    assert elsewhere == "next: bpfn report --runs 'other runs'"


def test_run_folder_is_accepted_in_place_of_its_weights(weights: Path) -> None:
    run = weights / "trained"
    run.mkdir()
    (run / "student.safetensors").write_bytes((weights / "mine.safetensors").read_bytes())
    shown = succeeded(bpfn("profile", "--checkpoint", run, "--points", "1024", cwd=weights))
    assert shown.stderr.splitlines()[-1] == f"next: bpfn eval --checkpoint {run}/student.safetensors"


def test_report_replaces_pages_only_with_force(weights: Path) -> None:
    succeeded(bpfn("report", "--out", "pages", cwd=weights))
    before = (weights / "pages" / "report.md").stat().st_mtime_ns
    refused(bpfn("report", "--out", "pages", cwd=weights), 5, "report.md: exists", "--force")
    assert (weights / "pages" / "report.md").stat().st_mtime_ns == before
    succeeded(bpfn("report", "--out", "pages", "--force", cwd=weights))


def test_doctor_counts_a_run_once(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.json").write_text("{}")
    (tmp_path / "runs" / "latest").symlink_to("a")
    assert json.loads(succeeded(bpfn("doctor", "--json", cwd=tmp_path)).stdout)["runs"] == 1


def test_recipe_in_place_of_a_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("variant: half\nloss: [hint]\n")
    refused(bpfn("compare", "recipe.yaml", cwd=tmp_path), 2, "recipe.yaml: this is a recipe, not a study")
    (tmp_path / "study.yaml").write_text("variants: [half]\nlosse: [hint]\n")
    refused(bpfn("compare", "study.yaml", cwd=tmp_path), 2, "losse, did you mean losses?")


def test_refused_subset_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_things(tmp_path / "things", train=2)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 1, 0, 0, 1, 1, 1, 0, 255)))
    refused(bpfn("subset", "--source", folder, "--out", "a/b", "--link", "copy", cwd=tmp_path), 5, "are free")
    assert [path.name for path in tmp_path.iterdir()] == ["things"]


def test_more_processes_than_cores_are_noted(tmp_path: Path) -> None:
    folder = write_things(tmp_path / "things", train=1)
    said = succeeded(bpfn("data", "check", folder, "--processes", 1000, cwd=tmp_path)).stderr
    assert "note: 1000 processes, but this process may use only " in said


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(main, "app", lambda *_, **__: torch.empty(2**50))
    refused(bpfn("train", cwd=tmp_path), 8, "out of memory")


def test_internal_error_writes_its_traceback_to_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(main, "app", broken)
    refused(bpfn("profile", cwd=tmp_path), 1, "internal error (RuntimeError)")
    (log,) = tmp_path.glob("bpfn-error-*.log")
    assert "a bug" in log.read_text() and "Traceback" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_error_log_never_follows_a_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder that others may write to, such as the temporary one, a name could be taken in advance."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    names = iter(["taken", "free"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    (tmp_path / "bpfn-error-taken.log").symlink_to(victim)
    monkeypatch.setattr(main, "app", lambda *_, **__: 1 / 0)
    refused(bpfn("profile", cwd=tmp_path), 1, "bpfn-error-free.log")
    assert victim.read_text() == "mine" and "ZeroDivisionError" in (tmp_path / "bpfn-error-free.log").read_text()


def test_doctor_lists_extras_and_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=1", 'h5py>=3.10; extra == "logs"', 'no-such-thing[a]>=2; extra == "io"', "ruff; extra == 'dev'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: lines)
    assert doctor._extras() == "logs; missing: io (no-such-thing)"


def test_next_command_keeps_arguments_behind_two_dashes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bpfn", "predict", "--", "-a.ply", "b.ply"])
    predict._finish(SimpleNamespace(pose=None, force=False), Path("flow.npy"))  # type: ignore[arg-type]
    assert "next: bpfn predict --pose estimate --force -- -a.ply b.ply" in capsys.readouterr().err


def test_evaluation_that_cannot_be_saved_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_network())
    (tmp_path / "runs").touch()
    monkeypatch.setattr("bpfn_cli.metrics.evaluation.evaluate_checkpoint", None)
    words = [
        "eval",
        "--checkpoint",
        str(tmp_path / "tiny.safetensors"),
        "--data",
        str(write_things(tmp_path / "d", val=1)),
    ]
    assert main.run([*words, "--runs", str(tmp_path / "runs")]) == 5
    assert "runs" in capsys.readouterr().err


def test_run_of_several_cpu_processes_is_resumed_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Processes:
        def __init__(self, *words: object):
            asked.extend(words)
            raise KeyboardInterrupt

    content = record(state="interrupted", versions={"processes": 2}, paths={"data": "d", "device": "cpu"})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(json.dumps(content))
    monkeypatch.setattr("bpfn_cli.cli.training.runs.Processes", Processes)
    main.run(["resume", str(tmp_path / "a")])
    assert asked == ["cpu", 2, 1]
