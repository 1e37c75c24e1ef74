# SPDX-License-Identifier: MIT
"""Which figures a report has, and what they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import evaluation, metrics

from bpfn_cli.errors import DataError
from bpfn_cli.reporting import read_runs
from bpfn_cli.reporting.drawings import Drawing, run_drawings, write_drawings
from bpfn_cli.reporting.drawings.accuracy import read_latency
from bpfn_cli.reporting.drawings.drawing import distinct, file_stem
from bpfn_cli.reporting.drawings.networks import distinguishable, networks_of

pytest.importorskip("matplotlib")

BY_RANGE = {
    "partition": "range",
    "classes": ["0 to 10", "35 and more"],
    "points": [10, 0],
    "epe3d": {"model": [0.1, None], "zero_flow": [0.3, None]},
}
SCENES = [{"name": str(one), "model": 0.1 * one, "zero_flow": 0.3} for one in range(1, 5)]


def log(run: Path, *lines: dict[str, Any]) -> Path:
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def drawn(runs: Path, **options: Any) -> dict[str, Drawing]:
    return {one.stem: one for one in run_drawings(read_runs(runs), **options)}


def test_no_run_gives_no_figure(runs: Path) -> None:
    assert not drawn(runs)


def test_runs_of_a_network_differ_only_in_their_seed(runs: Path, make_run: Any) -> None:
    for seed in (1, 0):
        make_run(f"a{seed}", seed=seed, recipe={"seed": seed, "train": {"lr": 1e-3}})
    make_run("b", seed=0, recipe={"seed": 0, "train": {"lr": 1e-4}})
    first, second = networks_of(read_runs(runs).runs)
    assert [[run.name for run in one.runs] for one in (first, second)] == [["a0", "a1"], ["b"]]
    assert first.label.startswith("weightnet48, bihint (") and first.label != second.label


def test_runs_from_other_initial_weights_are_another_network(runs: Path, make_run: Any) -> None:
    for name, sha256 in (("a", "a" * 64), ("b", "b" * 64)):
        make_run(name, recipe={"seed": 0}, initial={"path": f"{name}.safetensors", "sha256": sha256})
    assert len(networks_of(read_runs(runs).runs)) == 2


def test_seeds_of_a_study_with_a_teacher_of_its_own_are_one_network(runs: Path, make_run: Any) -> None:
    make_run("a", seed=0, recipe={"seed": 0, "data": {"points": 1024}})
    make_run("b", seed=1, recipe={"seed": 1, "data": {"points": 1024, "holdout_seed": 0}})
    (network,) = networks_of(read_runs(runs).runs)
    assert [run.name for run in network.runs] == ["a", "b"]


def test_curves_are_those_of_finished_runs_or_of_the_newest_of_each_seed(runs: Path, make_run: Any) -> None:
    def curve(*epochs: int) -> list[dict[str, Any]]:
        return [{"epoch": epoch, "validation_epe3d": 0.5} for epoch in epochs]

    def shown() -> list[int]:
        (one,) = [one for one in drawn(runs).values() if one.subject == "terms"]
        (line,) = one.draw().axes[2].get_lines()
        return list(line.get_xdata())

    log(make_run("dead", state="interrupted", started="2025-03-01T10:00:00+00:00"), *curve(1))
    log(make_run("again", state="running", started="2025-03-02T10:00:00+00:00"), *curve(1, 2))
    log(make_run("other", state="running", seed=1, started="2025-03-02T10:00:00+00:00"))
    assert shown() == [1, 2]
    log(make_run("finished", seed=2, started="2025-03-01T10:00:00+00:00"), *curve(1, 2, 3))
    assert shown() == [1, 2, 3]


def test_plot_keeps_the_networks_with_the_lowest_error(runs: Path, make_run: Any) -> None:
    for number in range(14):
        log(make_run(f"run{number}", method=f"m{number}"), {"epoch": 1, "validation_epe3d": 1 - 0.01 * number})
    kept, note = distinguishable(networks_of(read_runs(runs).runs))
    assert {one.runs[0].name for one in kept} == {f"run{number}" for number in range(2, 14)}
    assert note == "The 12 with the lowest validation EPE3D of 14 networks."


def test_terms_of_a_network_are_drawn_and_what_is_not_finite_is_named(runs: Path, make_run: Any) -> None:
    line = {"loss_supervised": 2.0, "gradient_share_bihint": 0.3, "lr": 1e-3, "validation_epe3d": 0.5}
    log(make_run("a"), {"epoch": 1, **line}, {"epoch": 2, **line, "loss_supervised": float("nan")})
    (one,) = [one for one in drawn(runs).values() if one.subject == "terms"]
    assert one.caption.endswith("NaN or infinite, so not drawn: loss_supervised.")
    losses, shares, errors, rate = one.draw().axes
    assert list(losses.get_lines()[0].get_xdata()) == [1]
    assert [list(axes.get_lines()[0].get_ydata()) for axes in (shares, errors, rate)] == [
        [0.3] * 2,
        [0.5] * 2,
        [1e-3] * 2,
    ]


def test_number_of_networks_whose_terms_are_drawn_is_limited_to_the_newest(runs: Path, make_run: Any) -> None:
    for number in range(3):
        started = f"2025-03-0{3 - number}T10:00:00+00:00"
        log(make_run(f"run{number}", method=f"m{number}", started=started), {"epoch": 1, "lr": 0.1})
    stems = [one.stem for one in drawn(runs, most_networks=2).values() if one.subject == "terms"]
    assert stems == ["learning_weightnet48-m0", "learning_weightnet48-m1"]


def test_accuracy_is_drawn_against_all_known_costs(runs: Path, make_run: Any) -> None:
    make_run("a", evaluation(0.12), variant="weightnet48")
    assert "cost_synthetic_test_1024" not in drawn(runs)  # a single variant
    make_run("b", evaluation(0.10), variant="weightnet4")
    figure = drawn(runs, latency_ms={"weightnet4": 90.0})["cost_synthetic_test_1024"].draw()
    titles = [axes.get_xlabel() for axes in figure.axes]
    assert titles == ["MACs [G]", "parameters [M]", "file [MB]", "time [ms]"]


def test_errors_by_class_and_over_scenes_are_drawn_with_the_baselines(runs: Path, make_run: Any) -> None:
    make_run("a", evaluation(by_class=[BY_RANGE], scenes=SCENES))
    found = drawn(runs)
    (axes,) = found["range_synthetic_test_1024"].draw().axes
    assert [line.get_label() for line in axes.get_lines()] == ["zero flow", "weightnet48, bihint"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0–10", "35+"]
    (axes,) = found["distribution_synthetic_test_1024"].draw().axes
    assert [line.get_label() for line in axes.get_lines()] == ["zero flow", "weightnet48, bihint"]
    assert list(axes.get_lines()[1].get_xdata()) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_only_runs_that_differ_in_their_seed_are_averaged(runs: Path, make_run: Any) -> None:
    def scenes(error: float) -> list[dict[str, Any]]:
        return [{"name": str(index), "model": error} for index in range(3)]

    for name, error, changes in (
        ("short", 0.4, {"epochs": 1, "recipe": {"train": {"epochs": 1}}}),
        ("long", 0.1, {"epochs": 500, "recipe": {"train": {"epochs": 500}}}),
        ("unfinished", 0.5, {"state": "running"}),
        ("other", 0.2, {"variant": "baseline"}),
    ):
        other_weights = evaluation(0.9, checkpoint={"which": "last", "sha256": "f" * 64}, scenes=scenes(0.9))
        make_run(name, evaluation(error, scenes=scenes(error)), other_weights, **changes)
    by_subject = {one.subject: one for one in run_drawings(read_runs(runs))}
    points = by_subject["cost"].draw.args[0]  # type: ignore[attr-defined]
    found = {(one.label, one.variant): (one.error, one.spread) for one in points}
    assert found == {
        ("bihint (short)", "weightnet48"): (0.4, None),
        ("bihint (long)", "weightnet48"): (0.1, None),
        ("bihint", "baseline"): (0.2, None),
    }
    lines = by_subject["distribution"].draw.args[0]  # type: ignore[attr-defined]
    assert lines["weightnet48, bihint (short)"] == [0.4, 0.4, 0.4]


def test_other_weights_of_one_name_are_lines_of_their_own(runs: Path) -> None:
    for folder, sha256, error in (("a", "a" * 64, 0.1), ("b", "b" * 64, 0.3)):
        checkpoint = {"path": f"{folder}/student.safetensors", "variant": "half", "which": "given", "sha256": sha256}
        result = evaluation(error, checkpoint=checkpoint, scenes=[{"name": "0", "model": error}])
        (runs / "evaluations").mkdir(parents=True, exist_ok=True)
        (runs / "evaluations" / f"{folder}.json").write_text(json.dumps(result))
    (one,) = [one for one in drawn(runs).values() if one.subject == "distribution"]
    assert one.draw.args[0] == {  # type: ignore[attr-defined]
        "half, student.safetensors aaaaaaaa": [0.1],
        "half, student.safetensors bbbbbbbb": [0.3],
    }


def test_teacher_is_a_line_in_the_plot_of_costs(runs: Path, make_run: Any) -> None:
    for name, variant in (("a", "weightnet48"), ("b", "weightnet4")):
        result = evaluation(0.1)
        result["rows"].append(metrics("teacher", 0.05, 0.9, 0.9, 0.1, 1.0, 0.9))
        make_run(name, result, variant=variant)
    figure = drawn(runs)["cost_synthetic_test_1024"].draw()
    assert any(list(line.get_ydata()) == [0.05, 0.05] for line in figure.axes[0].get_lines())


def test_published_results_have_figures_of_their_own(runs: Path, make_run: Any) -> None:
    make_run("a", evaluation())
    assert "published_kitti" not in drawn(runs)
    one = drawn(runs, published=True)["published_kitti"]
    assert one.caption.startswith("Published (reports 1 to 11), not measured here")
    names = [text.get_text() for text in one.draw().axes[0].texts]
    assert {"weightnet8", "weightnet4", "baseline"} <= set(names)


def test_latency_is_that_of_single_pairs_of_the_largest_clouds(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    cases = [(1024, 1, 10.0), (8192, 1, 90.0), (8192, 4, 300.0)]
    results = [{"variant": "half", "points": n, "batch": b, "fast": {"median_ms": ms}} for n, b, ms in cases]
    path.write_text(json.dumps({"results": results}))
    assert read_latency(path) == {"half": 90.0}
    path.write_text(
        json.dumps({"results": [{**one, "device": device} for one in results for device in ("cpu", "cuda")]})
    )
    with pytest.raises(DataError, match="has times of cpu and cuda; repeat `bpfn bench` with one --device"):
        read_latency(path)
    path.write_text(json.dumps({"results": results[2:]}))
    with pytest.raises(DataError, match="no pass of one pair"):
        read_latency(path)
    path.write_text("{")
    with pytest.raises(DataError, match="repeat `bpfn bench --out FILE`"):
        read_latency(path)


def test_names_of_files_are_safe_and_distinct(runs: Path, tmp_path: Path, make_run: Any) -> None:
    assert file_stem("learning", "../<b>/..") == "learning_b"
    assert file_stem("..") == "unnamed"
    log(make_run("a", method="x/y"), {"epoch": 1, "lr": 0.1})
    make_run("b", evaluation(by_class=[{**BY_RANGE, "partition": "../x/y"}]), method="z")
    assert "x-y_synthetic_test_1024" in drawn(runs)
    one = drawn(runs)["learning_weightnet48-x-y"]
    again = list(distinct([one, one]))
    assert [path.name for path in write_drawings(again, tmp_path)] == [
        "learning_weightnet48-x-y.png",
        "learning_weightnet48-x-y.svg",
        "learning_weightnet48-x-y_2.png",
        "learning_weightnet48-x-y_2.svg",
    ]
