# SPDX-License-Identifier: MIT
"""The page in a real browser: no error, nothing fetched, names are text, and tables can be sorted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from page_runs import (
    HOSTILE,
    epochs,
    write_difficult_runs,
    write_evaluated_run,
    write_many_runs,
    write_run,
    write_study,
)
from run_folders import evaluation

from bpfn_cli.cli.main import run
from bpfn_cli.reporting import build_report, read_runs
from bpfn_cli.reporting.html import PageWriter, contents

pytestmark = pytest.mark.slow  # starts a browser
MOST_BYTES = 5_000_000


@pytest.fixture
def page(tmp_path: Path) -> Path:
    results = read_runs(write_difficult_runs(tmp_path / "runs"))
    PageWriter(tmp_path / "page").write(results, build_report(results, published=True))
    return tmp_path / "page" / "index.html"


def texts(opened: Any, column: int) -> list[str]:
    """Of the accuracy table."""
    return opened.eval_on_selector(
        "#accuracy table", f"table => [...table.tBodies[0].rows].map((row) => row.cells[{column}].textContent)"
    )


def test_hostile_names_are_shown_and_not_run(browser: Browser, page: Path) -> None:
    opened = browser.open(page)
    assert opened.title().startswith("Training runs in")
    name = HOSTILE.replace("/", "∕")
    assert opened.locator("#settings td", has_text=name).count() == 1
    assert opened.locator("#accuracy td", has_text="<script>alert(1)</script>").count() == 1
    assert opened.locator("b, i, script").count() == 1  # the page's own script


def test_tables_are_sorted_by_a_click_on_a_heading(browser: Browser, page: Path) -> None:
    opened = browser.open(page)
    heading = opened.locator("#accuracy th button", has_text="EPE3D").first
    column = heading.evaluate("button => button.parentElement.cellIndex")
    before = texts(opened, column)
    heading.click()
    ascending = texts(opened, column)
    assert ascending == sorted(before, key=float) != before
    heading.click()
    assert texts(opened, column) == ascending[::-1]
    opened.locator("#accuracy th button", has_text="Method").first.click()
    methods = texts(opened, 1)
    assert methods.index("ail") < methods.index("bihint") < methods.index("hint")


def test_every_picture_is_drawn_and_folds_open(browser: Browser, page: Path) -> None:
    opened = browser.open(page)
    assert opened.locator("img").count() > 8
    loaded = opened.eval_on_selector_all("img", "all => all.every((one) => one.complete && one.naturalWidth > 200)")
    assert loaded
    fold = opened.locator("#learning details").first
    assert not fold.locator("img").is_visible()
    fold.locator("summary").click()
    assert fold.locator("img").is_visible()


def test_page_fits_the_window_in_light_and_dark(browser: Browser, page: Path) -> None:
    for scheme in ("light", "dark"):
        opened = browser.open(page, width=900)
        opened.emulate_media(color_scheme=scheme)
        assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def report(runs: Path, page: Path, **options: Any) -> Path:
    results = read_runs(runs)
    writer = PageWriter(page, **options)
    writer.write(results, build_report(results))
    return writer.index


def test_sections_of_a_study_and_of_classes_are_shown(browser: Browser, tmp_path: Path) -> None:
    opened = browser.open(report(write_study(tmp_path / "runs"), tmp_path / "page", scenes=0))
    study, classes = opened.locator("#study"), opened.locator("#classes")
    assert study.locator("h2").inner_text() == "Differences between methods"
    assert study.locator("tbody tr", has_text="basic").count() >= 1
    assert classes.locator("h2").inner_text() == "Errors by class of points"
    classes.locator("summary").first.click()
    assert classes.locator("table").first.is_visible()
    for section in (study, classes):
        assert section.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 200")


def test_page_without_runs_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    opened = browser.open(report(tmp_path / "runs", tmp_path / "page"))
    assert opened.get_by_text("No runs in").is_visible()
    assert opened.locator("section, table, img").count() == 0


def test_scene_opens_by_its_link(browser: Browser, tmp_path: Path) -> None:
    write_evaluated_run(tmp_path)
    opened = browser.open(report(tmp_path / "runs", tmp_path / "page", scenes=1))
    links = opened.locator("#scenes a")
    assert links.all_inner_texts() == ["0000040", "0000000"]
    links.first.click()
    opened.wait_for_function("window.viewer !== undefined")
    assert opened.locator("h1").inner_text() == "0000040"
    assert opened.locator(".label b").all_inner_texts() == ["weightnet48, bihint", "true flow"]


def test_page_of_a_watched_folder_reloads_itself(browser: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "first", evaluation(), lines=epochs(1))
    pages = PageWriter(tmp_path / "page", scenes=0)
    results = read_runs(tmp_path / "runs")
    pages.write(results, build_report(results), 1)
    opened = browser.open(pages.index)
    write_run(tmp_path / "runs" / "second", evaluation(), lines=epochs(1), method="hint")
    results = read_runs(tmp_path / "runs")
    pages.write(results, build_report(results), 1)
    opened.wait_for_selector("text=second", state="attached", timeout=20_000)


@pytest.mark.parametrize("count", [50, 200])
def test_page_of_many_runs_has_a_row_for_each(
    browser: Browser, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 50 runs, the page is that of a study on KITTI, and small; with 200, runs are short and few curves drawn."""
    if count == 50:
        write_many_runs(tmp_path / "runs", count)
    else:
        monkeypatch.setattr(contents, "MOST_NETWORKS", 2)
        write_many_runs(tmp_path / "runs", count, scenes=8, lines=5)
    assert run(["report", "--runs", str(tmp_path / "runs"), "--html", str(tmp_path / "page")]) == 0
    path = tmp_path / "page" / "index.html"
    assert path.stat().st_size < MOST_BYTES or count > 50
    opened = browser.open(path)
    for key, text in (("accuracy", "method"), ("settings", "run"), ("commands", "run")):
        assert opened.locator(f"#{key} table").first.locator("tbody tr", has_text=text).count() == count
