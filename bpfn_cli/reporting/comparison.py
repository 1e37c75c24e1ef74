# SPDX-License-Identifier: MIT
"""The tables of a study: means over seeds, and paired differences from training from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bpfn_cli.data.datasets import is_synthetic_kind
from bpfn_cli.metrics.classes import PARTITIONS
from bpfn_cli.metrics.result import TEACHER, EvaluationResult
from bpfn_cli.metrics.statistics import SIGNIFICANCE
from bpfn_cli.reporting.accuracy import SYNTHETIC_NOTE, training_notes
from bpfn_cli.reporting.classes import motion_note
from bpfn_cli.reporting.differences import ALL_POINTS, SCRATCH, Group, Measure, differences, is_method
from bpfn_cli.reporting.methods import method_rank
from bpfn_cli.reporting.rows import Protocol, Result, comparable, method_label, results_of
from bpfn_cli.reporting.tables import METRICS, Column, Report, Table, reference_row, row_of
from bpfn_cli.runs.record import RunRecord, Teacher
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
    "Differences of EPE3D in metres, seed by seed; negative is better than scratch. from, to: 95 % bootstrap "
    "intervals, BCa over seeds, then percentile over seeds and scenes; from three pairs on.",
    f"Sign-flip p: with k pairs it cannot be below 2 / 2^k, so p < {SIGNIFICANCE:g} needs six. Holm p: corrected for "
    "the number of methods, not counting controls.",
    "Pairs needed: number of seeds to find a difference of this size with 80 % power at p 0.05.",
    "Gap closed: share of the way from scratch to the teacher of the method; blank if that is within two deviations "
    "of scratch.",
)

NOTES = (
    "A seed sets initialization, order and augmentation in the same way for all rows; all seeds of a method share one "
    "teacher.",
    "Deviation: of EPE3D over seeds. Dynamic, static: EPE3D of moving and of static points.",
)


def comparison_report(results: RunResults, by: str | None = None) -> Report:
    """The tables of the finished trainings of a study: means and differences for each variant.

    Args: by: a partition of the points; adds the differences for each of its classes.
    """
    trained = groups_by_variant(results)
    if not trained:
        return Report((), problems=results.problems, message=f"No finished training of a study in {results.folder}.")
    problems = [*results.problems, *_left_out(results.runs)]
    tables = []
    for variant, groups in trained.items():
        teachers = Teachers.of_runs(groups, results.runs)
        tables += _tables(variant, groups, teachers)
        if by is not None:
            tables += _tables_by_class(variant, groups, teachers, by, problems)
    members = [one for groups in trained.values() for group in groups for one in group.members]
    kind = members[0].protocol.dataset  # all have one protocol
    notes = [*NOTES, *([SYNTHETIC_NOTE] if is_synthetic_kind(kind) else []), *training_notes(members)]
    return Report(tuple(tables), tuple(notes), tuple(problems))


def groups_by_variant(results: RunResults) -> dict[str, list[Group]]:
    """The rows of the finished trainings of a study, in the order of the tables."""
    trained = _study_results(results.runs)
    variants = sorted({one.record.variant for one in trained})
    return {variant: _groups([one for one in trained if one.record.variant == variant]) for variant in variants}


def _study_results(runs: Sequence[Run]) -> list[Result]:
    """The last finished run of each cell, under the protocol that most of them share; if several, that of the study."""
    results = _all_results(runs)
    groups = comparable(results)
    shared = max(groups, key=lambda group: (len(group), sum(one.is_final_test for one in group)), default=[])
    found = {one.record.cell: one for one in shared}
    return [found[cell] for cell in dict.fromkeys(one.record.cell for one in results) if cell in found]


def _all_results(runs: Sequence[Run]) -> list[Result]:
    """All evaluations of the last finished run of each cell."""
    cells = {run.record.cell: run for run in runs if run.complete and run.record.cell is not None}
    return [one for run in cells.values() for one in results_of(run) if one.is_deployed]


def _left_out(runs: Sequence[Run]) -> Iterator[str]:
    """A line for the trainings that were not measured as most are."""
    shared = _study_results(runs)
    known = {one.record.cell for one in shared}
    others: dict[str, list[str]] = {}
    for one in {one.record.cell: one for one in _all_results(runs) if one.record.cell not in known}.values():
        others.setdefault(one.protocol.title, []).append(one.run.name)
    for title, names in others.items():
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        yield f"left out: {listed}, measured on {title}; the others on {shared[0].protocol.title}"


@dataclass(frozen=True)
class Teachers:
    """The teachers of the methods of a variant.

    evaluations: of networks that the study trained itself, under the protocol of the methods.
    """

    groups: Sequence[Group]
    evaluations: Sequence[EvaluationResult]

    @classmethod
    def of_runs(cls, groups: Sequence[Group], runs: Sequence[Run]) -> Teachers:
        protocol = groups[0].members[0].protocol
        found = [one for run in runs for one in run.evaluations if Protocol.from_evaluation(one) == protocol]
        return cls(groups, found)

    @property
    def tested(self) -> list[Teacher]:
        """Those that were tested under the protocol of their methods."""
        found = [_teacher_of(group) for group in self.groups if is_method(group.record)]
        return list({one.sha256: one for one in found if one}.values())

    def error(self, group: Group, measure: Measure = ALL_POINTS) -> float | None:
        """Of the teacher of a method, in metres; for controls, that of the first method."""
        own = _teacher_of(group) if is_method(group.record) else None
        teacher = own or next(iter(self.tested), None)
        if teacher is None or teacher.test is None:
            return None
        if measure is ALL_POINTS:
            return teacher.test.epe3d
        taught = (one for other in self.groups for one in other.members if _has_teacher(one.record, teacher))
        errors = [measure.error_in(one.evaluation, TEACHER) for one in taught]
        errors += [measure.error_in(one) for one in self.evaluations if one.checkpoint.sha256 == teacher.sha256]
        return next((error for error in errors if error is not None), None)


def _teacher_of(group: Group) -> Teacher | None:
    """The teacher of a method, if it was tested with it."""
    known = (one.record.teacher for one in group.members if one.is_final_test)
    return next((teacher for teacher in known if teacher and teacher.test), None)


def _has_teacher(record: RunRecord, teacher: Teacher) -> bool:
    return record.control is None and record.teacher is not None and record.teacher.sha256 == teacher.sha256


def _tables(variant: str, groups: Sequence[Group], teachers: Teachers) -> list[Table]:
    rows = [
        reference_row(MEANS, one.test or (), "reference", method=f"teacher ({one.variant})", seeds=1)
        for one in teachers.tested
    ]
    rows += [row_of(MEANS, group) for group in groups]
    tables = [Table("means", f"{variant}: {groups[0].members[0].protocol.title}", MEANS, rows)]
    scratch = scratch_of(groups)
    if scratch is not None and len(groups) > 1:
        compared = differences(groups, scratch, teachers.error)
        rows = [row_of(DIFFERENCES, difference) for difference in compared]
        tables.append(Table("differences", f"{variant}: differences from scratch", DIFFERENCES, rows, DIFFERENCE_NOTES))
    return tables


def _tables_by_class(
    variant: str, groups: Sequence[Group], teachers: Teachers, by: str, problems: list[str]
) -> list[Table]:
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
        for place, one in enumerate(differences(groups, scratch, teachers.error, measure)):
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
