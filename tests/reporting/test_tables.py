# SPDX-License-Identifier: MIT
from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import pytest
from command import bpfn, succeeded
from run_folders import evaluation

from bpfn_cli.reporting import Column, Row, Table
from bpfn_cli.reporting.accuracy import ACCURACY

COLUMN = """
from bpfn_cli.reporting import Column

COLUMN = Column(
    key="epoch_seconds",
    heading="Epoch",
    value=lambda row: row.record.train_seconds / row.record.epochs_done,
    digits=".2f",
    unit="s",
)
"""


@pytest.fixture
def temporary_column(tmp_path, monkeypatch):
    """A column in a module of its own, registered by one line."""
    (tmp_path / "own_column.py").write_text(COLUMN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("bpfn_cli.reporting.accuracy.ACCURACY", [*ACCURACY])
    from bpfn_cli.reporting import accuracy

    accuracy.ACCURACY.append(importlib.import_module("own_column").COLUMN)


@pytest.mark.usefixtures("temporary_column")
def test_new_column_is_in_every_format(tmp_path, make_run):
    make_run("a", evaluation(0.1), train_seconds=81.0)
    make_run("b", evaluation(0.2), train_seconds=90.0)
    shown = succeeded(bpfn("report", "--out", "results", cwd=tmp_path)).stdout
    report = json.loads(succeeded(bpfn("report", "--json", cwd=tmp_path)).stdout)
    assert "10.12" in shown
    assert "Epoch [s]" in Path(tmp_path / "results/report.md").read_text()
    assert "10.12" in Path(tmp_path / "results/report.md").read_text()
    assert [row["epoch_seconds"] for row in report["tables"][0]["rows"]] == [None, None, 10.125, 11.25]
    with Path(tmp_path / "results/accuracy.csv").open() as stream:
        assert [row["epoch_seconds"] for row in csv.DictReader(stream)] == ["", "", "10.125", "11.25"]


@pytest.mark.parametrize(("better", "best"), [("lowest", {0, 3}), ("highest", {1}), (None, set())])
def test_best_rows_are_the_ranked_ones_with_the_best_value(better, best):
    column = Column("x", "X", lambda row: row, better=better)
    rows = (
        Row((1,), ranked=True),
        Row((2,), ranked=True),
        Row((0,)),
        Row((1,), ranked=True),
        Row((None,), ranked=True),
    )
    table = Table("kind", "title", (column,), rows)
    assert table.best_rows(column) == best
    assert table.marks == ["best" if number in best else "" for number in range(5)]
