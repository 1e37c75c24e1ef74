# SPDX-License-Identifier: MIT
"""`bpfn eval` and `bpfn report` on LiDAR logs: errors by class of points, and the region."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import bpfn, refused, succeeded
from scene_folders import write_log
from tiny_world import LEAST, tiny_network, write_things

from bpfn_cli.models import save_checkpoint

COUNT = 4 * LEAST
EVAL = ("eval", "--checkpoint", "tiny.safetensors", "--data", "logs", "--points", LEAST, "--device", "cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose points stand still, except for cars that move by 0.4 m; a walker stands. No point is beyond 29 m."""
    folder = tmp_path_factory.mktemp("work")
    save_checkpoint(folder / "tiny.safetensors", tiny_network())
    (folder / "logs").mkdir()
    (folder / "bare").mkdir()
    categories = np.zeros(COUNT, np.uint8)
    categories[::4], categories[1::4] = 19, 17
    flow = np.zeros((COUNT, 3), np.float32)
    flow[::4, 0] = 0.4
    known = {"flow": flow, "flow_is_valid": np.ones(COUNT, bool), "ground_mask": np.zeros(COUNT, bool)}
    write_log(
        folder / "logs" / "a.h5", 2, COUNT, **known, flow_category_indices=categories, ego_motion=np.eye(4, dtype="f4")
    )
    write_log(folder / "bare" / "b.h5", 2, COUNT, **known)
    return folder


def test_eval_prints_and_writes_errors_by_class(work: Path) -> None:
    result = succeeded(bpfn(*EVAL, "--detail", "--out", "a.json", cwd=work, COLUMNS="160"))
    assert "LiDAR logs, test split, 1 scenes, within 35 m" in result.stdout
    assert "moving foreground" in result.stdout and "Bucket-normalized EPE" in result.stdout
    assert (
        "0.05 m per frame or more beyond the motion of the sensor, which is given with the data" in result.stdout
        and "note: no table by category" not in result.stderr
    )
    written = json.loads((work / "a.json").read_text())
    tables = {table["partition"]: table for table in written["by_class"]}
    assert list(tables) == ["motion", "three-way", "category", "speed", "range"]
    three = tables["three-way"]
    assert sum(three["points"]) == LEAST and min(three["points"]) > 0
    assert three["epe3d"]["zero_flow"] == [pytest.approx(0.4), 0, 0]
    assert tables["range"]["points"][-1] == 0 and tables["range"]["epe3d"]["model"][-1] is None
    assert "35 and more" in result.stdout and "–" in result.stdout
    assert (written["ego_motion"], written["dataset"]["region"]) == ("given", "radius")
    normalized = written["bucket_normalized"]
    assert normalized["dynamic"]["zero_flow"] == [None, pytest.approx(1), None, None, None]
    assert normalized["static"]["zero_flow"] == [0, None, None, 0, None]
    (scene,) = written["scenes"]
    for name, table in tables.items():
        assert scene["class_points"][name] == table["points"]
        errors = zip(scene["class_errors_m"][name], table["points"], table["epe3d"]["model"], strict=True)
        assert all(error == pytest.approx((mean or 0) * points, abs=1e-6) for error, points, mean in errors)


def test_eval_without_detail_has_one_line(work: Path) -> None:
    said = succeeded(bpfn(*EVAL, "--out", "b.json", cwd=work)).stdout.splitlines()
    assert (
        said[-1].startswith("EPE3D by class: dynamic ") and "moving foreground" in said[-1] and "--detail" in said[-1]
    )


def test_log_without_categories_is_evaluated_and_said(work: Path) -> None:
    words = [{"logs": "bare"}.get(str(word), word) for word in EVAL]
    result = succeeded(bpfn(*words, "--detail", "--out", "c.json", cwd=work))
    assert "note: no table by category: flow_category_indices is missing in a log" in result.stderr
    assert "is fitted to the true flow" in result.stdout and "foreground" not in result.stdout
    assert "three-way" not in {table["partition"] for table in json.loads((work / "c.json").read_text())["by_class"]}


def test_square_has_a_table_and_a_file_of_its_own(work: Path) -> None:
    for region in ("radius", "square"):
        succeeded(bpfn(*EVAL, "--region", region, cwd=work))
    assert len(list((work / "runs" / "evaluations").iterdir())) == 2
    plain = succeeded(bpfn("report", cwd=work, COLUMNS="200")).stdout
    assert "1 scenes, within 35 m" in plain and "1 scenes, 70 x 70 m" in plain and "EPE3D by" not in plain
    detailed = succeeded(bpfn("report", "--detail", "--out", "pages", cwd=work, COLUMNS="200")).stdout
    assert detailed.count("EPE3D [m] by motion: LiDAR logs") == 2
    assert "Points: moving foreground: " in detailed
    lines = (work / "pages" / "classes_three-way.csv").read_text().splitlines()
    header = lines[0].split(",")
    assert header[-3:] == ["moving_foreground", "still_foreground", "background"]
    regions = {line.split(",")[header.index("region") + 4] for line in lines[1:]}  # the title has four commas
    assert regions == {"", "square"}


def test_other_formats_have_no_region(work: Path) -> None:
    write_things(work / "things", train=1)
    words = [{"logs": "things"}.get(str(word), word) for word in EVAL]
    command = (*words, "--region", "square", "--out", "new/deeper/a.json")
    refused(bpfn(*command, cwd=work), 2, "only LiDAR logs have a choice, flyingthings3d has one")
    assert not (work / "new").exists()
