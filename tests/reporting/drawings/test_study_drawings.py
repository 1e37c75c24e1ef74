# SPDX-License-Identifier: MIT
"""The figures of a study: which curves and differences they show, and what happens without matplotlib."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import evaluation, record

from bpfn_cli.cli.main import run
from bpfn_cli.reporting import read_runs
from bpfn_cli.reporting.drawings import study_drawings
from bpfn_cli.runs.results import validation_curve
from bpfn_cli.viewing import libraries

VALIDATED = {2: 0.5, 4: 0.3, 6: 0.2}  # epoch -> EPE3D, metres


def write(folder: Path, method: str, seed: int, curve: dict[int, float], epe3d: float = 0.12, **changes: Any) -> None:
    name = f"{changes.get('variant', 'tiny')}-{method}-seed{seed}"
    (folder / name / "evaluations").mkdir(parents=True)
    content = record(method=method, seed=seed, **{"variant": "tiny", **changes}) | {"cell": name, "control": None}
    (folder / name / "run.json").write_text(json.dumps(content))
    (folder / name / "evaluations" / "a.json").write_text(json.dumps(evaluation(epe3d)))
    lines = [{"epoch": epoch, "lr": 1e-3, "validation_epe3d": curve.get(epoch)} for epoch in range(1, 9)]
    lines = [{key: value for key, value in line.items() if value is not None} for line in lines]
    (folder / name / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "study"
    for seed in range(3):
        write(folder, "scratch", seed, {epoch: epe3d + 0.1 * seed for epoch, epe3d in VALIDATED.items()})
        write(folder, "basic-0.1", seed, VALIDATED if seed else {2: 0.5, 6: 0.2}, 0.10 + 0.01 * seed)
        write(folder, "scratch", seed, VALIDATED, variant="other")
        write(folder, "scratch", seed, {}, variant="never-validated")
    return folder


def test_validation_curve_leaves_out_damaged_lines(tmp_path: Path) -> None:
    text = '{"epoch": 1}\n{"epoch": 2, "validation_epe3d": 0.5}\nnot json\n{"epoch": 3, "validation_epe3d": "x"}\n[]\n'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b'\xff\n{"epoch": 4, "validation_epe3d": 0.25}\n{"epo')
    assert validation_curve(tmp_path) == {2: 0.5, 4: 0.25}
    assert validation_curve(tmp_path / "gone") == {}


def test_curves_show_the_mean_over_seeds_and_the_band_between_them(study: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = {one.stem: one for one in study_drawings(read_runs(study))}
    assert list(drawn) == ["compare_other", "compare_tiny", "compare_differences_tiny"]
    (axes,) = drawn["compare_tiny"].draw().axes
    assert axes.get_title(loc="left").startswith("tiny, 3 seeds")
    scratch, basic = axes.get_lines()
    assert (scratch.get_label(), basic.get_label()) == ("scratch", "basic-0.1")
    assert list(scratch.get_xdata()) == [2, 4, 6]
    assert scratch.get_ydata() == pytest.approx([0.6, 0.4, 0.3])
    assert list(basic.get_xdata()) == [2, 6]  # validated with all seeds
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((0.2, 0.7))


def test_differences_are_those_of_the_table(study: Path) -> None:
    pytest.importorskip("matplotlib")
    (one,) = [one for one in study_drawings(read_runs(study)) if one.stem == "compare_differences_tiny"]
    (axes,) = one.draw().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["basic-0.1 (3)"]
    assert axes.get_lines()[-1].get_xdata() == pytest.approx([-0.01])  # 0.11 - 0.12


def test_compare_plots_the_finished_trainings(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    words = ["compare", "study.yaml", "--table", "--runs", str(study.parent)]
    assert run(words) == 0
    assert not list(study.glob("*.png"))
    assert run([*words, "--plot"]) == 0
    said = capsys.readouterr().err
    for name in ("compare_tiny.png", "compare_tiny.svg", "compare_differences_tiny.svg"):
        assert f"written: {study / name}" in said
        assert (study / name).is_file()


def test_missing_matplotlib_is_reported_before_anything_is_trained(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    assert run(["compare", "no-such-study.yaml", "--plot", "--runs", str(study.parent)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert 'need matplotlib: pip install -c constraints.txt -e ".[viz]"' in told
