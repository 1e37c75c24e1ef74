# SPDX-License-Identifier: MIT
"""`bpfn train`, `runs` and `resume` as they are typed: alone, with several processes, under a launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import BPFN, bpfn, launched, refused
from scene_folders import contents
from tiny_world import write_things

from bpfn_cli.cli.training.train import TrainFlags

RECIPE = """
variant: weightnet4
loss: [none]
data: {holdout: 0.3, points: 1024}
train: {epochs: 2, batch_size: 2, validate_every: 1, checkpoint_minutes: 0}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_things(folder / "things", train=6, points=1100)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def typed(*more: object) -> list[str]:
    return ["train", "-c", "recipe.yaml", "--data", "things", "--device", "cpu", *map(str, more)]


def about(place: Path, runs: Path) -> dict[str, Any]:
    return json.loads((place / runs / "a" / "run.json").read_text())


def started(place: Path, *arguments: str, program: list[str] | None = None) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BPFN")}
    return subprocess.Popen(
        [*(program or [str(BPFN)]), *arguments],
        cwd=place,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(runs: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not list(runs.glob("a/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_checkpoint_is_the_recipes_initial_weights(place: Path) -> None:
    flags = TrainFlags(config=place / "recipe.yaml", checkpoint=Path("runs/a.safetensors"))
    assert flags.recipe(base={}).initial == "runs/a.safetensors"
    assert TrainFlags(config=place / "recipe.yaml", changes=["initial=b"]).recipe(base={}).initial == "b"


@pytest.mark.slow
def test_stopped_run_is_listed_and_resumed(place: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = started(place, *typed("--runs", runs, "--name", "a"))
    wait_for_checkpoint(runs, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.splitlines()[-1] == f"bpfn: stopped by SIGTERM; resume with: bpfn resume {runs}/a"
    listed = bpfn("runs", "--runs", runs, "--json", cwd=place)
    (one,) = json.loads(listed.stdout)
    assert (one["name"], one["state"], one["reason"], one["epochs"]) == ("a", "interrupted", "stopped by SIGTERM", 2)
    assert one["seconds_left"] > 0
    table = bpfn("runs", "--runs", runs, cwd=place)
    assert "interrupted" in table.stdout and f"next: bpfn resume {runs}/a" in table.stderr
    again = bpfn("resume", runs / "a", cwd=tmp_path)  # from anywhere
    assert again.returncode == 0, again.stderr
    assert re.search(r"^resuming at (the end of )?epoch [12] of 2", again.stderr, re.MULTILINE)
    log = [line.partition(" ")[2] for line in (runs / "a" / "train.log").read_text().splitlines()]
    assert "interrupted: stopped by SIGTERM" in log and log[-1] == "finished"
    before = contents(runs)
    finished = bpfn("resume", "a", "--runs", runs, cwd=tmp_path)
    assert finished.returncode == 0
    assert "already finished" in finished.stderr
    assert contents(runs) == before
    (one,) = json.loads(bpfn("runs", "--runs", runs, "--json", cwd=place).stdout)
    assert (one["state"], one["epochs_done"], one["seconds_left"]) == ("finished", 2, None)
    assert "no unfinished runs" in bpfn("runs", "--runs", runs, "--unfinished", cwd=place).stderr


@pytest.mark.slow
def test_killed_run_is_listed_as_killed(place: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = started(place, *typed("--runs", runs, "--name", "a", "--set", "train.epochs=60"))
    wait_for_checkpoint(runs, process)
    assert [one["state"] for one in json.loads(bpfn("runs", "--runs", runs, "--json", cwd=place).stdout)] == ["running"]
    refused(bpfn("resume", runs / "a", cwd=place), 6, f"process {process.pid} on ")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert [one["state"] for one in json.loads(bpfn("runs", "--runs", runs, "--json", cwd=place).stdout)] == ["killed"]


@pytest.mark.usefixtures("small_variants")
def test_train_with_resume_starts_continues_and_ends(place: Path, tmp_path: Path) -> None:
    """The same command in every job of a chain; the last one says that the run is finished."""
    arguments = typed("--variant", "tiny", "--runs", tmp_path / "runs", "--name", "a", "--resume")
    first = bpfn(*arguments, "--max-time", "0s", cwd=place)
    assert first.returncode == 0, first.stderr
    assert first.stderr.splitlines()[-1].startswith("bpfn: --max-time reached; resume with: bpfn resume ")
    assert about(place, tmp_path / "runs")["state"] == "interrupted"
    second = bpfn(*arguments, "--max-time", "10m", cwd=place)
    assert second.returncode == 0, second.stderr
    assert about(place, tmp_path / "runs")["state"] == "finished"
    third = bpfn(*arguments, cwd=place)
    assert (third.returncode, "already finished" in third.stderr) == (0, True)
    refused(
        bpfn(*arguments, "--seed", "1", cwd=place), 2, "is a different training: seed 0, now 1; choose another --name"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (typed("--devices", "2", "--device", "cuda:0"), 2, "--device cuda:0"),
        (typed("--devices", "2", "--nodes", "2"), 2, "set MASTER_ADDR and MASTER_PORT"),
        (typed("--resume"), 2, "--resume needs the --name of the run"),
    ],
)
def test_train_refuses_impossible_processes_and_names(place: Path, arguments: list[str], code: int, words: str) -> None:
    refused(bpfn(*arguments, cwd=place), code, words)
    assert not (place / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_two_processes_train_together(place: Path, tmp_path: Path, launcher: str) -> None:
    runs = tmp_path / "runs"
    arguments = typed("--runs", runs, "--name", "a", "--json")
    if launcher == "own":
        result = launched(*arguments, "--devices", "2", cwd=place)
        codes, out, said = [result.returncode], result.stdout, result.stderr
    else:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        process = started(place, *arguments, program=[*program, "-m", "bpfn_cli.cli"])
        out, said = process.communicate(timeout=240)
        codes = [process.returncode]
    assert codes == [0] * len(codes), said
    assert json.loads(out)["run"] == str(runs / "a")
    assert said.count("written: ") == 1  # one of them speaks
    assert about(place, runs)["versions"]["processes"] == 2
    lines = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


@pytest.mark.slow
def test_signal_to_all_processes_of_a_launcher_saves_once(place: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = typed("--runs", runs, "--name", "a", "--devices", "2", "--set", "train.epochs=30")
    process = started(place, *arguments)
    wait_for_checkpoint(runs, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert said.splitlines()[-1] == f"bpfn: stopped by SIGTERM; resume with: bpfn resume {runs}/a"
    assert "Traceback" not in said
    assert about(place, runs)["state"] == "interrupted"
    again = launched("resume", runs / "a", "--max-time", "8s", cwd=place)  # by two again, without being told
    assert again.returncode == 0, again.stderr
    assert re.search(r"^resuming at (the end of )?epoch \d+ of 30", again.stderr, re.MULTILINE)


@pytest.mark.slow
def test_processes_end_with_their_launcher(place: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = started(place, *typed("--runs", runs, "--name", "a", "--devices", "2", "--set", "train.epochs=60"))
    wait_for_checkpoint(runs, process)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while about(place, runs)["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert about(place, runs)["reason"] == "stopped by SIGTERM"


@pytest.mark.slow
def test_error_of_several_processes_is_one_line_with_its_code(place: Path, tmp_path: Path) -> None:
    result = launched(*typed("--runs", tmp_path / "runs", "--devices", "2", "--set", "train.lr=0"), cwd=place)
    refused(result, 2, "train.lr")
    assert result.stderr.count("bpfn: ") == 1
    bpfn(*typed("--runs", tmp_path / "runs", "--name", "a", "--max-time", "0s"), cwd=place)
    again = launched("resume", tmp_path / "runs/a", "--devices", "2", cwd=place)
    refused(again, 2, "processes 1, now 2; ")
    assert again.stderr.count("bpfn: ") == 1
