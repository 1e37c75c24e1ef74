# SPDX-License-Identifier: MIT
"""Tables of EPE3D by class of points: of one evaluation, and of all networks of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from bpfn_cli.metrics.classes import PARTITIONS
from bpfn_cli.metrics.result import BASELINE_NAMES, BASELINE_TITLES, MODEL, BucketTable, ClassTable, EvaluationResult
from bpfn_cli.ops import MOVING_M
from bpfn_cli.reporting.accuracy import predictor_title
from bpfn_cli.reporting.rows import Measured, Result, in_order, tables_of
from bpfn_cli.reporting.tables import NO_VALUE, Column, Row, Table
from bpfn_cli.runs.results import Run

Cells = tuple[float | None, ...]

EGO_MOTION = {
    "given": "given with the data",
    "fitted": "fitted to the true flow",
    "both": "given with some scenes, and fitted to the true flow of the others",
}
NORMALIZED = (
    "Error divided by speed beyond the motion of the sensor, of points of 0.04 m per frame or more: mean over buckets "
    "of speed. The flow of a static world has 1."
)


def class_summary(evaluation: EvaluationResult) -> str:
    """One line about the model: EPE3D of moving and static points, and three-way; empty: not measured."""
    tables = [table for name in ("motion", "three-way") if (table := evaluation.classes(name))]
    said = "; ".join(_in_words(table) for table in tables if MODEL in table.epe3d)
    return f"EPE3D by class: {said}" if said else ""


def class_tables(evaluation: EvaluationResult) -> Iterator[Table]:
    """A table for each partition: classes are rows, predictors columns."""
    for table in evaluation.by_class:
        columns, rows = _predictor_cells(table.classes, table.points, table.epe3d, ".4f")
        three = [mean] if table.partition == "three-way" and (mean := _three_way_mean(table)) else []
        notes = [*three, *_motion_notes(evaluation, table.partition)]
        yield Table(f"classes_{table.partition}", _title(table), columns, rows, notes)
    if evaluation.bucket_normalized:
        yield from _normalized_tables(evaluation.bucket_normalized)


def missing_categories(evaluation: EvaluationResult) -> Iterator[str]:
    """A sentence if scenes of LiDAR logs have no categories, which the tables by category need."""
    if evaluation.dataset.kind == "lidar_logs" and evaluation.by_class and not evaluation.classes("three-way"):
        yield "no table by category: flow_category_indices is missing in a log"


def class_report_tables(runs: Sequence[Run], others: Sequence[EvaluationResult] = ()) -> list[Table]:
    """A table for each protocol and partition: networks are rows, classes columns."""
    found = [
        [*(_report_table(group, name) for name in PARTITIONS), _normalized_report_table(group)]
        for group in tables_of(runs, others)
    ]
    return [table for tables in found for table in tables if table]


def _report_table(group: Sequence[Measured], partition: str) -> Table | None:
    found = [(one, table) for one in group if (table := one.evaluation.classes(partition))]
    if not found:
        return None
    first = found[0][1]
    alike = [one for one, table in found if first.is_like(table)]
    columns = [*NAMES, *(_cell(3 + i, name, class_heading(name), ".4f") for i, name in enumerate(first.classes))]
    rows = [*_baseline_rows(first.epe3d), *_network_rows(alike, lambda one: _errors(one, partition))]
    points = "; ".join(f"{name}: {count:,}" for name, count in zip(first.classes, first.points, strict=True))
    notes = [f"Points: {points}.", *_motion_notes(found[0][0].evaluation, partition)]
    if len(alike) < len(found):
        notes.append("Results with other numbers of points in the classes are left out; repeat `bpfn eval` for them.")
    title = f"{_title(first)}: {group[0].protocol.title}"
    return Table(f"classes_{partition}", title, columns, rows, notes, group[0].protocol.as_dict())


def _normalized_report_table(group: Sequence[Measured]) -> Table | None:
    """The dynamic errors; those of static points are nearly those of all points of a class."""
    found = [(one, table) for one in group if (table := one.evaluation.bucket_normalized)]
    if not found:
        return None
    first = found[0][1]
    classes = [*(name.capitalize() for name in first.classes), "Mean"]
    columns = [*NAMES, *(_cell(3 + i, name.lower(), name, ".3f") for i, name in enumerate(classes))]
    alike = [one for one, table in found if table.classes == first.classes]
    rows = [*_baseline_rows({name: (*errors, _mean(errors)) for name, errors in first.dynamic.items()})]
    rows += _network_rows(alike, _normalized_errors)
    title = f"Bucket-normalized EPE of dynamic points: {group[0].protocol.title}"
    return Table("bucket_normalized", title, columns, rows, [NORMALIZED], group[0].protocol.as_dict())


def _baseline_rows(errors: Mapping[str, Sequence[float | None]]) -> Iterator[Row]:
    for name in BASELINE_NAMES:
        if name in errors:
            yield Row((BASELINE_TITLES[name], None, None, *errors[name]), "reference")


def _network_rows(group: Sequence[Measured], errors_of: Callable[[Measured], Cells | None]) -> Iterator[Row]:
    for one in in_order(group):
        if (errors := errors_of(one)) is not None:
            is_incomplete = isinstance(one, Result) and not one.run.complete
            cells = (*(one.names[column.key] for column in NAMES), *errors)
            yield Row(cells, "incomplete" if is_incomplete else "")


def _errors(one: Measured, partition: str) -> Cells | None:
    table = one.evaluation.classes(partition)
    return table.epe3d.get(one.predictor) if table else None


def _normalized_errors(one: Measured) -> Cells | None:
    table = one.evaluation.bucket_normalized
    errors = table.dynamic.get(one.predictor) if table else None
    return (*errors, _mean(errors)) if errors else None


def _normalized_tables(table: BucketTable) -> Iterator[Table]:
    means = {name: mean for name, errors in table.dynamic.items() if (mean := _mean(errors)) is not None}
    said = ", ".join(f"{predictor_title(name)} {mean:.3f}" for name, mean in means.items())
    notes = [f"Mean over classes: {said}."] if means else []
    columns, rows = _predictor_cells(table.classes, table.dynamic_points, table.dynamic, ".3f")
    yield Table("bucket_normalized", "Bucket-normalized EPE of dynamic points", columns, rows, [NORMALIZED, *notes])
    columns, rows = _predictor_cells(table.classes, table.static_points, table.static, ".4f")
    yield Table("bucket_static", "EPE3D [m] of points below 0.04 m per frame", columns, rows)


def _predictor_cells(
    classes: Sequence[str], points: Sequence[int], errors: Mapping[str, Cells], digits: str
) -> tuple[list[Column], list[Row]]:
    """Columns and rows of a table with the classes as rows and the predictors as columns."""
    columns = [
        _cell(0, "class", "Class", None),
        _cell(1, "points", "Points", ",d"),
        *(_cell(2 + i, name, predictor_title(name), digits) for i, name in enumerate(errors)),
    ]
    return columns, [Row(cells) for cells in zip(classes, points, *errors.values(), strict=True)]


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


def _title(table: ClassTable) -> str:
    meaning = PARTITIONS[table.partition].meaning if table.partition in PARTITIONS else table.partition
    return f"EPE3D [m] by {meaning}"


def class_heading(name: str) -> str:
    """Narrow: "0.2 to 0.5" as "0.2–0.5", "2 and more" as "2+"."""
    return name.replace(" to ", "–").replace(" and more", "+").capitalize()


def _motion_notes(evaluation: EvaluationResult, partition: str) -> list[str]:
    """What moves, below the first table."""
    return [motion_note(evaluation.ego_motion)] if evaluation.ego_motion and partition == "motion" else []


def motion_note(ego_motion: str) -> str:
    """A sentence on what moves. Args: ego_motion: as of `EvaluationResult`."""
    known = EGO_MOTION[ego_motion]
    return f"Dynamic (moving): {MOVING_M:g} m per frame or more beyond the motion of the sensor, which is {known}."


def _cell(index: int, key: str, heading: str, digits: str | None, unit: str = "") -> Column:
    return Column(key.replace(" ", "_"), heading, lambda row: row.cells[index], digits, unit)


NAMES = (
    _cell(0, "model", "Model", None),
    _cell(1, "method", "Method", None),
    replace(_cell(2, "run", "Run", None), detail=8),
)
