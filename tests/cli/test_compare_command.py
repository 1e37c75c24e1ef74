# SPDX-License-Identifier: MIT
"""`bpfn compare`: what it reads and writes before, without and after training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import bpfn, refused, succeeded
from run_folders import evaluation, record

from bpfn_cli.cli.main import run
from bpfn_cli.errors import DiskError

STUDY = "variants: [weightnet4]\nlosses: [none, basic]\nseeds: [0]\ncontrols: [equal_time]\n"


def test_dry_run_without_data_lists_the_trainings_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    done = succeeded(bpfn("compare", "study.yaml", "--dry-run", "--json", cwd=tmp_path))
    assert [(one["name"], one["state"]) for one in json.loads(done.stdout)] == [
        ("weightnet4-scratch-seed0", "to do"),
        ("weightnet4-basic-seed0", "to do"),
        ("weightnet4-equal_time-seed0", "waiting"),
    ]
    assert "would be rendered first" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_dataset_of_the_recipe_is_read_if_none_is_given(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"{STUDY}recipe: {{data: {{path: data/elsewhere}}}}\n")
    refused(bpfn("compare", "study.yaml", "--dry-run", cwd=tmp_path), 3, "data/elsewhere")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A study with one finished training."""
    folder = tmp_path / "runs" / "study" / "a"
    (folder / "evaluations").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record(method="scratch", teacher=None, cell="a", epe3d=0.12)))
    (folder / "evaluations" / "a.json").write_text(json.dumps(evaluation(0.12)))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def test_tables_are_printed_where_they_cannot_be_written(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_tables(*_: object, **__: object) -> None:
        raise DiskError("compare.md: permission denied")

    monkeypatch.setattr("bpfn_cli.reporting.write_tables", write_tables)
    monkeypatch.chdir(trained)
    assert run(["compare", "study.yaml", "--table"]) == 0
    captured = capsys.readouterr()
    assert "0.1200" in captured.out
    assert "note: the tables are not written: compare.md: permission denied" in captured.err


@pytest.mark.parametrize("flag", ["--dry-run", "--retry"])
def test_tables_and_trainings_exclude_each_other(trained: Path, flag: str) -> None:
    refused(bpfn("compare", "study.yaml", "--table", flag, cwd=trained), 2, f"--table and {flag}: use only one of them")
    assert not list(trained.rglob("compare.*"))
