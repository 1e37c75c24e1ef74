# SPDX-License-Identifier: MIT
"""`bpfn search`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import bpfn, refused, succeeded
from tiny_world import BIG, guess_sensitivities, tiny_network, write_things

from bpfn_cli.models import load_checkpoint, save_checkpoint
from bpfn_cli.models.pruning import search
from bpfn_cli.models.pruning.prune import Pruner

QUICK = ("--budgets", 2, "--tries", 1, "--keep", 1, "--recover", 0, "--importance", "l1", "--points", 1024)
WORDS = ("search", "--teacher", "teacher.safetensors", "--data", "things", "--scenes", 4, *QUICK)


@pytest.fixture
def place(tmp_path: Path, small_variants: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_things(tmp_path / "things", train=6)
    save_checkpoint(tmp_path / "teacher.safetensors", tiny_network(1, BIG))
    monkeypatch.setattr(Pruner, "measure", guess_sensitivities)
    monkeypatch.setattr(search, "NAMED", ("tiny",))
    return tmp_path


def test_search_writes_checkpoints_and_is_repeated_at_once(place: Path) -> None:
    done = succeeded(bpfn(*WORDS, "--out", "found", "--json", cwd=place))
    said = json.loads(done.stdout)
    (named,) = [one for one in said["networks"] if one["is_named"]]
    files = [one["file"] for one in said["networks"] if one["file"]]
    assert named["name"] == "tiny"
    assert all(load_checkpoint(place / "found" / file) for file in files)
    line = f"bpfn distill --checkpoint found/{files[0]} --teacher teacher.safetensors"
    assert line in done.stderr

    again = succeeded(bpfn(*WORDS, "--out", "found", "--plot", cwd=place))
    assert "networks without training" not in again.stderr
    assert "tiny: " in again.stdout
    assert all((place / "found" / f"search.{kind}").is_file() for kind in ("png", "svg"))
    refused(bpfn(*WORDS, "--out", "found", "--seed", 1, cwd=place), 2, "found: holds another search: seed 1, here 0")


def test_mistakes_are_one_line_and_leave_nothing(place: Path) -> None:
    (place / "file").touch()
    for more, code, expected in (
        (("--budgets", 1), 2, "--budgets"),
        (("--tries", 0), 2, "--tries"),
        (("--keep", "many"), 2, "--keep"),
        (("--data", "nowhere"), 3, "nowhere"),
        (("--teacher", "things"), 4, "things"),
        (("--out", "file"), 5, "file"),
    ):
        refused(bpfn(*WORDS, "--out", "none", *more, cwd=place), code, expected)
    assert not (place / "none").exists()


def test_interrupted_search_says_how_to_resume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "make", interrupt)
        stopped = bpfn(*WORDS, "--out", "found", cwd=place)
    assert stopped.returncode == 130
    assert "stopped: repeat the command to resume" in stopped.stderr
    assert "resuming: " in succeeded(bpfn(*WORDS, "--out", "found", cwd=place)).stderr
