# SPDX-License-Identifier: MIT
"""`bpfn report --html`, `--figures` and `--watch`, and `bpfn runs --watch`."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import BPFN
from rich.console import Console
from run_folders import evaluation

from bpfn_cli.cli.main import run
from bpfn_cli.reporting.statuses import watched
from bpfn_cli.runs.listing import RunStatus, traces_of
from bpfn_cli.viewing import libraries

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def log(folder: Path, epochs: int) -> None:
    lines = [{"epoch": epoch, "lr": 1e-3, "validation_epe3d": 0.5 / epoch} for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def wait_for(happens: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_page_and_figures_are_written_and_not_overwritten_unasked(
    runs: Path, tmp_path: Path, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log(make_run("one", evaluation()), 2)
    words = ["report", "--runs", str(runs), "--html", str(tmp_path / "page"), "--figures", str(tmp_path / "figures")]
    assert run(words) == 0
    assert f"to see it, open {tmp_path / 'page' / 'index.html'} in a browser" in capsys.readouterr().err
    stems = ["learning_weightnet48-bihint", "validation_weightnet48"]
    names = [path.name for path in sorted((tmp_path / "figures").iterdir())]
    assert names == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    assert run(words) == 5
    page = tmp_path / "page"
    expected = (
        f"bpfn: {page / 'index.html'}: exists (1 of 1 outputs do); choose another --html, or --force to overwrite files"
    )
    assert capsys.readouterr().err.splitlines() == [expected]


def test_mistakes_are_one_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str, code: int) -> str:
        assert run(["report", "--runs", str(runs), *words]) == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert told("--watch", code=2) == "bpfn: --watch: keeps a page up to date; add --html DIR"
    assert told("--watch", "--html", "page", "--json", code=2) == "bpfn: --watch and --json: use only one of them"
    assert told("--scenes", "2", code=2) == "bpfn: --scenes: has no effect without --html DIR"
    assert told("--bench", "b.json", code=2) == "bpfn: --bench: has no effect without --html DIR or --figures DIR"
    assert told("--html", str(runs), code=2).endswith("is also an input; choose another")
    assert "no such file" in told("--html", str(tmp_path / "p"), "--bench", str(tmp_path / "none.json"), code=3)
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "jinja2" else name)
    assert "need jinja2: pip install" in told("--html", str(tmp_path / "p"), code=2)
    assert not (tmp_path / "p").exists()


def test_traces_differ_after_every_change_of_a_run(runs: Path, make_run: Any) -> None:
    first = make_run("one", evaluation())
    seen = [traces_of(runs)]
    assert traces_of(runs) == seen[0]
    log(first, 1)
    seen.append(traces_of(runs))
    make_run("two")
    seen.append(traces_of(runs))
    (first / "evaluations" / "b.json").write_text("{}")
    seen.append(traces_of(runs))
    assert len(set(seen)) == 4
    assert traces_of(runs / "none") == frozenset()


def test_list_on_a_terminal_keeps_what_is_not_finished() -> None:
    statuses = [RunStatus(f"run{n}", "f", "running" if n == 0 else "finished", started=f"{n:03d}") for n in range(40)]
    screen = Console(file=io.StringIO(), width=80, height=12, force_terminal=True)
    lines = watched(Path("runs"), statuses, screen).plain.splitlines()
    assert len(lines) <= 12
    shown = [line.split()[0] for line in lines if line.startswith("run")]
    assert shown == ["run0", *(f"run{n}" for n in range(34, 40))]
    assert lines[-1] == "40 runs, 1 running, 33 not shown; Ctrl-C ends"


def test_watched_list_is_printed_once_off_a_terminal(
    runs: Path, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("one")
    assert run(["runs", "--runs", str(runs), "--watch"]) == 0
    assert capsys.readouterr().out.count("one") == 1
    assert run(["runs", "--runs", str(runs), "--watch", "--json"]) == 2


@pytest.mark.slow
def test_page_is_written_again_until_ctrl_c(runs: Path, tmp_path: Path, make_run: Any) -> None:
    log(make_run("one", evaluation()), 1)
    page = tmp_path / "page" / "index.html"
    words = [str(BPFN), "report", "--runs", str(runs), "--html", str(page.parent), "--watch"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        wait_for(page.is_file)
        assert 'http-equiv="refresh"' in page.read_text()
        make_run("second", evaluation(0.05), method="hint")
        wait_for(lambda: "second" in page.read_text())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not out
    assert "Traceback" not in err and f"written: {page}" in err
    assert 'http-equiv="refresh"' not in page.read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_watched_list_follows_a_training_until_ctrl_c(runs: Path, make_run: Any) -> None:
    import os
    import pty

    folder = make_run("one", state="interrupted", epochs_done=1)
    ours, theirs = pty.openpty()
    words = [str(BPFN), "runs", "--runs", str(runs), "--watch"]
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        text = ""
        while "1/8" not in text:
            text += os.read(ours, 4096).decode(errors="replace")
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "epochs_done": 5}))
        while "5/8" not in text:
            text += os.read(ours, 4096).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in text
    os.close(ours)


def test_without_runs_no_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    assert run(["report", "--runs", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures")]) == 3
    assert "nothing to draw" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
