# SPDX-License-Identifier: MIT
"""Machines as people have them: without file locks, without a working torch, without a home, optimized Python."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from command import bpfn, clean_environment, refused, succeeded
from tiny_world import write_things

from bpfn_cli.cli.main import app
from bpfn_cli.cli.options import given_path
from bpfn_cli.data import loader
from bpfn_cli.errors import DiskError
from bpfn_cli.parallel import map_in_processes

# Python runs it at its start: hides what Windows does not have.
WINDOWS = """
import os, signal, sys
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None
for name in ("register_at_fork", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "statvfs", "pread", "pwrite", "fork",
             "sched_getaffinity", "getuid", "geteuid"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCHLD", "SIGKILL", "SIGALRM"):
    delattr(signal, name)
"""


def python(
    *words: object, cwd: Path, path: Path | None = None, start: tuple[str, ...] = ("-m", "bpfn_cli.cli")
) -> subprocess.CompletedProcess[str]:
    """Run a command by `python -m`. path: searched for modules first."""
    places = [str(path)] * (path is not None) + [entry for entry in sys.path if entry]
    return subprocess.run(
        [sys.executable, *start, *map(str, words)],
        cwd=cwd,
        env=clean_environment({"PYTHONPATH": os.pathsep.join(places)}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("words", ["--version", "--help", "doctor --json", "train --help"])
def test_first_commands_work_without_what_windows_lacks(tmp_path: Path, words: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WINDOWS)
    (tmp_path / "site" / "torch.py").touch()  # the real one, built for this system, crashes without its functions
    result = python(*words.split(), cwd=tmp_path, path=tmp_path / "site")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    if "doctor" in words:
        assert json.loads(result.stdout)["locks"] == "none, so do not run two commands on one folder"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "torch.py").write_text("raise OSError('libtorch.so: cannot open')")
    return folder


def test_recipes_need_no_torch(tmp_path: Path, broken: Path) -> None:
    lines = (
        "config init",
        "config validate recipe.yaml",
        "config show -c recipe.yaml",
        "runs",
        "config validate b.yaml",
    )
    (tmp_path / "b.yaml").write_text("train: {lr: many, epoch: 3}\n")
    script = "from bpfn_cli.cli.main import run; import sys; print([run(line.split()) for line in sys.argv[1:]])"
    result = python(*lines, cwd=tmp_path, path=broken, start=("-c", script))
    assert result.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2]", result.stderr
    assert "train.lr" in result.stderr and "train.epochs" in result.stderr


@pytest.mark.parametrize("words", ["losses", "train", "predict a.npy b.npy", "profile"])
def test_broken_torch_is_one_line_that_points_to_doctor(tmp_path: Path, broken: Path, words: str) -> None:
    result = python(*words.split(), cwd=tmp_path, path=broken)
    refused(result, 1, "torch does not work here (OSError: libtorch.so: cannot open); `bpfn doctor` shows")
    assert not list(tmp_path.glob("*.log"))


SMALL = ("--variant", "weightnet4", "--epochs", 1, "--device", "cpu", "--set", "data.holdout=0")
SMALL += ("--set", "data.points=1024", "--set", "train.batch_size=2")


OPTIMIZED = ("-OO", "-m", "bpfn_cli.cli")  # without assertions and docstrings


def test_optimized_python_lists_the_losses(tmp_path: Path) -> None:
    result = python("losses", cwd=tmp_path, start=OPTIMIZED)
    assert result.returncode == 0, result.stderr
    assert "bihint" in result.stdout


@pytest.mark.slow
def test_optimized_python_trains(tmp_path: Path) -> None:
    write_things(tmp_path / "things", train=2, points=1100)
    result = python("train", *SMALL, "--data", "things", "--name", "a", cwd=tmp_path, start=OPTIMIZED)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "runs" / "a" / "run.json").read_text())["state"] == "finished"


NOBODY = 54321  # a user without a passwd entry, who may read everything: Python itself may be in a folder of root
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
AS_NOBODY += [f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")]


def can_be_nobody() -> bool:
    command = [*AS_NOBODY, sys.executable, "-c", "import math"]
    return shutil.which("setpriv") is not None and subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_user_without_home_and_passwd_entry_reads_a_read_only_dataset(tmp_path: Path, trains: bool) -> None:
    if not can_be_nobody():
        pytest.skip("needs root and setpriv")
    things = write_things(tmp_path / "things", train=2, points=1100)
    for path in (things, *things.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    environment = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [*AS_NOBODY, sys.executable, "-m", "bpfn_cli.cli", *map(str, words)]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)

    training = [["train", "--data", things, *SMALL], ["report"]]
    for words in training if trains else [["doctor"], ["data", "check", things]]:
        assert run(*words).returncode == 0, (words, run(*words).stderr)
    refused(run("synth", "--out", "~/x"), 2, "~/x: this user has no home folder; write the whole path")
    refused(run("subset", "--source", things, "--out", things.parent / "out"), 5, "no permission")


def test_every_path_of_the_command_line_is_expanded() -> None:
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    parsers = [
        (command.callback.__name__, parameter.name, get_args(parameter.annotation)[1].parser)
        for group in groups
        for command in group.registered_commands
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values()
        if get_args(parameter.annotation)[:1] in ((Path,), (Path | None,))
    ]
    assert len(parsers) > 40
    assert not [one for one in parsers if one[2] is not given_path]


@pytest.mark.parametrize("home", ["~", "$HOME", "${HOME}"])
def test_home_is_expanded_in_options_recipes_and_the_environment(tmp_path: Path, home: str) -> None:
    write_things(tmp_path / "data" / "things", train=2)
    place = tmp_path / "place"
    place.mkdir()
    (place / "recipe.yaml").write_text(f"data: {{path: '{home}/data/things'}}\ntrain: {{teacher_cache: '{home}/c'}}\n")
    shown = succeeded(
        bpfn("config", "show", "-c", f"{home}/place/recipe.yaml", "--json", cwd=place, HOME=str(tmp_path))
    )
    recipe = json.loads(shown.stdout)
    assert (recipe["data"]["path"], recipe["train"]["teacher_cache"]) == (f"{tmp_path}/data/things", f"{tmp_path}/c")
    checked = bpfn("data", "check", f"{home}/data/things", "--json", cwd=place, HOME=str(tmp_path))
    assert json.loads(succeeded(checked).stdout)["root"] == f"{tmp_path}/data/things"
    found = bpfn("doctor", "--json", cwd=place, HOME=str(tmp_path), BPFN_DATA=f"{home}/data")
    assert json.loads(succeeded(found).stdout)["data"] == "things"
    assert sorted(path.name for path in place.iterdir()) == ["recipe.yaml"]


def test_deleted_folder_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && {sys.executable} -m bpfn_cli.cli profile"
    environment = clean_environment({"PYTHONPATH": os.pathsep.join(filter(os.path.isabs, sys.path))})
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, check=False)
    refused(result, 5, "the current folder was deleted; change to another one")


def test_shared_memory_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(
            "unable to open shared memory object </torch_1> in read-write mode: Read-only file system (30)"
        )

    loader.check_shared_memory()
    monkeypatch.setattr(loader.torch.Tensor, "share_memory_", refuse)
    with pytest.raises(DiskError, match=r"loader processes need shared memory, .*Read-only.*; .* data\.workers=0"):
        loader.check_shared_memory()
    monkeypatch.setattr("bpfn_cli.parallel.ProcessPoolExecutor", _raise_read_only)
    with pytest.raises(DiskError, match=r"worker processes need shared memory, .*; .*--processes 1"):
        list(map_in_processes(abs, [1, 2], 2))


def _raise_read_only(*_: object) -> None:
    raise OSError(30, "Read-only file system")
