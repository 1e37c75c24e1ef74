# SPDX-License-Identifier: MIT
"""The format of docs/extending.md, added as one file and one registry entry, is known to every command."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_world import LEAST, tiny_network

from bpfn_cli.cli.main import run
from bpfn_cli.data.datasets import FORMATS, find_dataset, open_dataset
from bpfn_cli.models import save_checkpoint

PAGE = Path(__file__).parents[3] / "docs" / "extending.md"
FORMAT, DATA = re.findall(r"```python\n(.*?)```", PAGE.read_text().partition("## A dataset format")[2], re.DOTALL)[:2]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A dataset of the new format in the working folder, and the format in the registry."""
    (tmp_path / "throw_away_format.py").write_text(FORMAT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FORMATS, "archive", importlib.import_module("throw_away_format").Archive())
    exec(DATA, {})
    yield tmp_path / "archive"
    del sys.modules["throw_away_format"]


def test_new_format_is_checked_and_shown(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "archive", "--processes", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "archive"
    assert [(split["split"], split["scenes"]) for split in found["splits"]] == [("train", 3), ("test", 1)]
    assert run(["data", "show", "archive/test-0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points1"] == 2000


def test_new_format_is_identified_by_its_files(archive: Path) -> None:
    identity = find_dataset(archive).identity
    assert (identity.kind, identity.train_scenes, identity.val_scenes) == ("archive", 3, 1)
    assert open_dataset(archive, "train").identity() != open_dataset(archive, "test").identity()


def test_new_format_is_named_where_nothing_is_found(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (archive.parent / "nothing").mkdir()
    assert run(["data", "check", "nothing"]) == 3
    assert "train-NAME.npz and test-NAME.npz (Archive)" in capsys.readouterr().err


@pytest.mark.usefixtures("small_variants")
def test_new_format_is_planned_and_is_a_valid_data_kind(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--data", "archive", "--variant", "tiny", "--dry-run"]
    assert run([*train, "--set", "data.kind=archive"]) == 0
    assert "archive, 3 training scenes" in "".join(capsys.readouterr())
    assert run([*train, "--set", "data.kind=kitti"]) == 2
    assert "data.kind kitti" in capsys.readouterr().err
    assert run([*train, "--set", "data.kind=pears"]) == 2
    assert re.search("data.kind: .*unknown dataset format; use one of auto, .*archive", capsys.readouterr().err)


@pytest.mark.usefixtures("small_variants")
def test_new_format_is_evaluated(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(archive.parent / "student.safetensors", tiny_network())
    words = ["eval", "--checkpoint", "student.safetensors", "--data", "archive", "--points", str(LEAST), "--json"]
    assert run(words) == 0
    dataset = json.loads(capsys.readouterr().out)["dataset"]
    assert (dataset["kind"], dataset["split"], dataset["scenes"]) == ("archive", "test", 1)
