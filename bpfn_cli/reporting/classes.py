# SPDX-License-Identifier: MIT
"""Tables of EPE3D by class of points: of one evaluation, and of all networks of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bpfn_cli.metrics.classes import PARTITIONS
from bpfn_cli.metrics.result import BASELINE_NAMES, BASELINE_TITLES, MODEL, BucketTable, ClassTable, EvaluationResult
from bpfn_cli.reporting.accuracy import Measured, OtherWeights, Result, comparable, predictor_title, results_of
from bpfn_cli.reporting.tables import NO_VALUE, Column, Row, Table
from bpfn_cli.runs.results import Run

EGO_MOTION = {
    "given": "The motion of the sensor, beyond which points move, is given with the data.",
    "fitted": "The motion of the sensor, beyond which points move, is fitted to the true flow.",
    "both": "The motion of the sensor, beyond which points move, is given with some scenes and fitted in the others.",
}
NORMALIZED = (
    "Static: EPE3D of points below 0.04 m per frame, in metres. Dynamic: error divided by speed, the mean over buckets "
    "of speed; 1 is the flow of a static world."
)


def class_summary(evaluation: EvaluationResult) -> str:
    """One line about the model: EPE3D of moving and static points, and three-way; empty: not measured."""
    tables = [table for name in ("motion", "three-way") if (table := evaluation.classes(name))]
    return "; ".join(_in_words(table) for table in tables if MODEL in table.epe3d)


def class_tables(evaluation: EvaluationResult) -> Iterator[Table]:
    """A table for each partition: classes are rows, predictors columns."""
    notes = [EGO_MOTION[evaluation.ego_motion]] if evaluation.ego_motion else []
    for table in evaluation.by_class:
        columns = [
            _cell(0, "class", "Class", None),
            _cell(1, "points", "Points", ",d"),
            *(_cell(2 + i, name, predictor_title(name), ".4f", "m") for i, name in enumerate(table.epe3d)),
        ]
        rows = [Row(cells) for cells in zip(table.classes, table.points, *table.epe3d.values(), strict=True)]
        three = [mean] if table.partition == "three-way" and (mean := _three_way_mean(table)) else []
        yield Table(f"classes_{table.partition}", f"EPE3D by {_meaning(table)}", columns, rows, [*three, *notes])
        notes = []  # once
    if evaluation.bucket_normalized:
        yield _normalized_table(evaluation.bucket_normalized)


def missing_categories(evaluation: EvaluationResult) -> Iterator[str]:
    """A sentence if scenes of LiDAR logs have no categories, which the tables by category need."""
    if evaluation.dataset.kind == "lidar_logs" and evaluation.by_class and not evaluation.classes("three-way"):
        yield "no table by category: flow_category_indices is missing in a log"


def class_report_tables(runs: Sequence[Run], others: Sequence[EvaluationResult] = ()) -> list[Table]:
    """A table for each protocol and partition: networks are rows, classes columns."""
    results: list[Measured] = [result for run in runs for result in results_of(run)]
    groups = comparable([*results, *map(OtherWeights, others)])
    found = [
        [*(_report_table(group, name) for name in PARTITIONS), _normalized_report_table(group)] for group in groups
    ]
    return [table for tables in found for table in tables if table]


def _report_table(group: Sequence[Measured], partition: str) -> Table | None:
    found = [(one, table) for one in group if (table := one.evaluation.classes(partition))]
    if not found:
        return None
    first = found[0][1]
    alike = [(one, table) for one, table in found if (table.classes, table.points) == (first.classes, first.points)]
    columns = [*NAMES, *(_cell(3 + i, name, name.capitalize(), ".4f", "m") for i, name in enumerate(first.classes))]
    rows = [*_baseline_rows(first.epe3d)]
    rows += [Row((*_names(one), *table.epe3d[MODEL])) for one, table in alike if MODEL in table.epe3d]
    points = "; ".join(f"{name} {count:,}" for name, count in zip(first.classes, first.points, strict=True))
    ego = found[0][0].evaluation.ego_motion
    notes = [f"Points: {points}.", *([EGO_MOTION[ego]] if ego else [])]
    if len(alike) < len(found):
        notes.append("Results with other numbers of points in the classes are left out; repeat `bpfn eval` for them.")
    title = f"EPE3D by {_meaning(first)}: {group[0].protocol.title}"
    return Table(f"classes_{partition}", title, columns, rows, notes, group[0].protocol.as_dict())


def _normalized_report_table(group: Sequence[Measured]) -> Table | None:
    """The dynamic errors; those of static points are nearly those of all points of a class."""
    found = [(one, table) for one in group if (table := one.evaluation.bucket_normalized)]
    if not found:
        return None
    first = found[0][1]
    classes = [*(name.capitalize() for name in first.classes), "Mean"]
    columns = [*NAMES, *(_cell(3 + i, name.lower(), name, ".3f") for i, name in enumerate(classes))]
    rows = [*_baseline_rows({name: (*errors, _mean(errors)) for name, errors in first.dynamic.items()})]
    rows += [
        Row((*_names(one), *errors, _mean(errors)))
        for one, table in found
        if table.classes == first.classes and (errors := table.dynamic.get(MODEL))
    ]
    title = f"Bucket-normalized EPE of dynamic points: {group[0].protocol.title}"
    return Table("bucket_normalized", title, columns, rows, [NORMALIZED], group[0].protocol.as_dict())


def _baseline_rows(errors: Mapping[str, Sequence[float | None]]) -> Iterator[Row]:
    for name in BASELINE_NAMES:
        if name in errors:
            yield Row((BASELINE_TITLES[name], None, None, *errors[name]), "reference")


def _names(one: Measured) -> tuple[str, str, str]:
    """Model, method and run."""
    if isinstance(one, Result):
        return one.record.variant, one.method, one.run.name
    return one.evaluation.checkpoint.variant, "given weights", Path(one.evaluation.checkpoint.path).name


def _normalized_table(table: BucketTable) -> Table:
    names = [(name, predictor_title(name)) for name in table.static]
    columns = [_cell(0, "class", "Class", None), _cell(1, "static_points", "Static points", ",d")]
    columns += [_cell(2 + i, f"{key}_static", f"{title} static", ".4f") for i, (key, title) in enumerate(names)]
    next_one = len(columns)
    columns.append(_cell(next_one, "dynamic_points", "Dynamic points", ",d"))
    columns += [
        _cell(next_one + 1 + i, f"{key}_dynamic", f"{title} dynamic", ".3f") for i, (key, title) in enumerate(names)
    ]
    values = (table.static_points, *table.static.values(), table.dynamic_points, *table.dynamic.values())
    rows = [Row(cells) for cells in zip(table.classes, *values, strict=True)]
    means = [f"{title} {mean:.3f}" for key, title in names if (mean := _mean(table.dynamic[key])) is not None]
    notes = [NORMALIZED, *([f"Mean dynamic error over classes: {', '.join(means)}."] if means else [])]
    return Table("bucket_normalized", "Bucket-normalized EPE", columns, rows, notes)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _three_way_mean(table: ClassTable) -> str:
    """The three-way EPE in words; empty if a class has no point."""
    means = [
        f"{predictor_title(name)} {sum(errors) / len(errors):.4f} m"  # type: ignore[arg-type]
        for name, errors in table.epe3d.items()
        if None not in errors
    ]
    return f"Three-way EPE, the mean of the classes: {', '.join(means)}." if means else ""


def _in_words(table: ClassTable) -> str:
    errors = zip(table.classes, table.points, table.epe3d[MODEL], strict=True)
    return ", ".join(f"{name} {_metres(error)} ({count:,} points)" for name, count, error in errors)


def _metres(error: float | None) -> str:
    return NO_VALUE if error is None else f"{error:.4f} m"


def _meaning(table: ClassTable) -> str:
    return PARTITIONS[table.partition].meaning if table.partition in PARTITIONS else table.partition


def _cell(index: int, key: str, heading: str, digits: str | None, unit: str = "") -> Column:
    return Column(key.replace(" ", "_"), heading, lambda row: row.cells[index], digits, unit)


NAMES = (_cell(0, "model", "Model", None), _cell(1, "method", "Method", None), _cell(2, "run", "Run", None))
