# SPDX-License-Identifier: MIT
"""What the page says, read as HTML; tests/reporting/html/test_page_in_browser.py opens it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_runs import SCENES, epochs, write_difficult_runs, write_evaluated_run, write_run
from run_folders import evaluation
from tiny_world import LEAST, tiny_network

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.models import save_checkpoint
from bpfn_cli.reporting import build_report, read_runs
from bpfn_cli.reporting.html import PageWriter
from bpfn_cli.reporting.html import writer as writing
from bpfn_cli.reporting.html.page import Cell, DrawnTable, Pictures, _small
from bpfn_cli.reporting.html.settings import settings_tables, versions_table
from bpfn_cli.reporting.tables import Column, Row, Table

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def write(runs: Path, page: Path, refresh: float | None = None, **options: Any) -> str:
    results = read_runs(runs)
    PageWriter(page, **options).write(results, build_report(results), refresh)
    return (page / "index.html").read_text()


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="([a-z-]+)">', html)


def section(html: str, key: str) -> str:
    start = html.index(f'<section id="{key}">')
    return html[start : html.index("</section>", start)]


def rows(html: str) -> list[list[str]]:
    """The cells of all rows of the tables."""
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)]


@pytest.fixture(scope="module")
def difficult(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("difficult")
    return write(write_difficult_runs(folder / "runs"), folder / "page")


def test_page_without_any_run_says_what_to_do(tmp_path: Path) -> None:
    html = write(tmp_path / "runs", tmp_path)
    assert "No runs in" in html and "bpfn distill" in html
    assert sections(html) == []


def test_every_kind_of_run_is_on_the_page(difficult: str) -> None:
    html = difficult
    expected = ["accuracy", "waiting", "cost", "scenes", "learning", "settings", "commands", "left-out"]
    assert sections(html) == expected
    assert "9 runs" not in html and "8 runs: 6 finished, 2 interrupted; 6 with test results." in html
    left_out = html[html.index('<section id="left-out">') :]
    assert "damaged/run.json: damaged" in left_out
    assert "not drawn: loss_supervised" in html


def test_validation_of_nan_is_left_out_of_curves_and_tables(difficult: str) -> None:
    waiting = section(difficult, "waiting")
    (row,) = [row for row in rows(waiting) if "nan-validation" in row]
    assert row[1:5] == ["aht", "incomplete (interrupted)", "epoch 3: 0.1667", "3"]
    learning = section(difficult, "learning")
    assert "nan-validation. NaN or infinite, so not drawn: validation_epe3d." in learning
    assert "nan. NaN or infinite, so not drawn: loss_supervised, validation_epe3d." in learning
    assert not re.search(r'class="number[^>]*>nan<', difficult)


def test_names_are_escaped(difficult: str) -> None:
    html = difficult
    assert html.count("<script>") == 1  # that of the page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<b>8</b>" not in html and "&lt;b&gt;8&lt;/b&gt;" in html
    assert "<i>x</i>" not in html and "<img src=x>" not in html


def test_page_allows_only_its_own_script_and_style(tmp_path: Path) -> None:
    html = write(tmp_path / "runs", tmp_path)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in policy


def test_only_a_watched_page_reloads_itself(tmp_path: Path) -> None:
    assert 'http-equiv="refresh"' not in write(tmp_path / "runs", tmp_path)
    assert '<meta http-equiv="refresh" content="5">' in write(tmp_path / "runs", tmp_path, 5.0)


def test_cells_are_sorted_by_all_digits_and_the_best_is_marked() -> None:
    columns = [Column("name", "Name", lambda row: row[0]), Column("e", "E", lambda row: row[1], ".2f", "m", "lowest")]
    rows = [Row(("a", 0.123), "", True), Row(("b" * 70, 0.1), "", True), Row(("c", None))]
    table = DrawnTable.of(Table("kind", "title", columns, rows))
    assert [head.text for head in table.heads] == ["Name", "E\u00a0[m]"]
    assert [row.cells[1] for row in table.rows] == [
        Cell("0.12", True, False, 0.123),
        Cell("0.10", True, True, 0.1),
        Cell("–", True, False, None),
    ]
    assert [row.mark for row in table.rows] == ["", "best", ""]
    assert [row.cells[0].look for row in table.rows] == ["short", "long", "short"]


def test_settings_are_split_into_those_that_differ_and_those_that_do_not(runs: Path) -> None:
    for seed, rate in enumerate((1e-3, 5e-4)):
        write_run(
            runs / f"run{seed}",
            seed=seed,
            recipe={"seed": seed, "train": {"lr": rate, "epochs": 8}, "loss": ["a", "b"]},
        )
    differing, shared = settings_tables(read_runs(runs).runs)
    assert [column.key for column in differing.columns] == ["run", "seed", "train.lr"]
    assert [row.cells for row in differing.rows] == [("run0", "0", "0.001"), ("run1", "1", "0.0005")]
    assert ("loss", "a, b") in [row.cells for row in shared.rows]


def test_single_run_has_one_table_of_settings(runs: Path) -> None:
    write_run(runs / "run")
    (table,) = settings_tables(read_runs(runs).runs)
    assert table.title == "Settings" and ("method", "bihint") in [row.cells for row in table.rows]
    assert tuple(value for value in versions_table(read_runs(runs).runs).rows[0].cells if value) == ("run", "2.13.0")


def test_figures_that_have_not_changed_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "bpfn_cli.reporting.html.page.figure_bytes", lambda figure, kind: drawn.append(kind) or b"<svg/>"
    )
    runs = tmp_path / "runs"
    for name in ("a", "b"):
        write_run(runs / name, lines=epochs(2), method=name)
    pages = PageWriter(tmp_path / "page")
    for expected in (3, 0, 2):  # that of both networks and one each; then nothing; then two
        results = read_runs(runs)
        pages.write(results, build_report(results))
        assert len(drawn) == expected
        assert len(pages._pictures.drawn) == 3  # those of the page alone
        drawn.clear()
        if not expected:
            (runs / "a" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in epochs(3)))


def test_many_networks_have_a_note_on_those_that_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pictures, "of", lambda self, drawing: None)
    monkeypatch.setattr(writing, "html_of", lambda page, refresh: "\n".join(page.sections[-3].texts))
    for number in range(26):
        write_run(tmp_path / "runs" / f"run{number}", method=f"m{number}", lines=epochs(1))
    html = write(tmp_path / "runs", tmp_path / "page")
    assert html.startswith("Loss terms of the newest 24 of 26 networks; for others")


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    write_evaluated_run(tmp_path)
    return tmp_path


def test_worst_and_best_scenes_have_pages_as_they_were_evaluated(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("bpfn_cli.viewing.page.write_scene_page", lambda scene, path: shown.append((scene, path)))
    html = write(evaluated / "runs", evaluated / "page", scenes=2)
    links = re.findall(r'<a href="(scenes/[^"]+)">([^<]+)</a></td><td>(\w+)</td>', html)
    assert [link[1:] for link in links] == [(name, "worst") for name in ("0000040", "0000030")] + [
        (name, "best") for name in ("0000010", "0000000")
    ]
    assert [path for _, path in shown] == [evaluated / "page" / link[0] for link in links]
    scene = shown[0][0]
    assert scene.name == "0000040" and len(scene.pc1) == LEAST and scene.truth is not None
    assert np.isfinite(scene.flows["weightnet48, bihint"]).all()


def test_pages_of_scenes_are_among_the_files_that_are_checked(evaluated: Path) -> None:
    files = PageWriter(evaluated / "page", scenes=1).files(read_runs(evaluated / "runs"))
    assert files == [
        "index.html",
        "scenes/run_flyingthings3d_0000040.html",
        "scenes/run_flyingthings3d_0000000.html",
    ]
    assert PageWriter(evaluated / "page", scenes=0).files(read_runs(evaluated / "runs")) == ["index.html"]


def test_pages_of_two_tables_or_of_long_names_are_different_files(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "runs" / ("long" * 50), evaluation(scenes=SCENES), evaluation(scenes=SCENES, points=2048)
    )
    files = PageWriter(tmp_path / "page", scenes=2).files(read_runs(run.parent))
    assert len(set(files)) == len(files) == 9
    assert max(len(Path(name).name) for name in files) < 255


@pytest.mark.parametrize("change", ["weights gone", "data gone", "other weights", "other data", "other name"])
def test_scenes_without_their_weights_or_data_are_only_named(evaluated: Path, change: str) -> None:
    weights, data = evaluated / "runs" / "run" / "student.safetensors", evaluated / "things"
    if change == "weights gone":
        weights.unlink()
    elif change == "data gone":
        data.rename(evaluated / "elsewhere")
    elif change == "other weights":
        save_checkpoint(weights, tiny_network(1))
    elif change == "other name":
        (path,) = (evaluated / "runs" / "run" / "evaluations").iterdir()
        path.write_text(path.read_text().replace('"0000040"', '"0000040x"'))
    else:
        np.save(data / "val" / "0000000" / "pc1.npy", np.ones((LEAST, 3), np.float32))
    html = write(evaluated / "runs", evaluated / "page")
    assert "No pages of these scenes:" in html and "<td class=" in html
    assert "0000040" in html and 'href="scenes/' not in html
    assert not (evaluated / "page" / "scenes").exists()


def test_scene_without_truth_has_a_page(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("bpfn_cli.viewing.page.write_scene_page", lambda scene, path: shown.append(scene))
    unlabeled = open_dataset(evaluated / "things", "test").without_labels()
    monkeypatch.setattr("bpfn_cli.data.datasets.open_dataset", lambda *given: unlabeled)
    write(evaluated / "runs", evaluated / "page", scenes=1)
    assert [scene.truth for scene in shown] == [None, None]


def test_scenes_are_those_of_the_best_finished_student(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "good", evaluation(0.1, scenes=SCENES))
    write_run(runs / "teacher", evaluation(0.05, scenes=SCENES), role="teacher", method="scratch")
    write_run(runs / "stopped", evaluation(0.01, scenes=SCENES), state="interrupted")
    last = {"which": "last", "sha256": "f" * 64}  # better than what the run deploys, but its weights may be gone
    write_run(runs / "other", evaluation(0.2, scenes=SCENES), evaluation(0.01, scenes=SCENES, checkpoint=last))
    html = write(runs, tmp_path / "page")
    assert "weightnet48, bihint (good)" in html and "data/synthetic is not here" not in html.split("scenes")[0]
    assert replace(Cell("a"), is_number=True).look == "number"


def test_coordinates_of_pictures_are_shortened_and_numbers_in_their_text_are_not() -> None:
    svg = b'<metadata>x</metadata><path d="M 1.23456 2.5"/><text x="3.14159">-0.00125</text>'
    assert _small(svg) == b'<path d="M 1.23 2.5"/><text x="3.14">-0.00125</text>'
