# SPDX-License-Identifier: MIT
from __future__ import annotations

from importlib import resources

import yaml
from run_folders import evaluation

from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.reporting import build_report, read_runs, to_markdown
from bpfn_cli.reporting.published import protocol_notes, published_beside, published_tables, read_published
from bpfn_cli.reporting.tables import METRICS


def test_every_entry_of_the_file_has_one_row():
    content = yaml.safe_load(
        resources.files("bpfn_cli.resources").joinpath("published_results.yaml").read_text("utf-8")
    )
    tables = published_tables(read_published())
    sizes = {table.title.rpartition(" on ")[2]: len(table.rows) for table in tables[:-1]}
    assert sizes == {"KITTI": 32, "FlyingThings3D": 26}
    assert sum(sizes.values()) == len(content["results"])
    assert len(tables[-1].rows) == len(content["complexity"]) == 9


def test_metrics_of_the_file_are_in_the_order_of_the_columns():
    assert read_published().metrics == tuple(metric.key for metric in METRICS)


def test_titles_say_that_results_are_published():
    titles = [table.title for table in published_tables(read_published())]
    assert all(title.startswith("published (reports 1 to 11), not measured here: ") for title in titles)


def test_digits_notes_and_gaps_are_as_printed(tmp_path):
    text = to_markdown(build_report(read_runs(tmp_path), published=True))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    teacher = ["1", "baseline", "teacher", "KITTI", "0.050", "0.869", "0.940", "0.177", "1.771", "0.896", "–"]
    slip = "another network: separable at encoder levels 3 and 4 alone, with bottlenecks; "
    slip += "EPE2D printed 0.1675, probably 1.675"
    hint = ["6", "declinear", "hint", "FlyingThings3D", "0.049", "0.878", "0.938", "0.167", "0.1675", "0.905"]
    ail = ["6", "weightnet4", "ail", "FlyingThings3D", *"––––––––"]
    fifth = [
        "6",
        "weightnet8",
        "scratch",
        "FlyingThings3D 1/5",
        "0.035",
        "0.886",
        "0.961",
        "0.166",
        "1.462",
        "0.922",
    ]
    trained_on = "training error: these are the scenes that it was trained on"
    assert [*teacher, trained_on] in rows
    assert [*fifth, "–", "–"] in rows
    assert [*hint, "gamma 0.3, epoch 470", slip] in rows
    assert ail in rows
    half = ["3", "half", "basic", "KITTI", "0.041", "0.857", "0.946", "0.198", "1.96", "0.896"]
    other = f"{trained_on}; another network: with residual bottlenecks"
    assert [*half, "gamma 0.5, teacher trained on FlyingThings3D", other] in rows
    best = [
        "7",
        "weightnet8",
        "bihint scratch",
        "FlyingThings3D",
        "0.0266",
        "0.932",
        "0.982",
        "0.129",
        "1.492",
        "0.941",
    ]
    assert [*best, "–", "–"] in rows
    assert ["10", "weightnet4", "–", "–", "–", "0.213", "on a laptop GPU, RTX 2070 Max-Q"] in rows


def test_published_tables_are_optional(runs, make_run):
    make_run("one")
    kinds = [table.kind for table in build_report(read_runs(runs)).tables]
    assert kinds == ["without_results", "complexity"]
    asked = [table.kind for table in build_report(read_runs(runs), published=True).tables]
    assert asked == [*kinds, "published_accuracy", "published_accuracy", "published_complexity"]


def measured(kind, scenes, points, variant="weightnet8", **changes):
    content = evaluation(0.1, dataset__kind=kind, dataset__scenes=scenes, points=points, checkpoint__variant=variant)
    return EvaluationResult.model_validate(content | changes, strict=False)


def test_published_rows_are_printed_with_an_evaluation_and_its_differences():
    (table,) = published_beside(measured("flyingthings3d", 40, 2048, parts=1024))
    assert "weightnet8 on FlyingThings3D" in table.title and "not measured here" in table.title
    keys = [column.key for column in table.columns]
    first, *others = [dict(zip(keys, row.cells, strict=True)) for row in table.rows]
    assert (first["method"], str(first["epe3d"])) == ("scratch", "0.0280")
    assert {row["model"] for row in others} == {"weightnet8"}
    expected = (
        "they tested on 3,824 scenes, here 40 (split test); with 8192 points, here 2048; all points at once, here"
    )
    assert (
        expected in table.notes[0]
        and "in parts of 1024; their draw of points is not known, here seed 0" in table.notes[0]
    )


def test_no_published_rows_for_other_data_or_variants_and_no_equal_conditions():
    assert not [
        *published_beside(measured("synthetic", 40, 8192)),
        *published_beside(measured("kitti", 142, 8192, "x")),
    ]
    (table,) = published_beside(measured("kitti", 142, 8192))
    assert table.notes == ["Differs: their draw of points is not known, here seed 0."]


def test_kitti_with_another_number_of_points_is_noted():
    (note,) = protocol_notes(measured("kitti", 142, 2048))
    assert "8192 points" in note and "here 2048" in note
    assert not [*protocol_notes(measured("kitti", 142, 8192)), *protocol_notes(measured("synthetic", 40, 2048))]
