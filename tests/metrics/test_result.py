# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.reporting.rows import Protocol


def content(model: float = 0.1, zero: float = 0.3, nearest: float = 0.2, **changes: Any) -> dict[str, Any]:
    rows = [("model", model), ("zero_flow", zero), ("nearest_neighbor", nearest), ("teacher", 0.001)]
    rest = {"acc3d_strict": 0.5, "acc3d_relax": 0.5, "outliers3d": 0.5, "epe2d": None, "acc2d": None}
    return {
        "format": 1,
        "dataset": {"kind": "kitti", "split": "test", "path": "kitti", "scenes": 2, "sha256": "0123456789"},
        "points": 8192,
        "seed": 0,
        "checkpoint": {"which": "best", "path": "a.pt", "variant": "tiny", "sha256": "abcdef0123"},
        "rows": [{"name": name, "epe3d": epe3d, **rest} for name, epe3d in rows],
        "by_motion": [{"name": "model", "epe3d_dynamic": 0.2, "epe3d_static": None}],
        "scenes": [{"name": "a", "model": 0.1, "zero_flow": 0.3}],
        **changes,
    }


def result(*epe3d: float, **changes: Any) -> EvaluationResult:
    return EvaluationResult.model_validate(content(*epe3d, **changes), strict=False)


def test_file_content_is_read_back_unchanged() -> None:
    text = json.dumps(content())
    assert json.dumps(EvaluationResult.model_validate_json(text).as_dict()) == text


@pytest.mark.parametrize(
    ("epe3d", "gain"),
    [((0.1, 0.3, 0.2), 0.5), ((0.1, 0.2, 0.4), 0.5), ((0.25, 0.3, 0.2), -0.25), ((0.1, 0, 0.2), None)],
)
def test_relative_gain_is_over_the_best_baseline(epe3d: tuple[float, ...], gain: float | None) -> None:
    assert result(*epe3d).relative_gain == pytest.approx(gain)


@pytest.mark.parametrize(
    ("epe3d", "summary"),
    [
        ((0.1,), "EPE3D 0.1000 m, 50% below the best baseline (zero flow 0.3000, nearest neighbor 0.2000)"),
        ((0.25,), "EPE3D 0.2500 m, 25% above the best baseline (zero flow 0.3000, nearest neighbor 0.2000)"),
        ((0.1, 0, 0), "EPE3D 0.1000 m (zero flow 0.0000, nearest neighbor 0.0000)"),
    ],
)
def test_summary_compares_the_network_with_the_baselines(epe3d: tuple[float, ...], summary: str) -> None:
    assert result(*epe3d).summary() == f"tiny: {summary}"


def test_rigid_icp_is_one_of_the_baselines_and_may_be_missing() -> None:
    rows = content()["rows"]
    measured = result(rows=[*rows, {**rows[0], "name": "rigid_icp", "epe3d": 0.125}])
    assert (result().row("rigid_icp"), result().relative_gain) == (None, pytest.approx(0.5))
    assert measured.relative_gain == pytest.approx(0.2)
    assert "20% below the best baseline" in measured.summary()
    assert measured.summary().endswith("nearest neighbor 0.2000, rigid ICP 0.1250)")


def test_file_name_depends_on_weights_points_seed_and_scenes() -> None:
    assert result().file_name == "kitti-test-01234567-8192-0-abcdef01.json"
    changes: list[dict[str, Any]] = [
        {"points": 1024},
        {"seed": 1},
        {"checkpoint": {**content()["checkpoint"], "sha256": "abcdefff"}},
        *({"dataset": {**content()["dataset"], key: "f" * 9}} for key in ("kind", "split", "sha256")),
    ]
    assert len({result(**change).file_name for change in [{}, *changes]}) == 7


MOVING = {"partition": "motion", "classes": ["dynamic", "static"], "points": [2, 0], "epe3d": {"model": [0.5, None]}}


def test_logs_of_older_versions_keep_their_place() -> None:
    data = content()["dataset"]
    old, new, square = (
        result(dataset=data | changes)
        for changes in (
            {"kind": "argoverse2"},
            {"kind": "lidar_logs", "region": "radius"},
            {"kind": "lidar_logs", "region": "square"},
        )
    )
    assert Protocol.from_evaluation(old) == Protocol.from_evaluation(new) != Protocol.from_evaluation(square)
    assert old.file_name == new.file_name != square.file_name
    assert Protocol.from_evaluation(new).title == "LiDAR logs, test split, 2 scenes, within 35 m, 8192 points"


def test_motion_is_that_of_the_classes_or_else_of_an_older_version() -> None:
    assert result().motion.epe3d_dynamic == 0.2  # type: ignore[union-attr]
    motion = result(by_class=[MOVING]).motion
    assert (motion.epe3d_dynamic, motion.epe3d_static) == (0.5, None)  # type: ignore[union-attr]


@pytest.mark.parametrize("changes", [{"points": [2]}, {"epe3d": {"model": [0.5]}}, {"points": [2, -1]}])
def test_class_table_needs_one_value_for_each_class(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        result(by_class=[MOVING | changes])


def test_teacher_by_class_is_kept_from_an_earlier_result_of_the_same_points() -> None:
    taught = MOVING | {"epe3d": {"model": [0.5, None], "teacher": [0.4, None]}}
    alone = result(rows=content()["rows"][:3], by_class=[MOVING])
    kept = alone.with_teacher_of(result(by_class=[taught])).by_class[0]
    assert kept.epe3d == {"model": (0.5, None), "teacher": (0.4, None)}
    fewer = result(by_class=[taught | {"points": [1, 0]}])
    assert alone.with_teacher_of(fewer).by_class == alone.by_class


@pytest.mark.parametrize("rows", [[], content()["rows"][1:], content()["rows"] * 2])
def test_result_needs_one_row_for_the_model_and_no_duplicates(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match="one row"):
        result(rows=rows)


def test_teacher_is_kept_from_an_earlier_result_of_the_same_weights_and_scenes() -> None:
    earlier = result()
    alone = result(rows=[row for row in content()["rows"] if row["name"] != "teacher"])
    assert alone.with_teacher_of(earlier).row("teacher") == earlier.row("teacher")
    assert earlier.with_teacher_of(alone) == earlier
    assert alone.with_teacher_of(result(points=1024)) == alone


def test_all_tables_keep_the_teacher_of_an_earlier_result() -> None:
    rows = [row for row in content()["rows"] if row["name"] != "teacher"]
    full = [{**content()["rows"][0], "name": f"{name}_full"} for name in ("model", "teacher")]
    counts = {"classes": ["car"], "static_points": [1], "dynamic_points": [2]}
    bucket = {**counts, "static": {"model": [0.1]}, "dynamic": {"model": [0.2]}}
    taught = {**counts, "static": {"teacher": [0.3]}, "dynamic": {"teacher": [0.4]}}
    alone = result(rows=[*rows, full[0]], bucket_normalized=bucket)
    earlier = result(rows=[*content()["rows"], *full], bucket_normalized=taught)
    kept = alone.with_teacher_of(earlier)
    assert kept.row("teacher_full") is not None
    assert kept.bucket_normalized is not None
    assert kept.bucket_normalized.static == {"model": (0.1,), "teacher": (0.3,)}
    assert kept.bucket_normalized.dynamic == {"model": (0.2,), "teacher": (0.4,)}
    others = taught | {"static_points": [7]}
    assert alone.with_teacher_of(earlier.model_copy(update={"bucket_normalized": None})) != alone
    unlike = result(rows=content()["rows"], bucket_normalized=others)
    assert alone.with_teacher_of(unlike).bucket_normalized == alone.bucket_normalized
