# SPDX-License-Identifier: MIT
"""The tables of a study: means over seeds, and paired differences from training from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bpfn_cli.data.datasets import is_synthetic_kind
from bpfn_cli.metrics.classes import PARTITIONS
from bpfn_cli.metrics.result import TEACHER
from bpfn_cli.metrics.statistics import SIGNIFICANCE
from bpfn_cli.reporting.accuracy import SYNTHETIC_NOTE, TRAINED_ON_TEST
from bpfn_cli.reporting.classes import motion_note
from bpfn_cli.reporting.differences import SCRATCH, Group, Measure, differences, is_method
from bpfn_cli.reporting.methods import method_rank
from bpfn_cli.reporting.rows import Result, comparable, method_label, results_of
from bpfn_cli.reporting.tables import METRICS, Column, Report, Table, reference_row, row_of
from bpfn_cli.runs.record import Teacher
from bpfn_cli.runs.results import Run, RunResults

# Order of the rows: scratch, its control of equal time, the same-width teacher, the methods, the other controls.
RANKS = {SCRATCH: 0, "equal_time": 1, "same_width_teacher": 2, "method": 3}


# For rows about a `Group`. The teacher has only metrics. On a narrow terminal, EPE3D and its deviation stay longest.
_DETAILS = {"acc3d_relax": 3, "acc3d_strict": 9, "outliers3d": 10, "epe2d": 11, "acc2d": 12}
MEANS = [
    Column("method", "Method", lambda row: row.label),
    Column("seeds", "Seeds", lambda row: len(row.members), "d"),
    *(replace(metric, detail=_DETAILS.get(metric.key, 0)) for metric in METRICS),
    Column("epe3d_deviation", "Deviation", lambda row: row.deviation, ".4f", "m", detail=1),
    Column("epe3d_dynamic", "Dynamic", lambda row: row.motion("epe3d_dynamic"), ".4f", "m", detail=7),
    Column("epe3d_static", "Static", lambda row: row.motion("epe3d_static"), ".4f", "m", detail=8),
    Column("train_minutes", "Training", lambda row: row.train_minutes, ".1f", "min", detail=2),
    Column("epochs", "Epochs", lambda row: row.record.epochs, "d", detail=4),
    Column("parameters", "Parameters", lambda row: row.size("parameters"), ",d", detail=5),
    Column("module_macs", "MACs", lambda row: row.size("module_macs"), ",d", detail=6),
]
# For rows about a `Difference`.
DIFFERENCES = [
    Column("method", "Method", lambda row: row.label),
    Column("pairs", "Pairs", lambda row: row.paired.pairs, "d"),
    Column("difference", "vs. scratch", lambda row: row.paired.mean, "+.4f", "m"),
    Column("low", "from", lambda row: row.paired.low, "+.4f"),
    Column("high", "to", lambda row: row.paired.high, "+.4f"),
    Column("low_scenes", "Seeds and scenes: from", lambda row: row.scenes[0], "+.4f", detail=4),
    Column("high_scenes", "to", lambda row: row.scenes[1], "+.4f", detail=3),
    Column("pairs_needed", "Pairs needed", lambda row: row.pairs_needed, ",d", detail=5),
    Column("p", "Sign-flip p", lambda row: "not testable" if row.paired.p is None else f"{row.paired.p:.3f}", detail=1),
    Column("p_holm", "Holm p", lambda row: None if row.p_holm is None else f"{row.p_holm:.3f}", detail=2),
    Column(
        "to_equal_time",
        "vs. equal time",
        lambda row: row.to_equal_time and row.to_equal_time.mean,
        "+.4f",
        "m",
        detail=6,
    ),
    Column("gap_closed_percent", "Gap closed", lambda row: row.gap_closed, ".0f", "%", detail=7),
]
BY_CLASS = [
    DIFFERENCES[0],
    Column("name", "Class", lambda row: row.name),
    Column("points", "Points", lambda row: row.points, ",d"),
    Column("epe3d", "EPE3D", lambda row: row.epe3d, ".4f", "m"),
    *(column for column in DIFFERENCES[1:] if column.key != "pairs_needed"),
]
BY_CLASS_NOTES = (
    "EPE3D of a class is over its points in all scenes. Differences and intervals are as in the table of all points; "
    "Holm p is corrected for the number of methods within a class.",
)
DIFFERENCE_NOTES = (
    "Differences of EPE3D in metres, seed by seed; negative is better than scratch. from, to: 95 % BCa bootstrap "
    "interval, first over seeds, then over seeds and scenes.",
    f"Sign-flip p: with k pairs it cannot be below 2 / 2^k, so p < {SIGNIFICANCE:g} needs six. Holm p: corrected for "
    "the number of methods, not counting controls.",
    "Pairs needed: number of seeds to find a difference of this size with 80 % power at p 0.05.",
    "Gap closed: share of the way from scratch to the teacher; blank if the teacher is within two deviations of "
    "scratch.",
)

NOTES = (
    "A seed sets initialization, order and augmentation in the same way for all rows; all seeds share one teacher.",
    "Deviation: of EPE3D over seeds. Dynamic, static: EPE3D of moving and of static points.",
)


def comparison_report(results: RunResults, by: str | None = None) -> Report:
    """The tables of the finished trainings of a study: means and differences for each variant.

    Args: by: a partition of the points; adds the differences for each of its classes.
    """
    trained = groups_by_variant(results)
    if not trained:
        return Report((), problems=results.problems, message=f"No finished training of a study in {results.folder}.")
    problems = [*results.problems]
    tables = []
    for variant, groups in trained.items():
        tables += _tables(variant, groups)
        if by is not None:
            tables += _tables_by_class(variant, groups, by, problems)
    first = next(iter(trained.values()))[0].members[0]  # all have one protocol
    notes = [*NOTES, *([SYNTHETIC_NOTE] if is_synthetic_kind(first.evaluation.dataset.kind) else [])]
    if first.is_training_error:
        notes.append(TRAINED_ON_TEST.format("all networks"))
    return Report(tuple(tables), tuple(notes), tuple(problems))


def groups_by_variant(results: RunResults) -> dict[str, list[Group]]:
    """The rows of the finished trainings of a study, in the order of the tables."""
    trained = _study_results(results.runs)
    variants = sorted({one.record.variant for one in trained})
    return {variant: _groups([one for one in trained if one.record.variant == variant]) for variant in variants}


def _study_results(runs: Sequence[Run]) -> list[Result]:
    """The last finished run of each cell, under the protocol that most of them share; if several, that of the study."""
    cells = {run.record.cell: run for run in runs if run.complete and run.record.cell is not None}
    results = [one for run in cells.values() for one in results_of(run) if one.is_deployed]
    groups = comparable(results)
    shared = max(groups, key=lambda group: (len(group), sum(one.is_final_test for one in group)), default=[])
    found = {one.record.cell: one for one in shared}
    return [found[cell] for cell in cells if cell in found]


def _tables(variant: str, groups: Sequence[Group]) -> list[Table]:
    rows = [row_of(MEANS, group) for group in groups]
    teacher = teacher_of(groups)
    test = teacher.test if teacher else None
    if teacher and test:
        rows.insert(0, reference_row(MEANS, test, "reference", method=f"teacher ({teacher.variant})", seeds=1))
    tables = [Table("means", f"{variant}: {groups[0].members[0].protocol.title}", MEANS, rows)]
    scratch = scratch_of(groups)
    if scratch is not None and len(groups) > 1:
        compared = differences(groups, scratch, test.epe3d if test else None)
        rows = [row_of(DIFFERENCES, difference) for difference in compared]
        tables.append(Table("differences", f"{variant}: differences from scratch", DIFFERENCES, rows, DIFFERENCE_NOTES))
    return tables


def teacher_of(groups: Sequence[Group]) -> Teacher | None:
    """The teacher of the methods, if it was evaluated under their protocol."""
    tests = (one for group in groups if is_method(group.record) for one in group.members if one.is_final_test)
    return next((teacher for one in tests if (teacher := one.record.teacher) and teacher.test), None)


def _tables_by_class(variant: str, groups: Sequence[Group], by: str, problems: list[str]) -> list[Table]:
    """The differences for each class of a partition; what is missing is added to `problems`."""
    scratch = scratch_of(groups)
    if scratch is None or len(groups) < 2:
        return []
    members = [one for group in groups for one in group.members]
    first = next((table for one in members if (table := one.evaluation.classes(by))), None)
    lacking = [one.run.name for one in members if not (first and first.is_like(one.evaluation.classes(by)))]
    if first is None and PARTITIONS[by].needs_categories:
        problems.append(f"differences by {by}: the test data has no categories")
        return []
    if first is None or lacking:
        fault = f"{', '.join(lacking[:5])} measured without them or on other points; repeat `bpfn eval`"
        problems.append(f"differences by {by} of {variant}: {fault}")
        return []
    rows = []
    for index, (name, points) in enumerate(zip(first.classes, first.points, strict=True)):
        measure = Measure(by, index)
        if not points:
            rows.append((len(groups), index, reference_row(BY_CLASS, (), "", name=name, points=0)))
            continue
        teachers = (measure.error(one, TEACHER) for one in members if is_method(one.record))
        teacher = next((error for error in teachers if error is not None), None)
        for place, one in enumerate(differences(groups, scratch, teacher, measure)):
            rows.append((place, index, row_of(BY_CLASS, replace(one, name=name, points=points))))
    drawn = [row for *_, row in sorted(rows, key=lambda row: row[:2])]
    title = f"{variant}: differences from scratch by {PARTITIONS[by].meaning}"
    ego = next((known for one in members if (known := one.evaluation.ego_motion)), None)
    notes = [*BY_CLASS_NOTES, *([motion_note(ego)] if ego and by not in ("category", "range") else [])]
    return [Table(f"differences_{by}", title, BY_CLASS, drawn, notes)]


def scratch_of(groups: Sequence[Group]) -> Group | None:
    """The row that the others are compared with, if it was trained."""
    return next((group for group in groups if group.label == SCRATCH), None)


def _groups(results: Sequence[Result]) -> list[Group]:
    members: dict[str, list[Result]] = {}
    for one in sorted(results, key=lambda one: one.record.seed):
        members.setdefault(method_label(one.record), []).append(one)
    return sorted((Group(label, found) for label, found in members.items()), key=_place)


def _place(group: Group) -> tuple[int, int, str]:
    kind = group.record.control or ("method" if is_method(group.record) else SCRATCH)
    return RANKS.get(kind, len(RANKS)), method_rank(group.record.method), group.label
