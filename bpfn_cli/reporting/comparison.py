# SPDX-License-Identifier: MIT
"""The tables of a study: means over seeds, and paired differences to training from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bpfn_cli.data.datasets import is_synthetic_kind, sequence_of
from bpfn_cli.metrics.statistics import SIGNIFICANCE, Paired, hierarchical_interval, holm, paired, pairs_needed
from bpfn_cli.reporting.accuracy import Result, results_of
from bpfn_cli.reporting.methods import method_rank
from bpfn_cli.reporting.tables import METRICS, Column, Report, Row, Table, reference_row, row_of
from bpfn_cli.runs.record import Teacher
from bpfn_cli.runs.results import Run, RunResults

SCRATCH = "scratch"
CONTROLS = {
    "equal_time": "scratch, equal time",
    "same_width_teacher": "same-width teacher",
    "random_teacher": "random teacher",
    "shuffled_teacher": "shuffled teacher",
}
# Order of the rows: scratch, its control of equal time, the same-width teacher, the methods, the other controls.
RANKS = {SCRATCH: 0, "equal_time": 1, "same_width_teacher": 2, "method": 3}


@dataclass(frozen=True)
class Group:
    """A row about results that differ only in their seed, which they are sorted by."""

    label: str
    members: tuple[Result, ...]

    @property
    def first(self) -> Result:
        return self.members[0]

    @property
    def control(self) -> str | None:
        return self.first.record.control

    @property
    def is_method(self) -> bool:
        return _is_method(self.first)

    @property
    def epe3d(self) -> dict[int, float]:
        """EPE3D by seed."""
        return {one.record.seed: one.epe3d for one in self.members}

    @property
    def deviation(self) -> float | None:
        """Standard deviation of EPE3D over seeds."""
        return float(np.std([one.epe3d for one in self.members], ddof=1)) if len(self.members) > 1 else None

    @property
    def train_minutes(self) -> float | None:
        seconds = _mean(one.record.train_seconds for one in self.members)
        return None if seconds is None else seconds / 60

    def metric(self, name: str) -> float | None:
        """Mean of a metric over seeds."""
        return _mean(one.metric(name) for one in self.members)

    def motion(self, name: str) -> float | None:
        """Mean over seeds of the EPE3D of moving or of static points."""
        return _mean(getattr(one.evaluation.motion, name, None) for one in self.members)

    def size(self, name: str) -> int | None:
        return getattr(self.first.record.complexity, name, None)


@dataclass(frozen=True)
class Difference:
    """A row about the differences of EPE3D between a group and scratch, seed by seed.

    Attributes:
        scenes: 95 % interval over seeds and scenes, if known. to_equal_time: mean difference to scratch of equal time.
        gap_closed: how far the method gets from scratch to the teacher, in percent. p_holm: None for controls.
    """

    group: Group
    paired: Paired
    scenes: tuple[float | None, float | None]
    to_equal_time: float | None
    gap_closed: float | None
    p_holm: float | None

    @property
    def pairs_needed(self) -> int | None:
        deviation, mean = self.paired.deviation, self.paired.mean
        return pairs_needed(deviation, mean) if deviation and mean else None

    @property
    def p(self) -> str:
        return "not testable" if self.paired.p is None else f"{self.paired.p:.3f}"


# Of rows about a `Group`. The teacher has only metrics.
MEANS = [
    Column("method", "Method", lambda row: row.label),
    Column("seeds", "Seeds", lambda row: len(row.members), "d"),
    *METRICS,
    Column("epe3d_deviation", "Deviation", lambda row: row.deviation, ".4f", "m"),
    Column("epe3d_dynamic", "Dynamic", lambda row: row.motion("epe3d_dynamic"), ".4f", "m"),
    Column("epe3d_static", "Static", lambda row: row.motion("epe3d_static"), ".4f", "m"),
    Column("train_minutes", "Training", lambda row: row.train_minutes, ".1f", "min"),
    Column("epochs", "Epochs", lambda row: row.first.record.epochs, "d", detail=1),
    Column("parameters", "Parameters", lambda row: row.size("parameters"), ",d", detail=2),
    Column("module_macs", "MACs, modules", lambda row: row.size("module_macs"), ".4g", detail=3),
]
# Of rows about a `Difference`.
DIFFERENCES = [
    Column("method", "Method", lambda row: row.group.label),
    Column("pairs", "Pairs", lambda row: row.paired.pairs, "d"),
    Column("difference", "To scratch", lambda row: row.paired.mean, "+.4f", "m"),
    Column("low", "from", lambda row: row.paired.low, "+.4f"),
    Column("high", "to", lambda row: row.paired.high, "+.4f"),
    Column("low_scenes", "Seeds and scenes: from", lambda row: row.scenes[0], "+.4f"),
    Column("high_scenes", "to", lambda row: row.scenes[1], "+.4f"),
    Column("pairs_needed", "Pairs needed", lambda row: row.pairs_needed, ",d"),
    Column("p", "Sign-flip p", lambda row: row.p),
    Column("p_holm", "Holm p", lambda row: None if row.p_holm is None else f"{row.p_holm:.3f}"),
    Column("to_equal_time", "To equal time", lambda row: row.to_equal_time, "+.4f", "m"),
    Column("gap_closed_percent", "Gap closed", lambda row: row.gap_closed, ".0f", "%"),
]
DIFFERENCE_NOTES = (
    "Differences of EPE3D in metres, seed by seed; negative is better than scratch. from, to: 95 % BCa bootstrap "
    "interval, first over seeds, then over seeds and scenes.",
    f"Sign-flip p: with k pairs it cannot be below 2 / 2^k, so p < {SIGNIFICANCE:g} needs six. Holm p: corrected for "
    "the number of methods, not counting controls.",
    "Pairs needed: number of seeds to find a difference of this size with 80 % power at p 0.05.",
    "Gap closed: share of the way from scratch to the teacher; blank if the teacher is within two deviations of "
    "scratch.",
)


def comparison_report(results: RunResults) -> Report:
    """The tables of the finished trainings of a study: means and differences for each variant."""
    trained = _study_results(results.runs)
    tables: list[Table] = []
    for variant in sorted({one.record.variant for one in trained}):
        tables += _tables(variant, [one for one in trained if one.record.variant == variant])
    message = None if tables else f"No finished training of a study in {results.folder}."
    return Report(tuple(tables), _notes(trained) if tables else (), results.problems, message)


def _study_results(runs: Sequence[Run]) -> list[Result]:
    """The last finished run of each cell, under the protocol of the study, which is the one that most of them share."""
    cells = {run.record.cell: run for run in runs if run.complete and run.record.cell is not None}
    results = [results_of(run) for run in cells.values()]
    protocols = Counter(one.protocol for found in results for one in found)
    shared = max(sorted(protocols), key=lambda protocol: protocols[protocol], default=None)
    of_study = [[one for one in found if one.protocol == shared] for found in results]
    return [found[0] for found in of_study if found]


def _tables(variant: str, results: Sequence[Result]) -> list[Table]:
    teacher = _teacher_of_methods(results)
    groups = _groups(results)
    rows = (*_teacher_row(teacher), *(row_of(MEANS, group) for group in groups))
    means = Table("means", f"{variant}: {results[0].protocol.title}", tuple(MEANS), rows)
    scratch = next((group for group in groups if group.label == SCRATCH), None)
    if scratch is None or len(groups) == 1:
        return [means]
    epe3d = None if teacher is None or teacher.test is None else teacher.test.epe3d
    differences = _differences(groups, scratch, epe3d)
    return [
        means,
        Table(
            kind="differences",
            title=f"{variant}: differences to scratch",
            columns=tuple(DIFFERENCES),
            rows=tuple(row_of(DIFFERENCES, difference) for difference in differences),
            notes=DIFFERENCE_NOTES,
        ),
    ]


def _groups(results: Sequence[Result]) -> list[Group]:
    members: dict[str, list[Result]] = {}
    for one in sorted(results, key=lambda one: one.record.seed):
        members.setdefault(_label(one), []).append(one)
    groups = [Group(label, tuple(found)) for label, found in members.items()]
    return sorted(groups, key=_place)


def _label(one: Result) -> str:
    record = one.record
    if record.control is None:
        return record.method
    control = CONTROLS.get(record.control, record.control)
    method = record.method.removesuffix("+random-teacher").removesuffix("+shuffled-teacher")
    return control if method == SCRATCH else f"{method}, {control}"


def _is_method(one: Result) -> bool:
    return one.record.control is None and one.record.method != SCRATCH


def _place(group: Group) -> tuple[int, int]:
    kind = group.control or ("method" if group.is_method else SCRATCH)
    return RANKS.get(kind, 4), method_rank(group.first.record.method)


def _teacher_of_methods(results: Sequence[Result]) -> Teacher | None:
    """The teacher of the methods, if it was evaluated under their protocol."""
    teachers = (one.record.teacher for one in results if _is_method(one))
    return next((teacher for teacher in teachers if teacher is not None and teacher.test is not None), None)


def _teacher_row(teacher: Teacher | None) -> tuple[Row, ...]:
    if teacher is None or teacher.test is None:
        return ()
    return (reference_row(MEANS, teacher.test, "reference", method=f"teacher ({teacher.variant})", seeds=1),)


def _differences(groups: Sequence[Group], scratch: Group, teacher: float | None) -> list[Difference]:
    compared = [(group, found) for group in groups if group is not scratch and (found := _paired(group, scratch))]
    tested = {group.label: found.p for group, found in compared if group.is_method and found.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    equal_time = next((group for group in groups if group.control == "equal_time"), None)
    return [
        Difference(
            group,
            found,
            scenes=_scene_interval(group, scratch),
            to_equal_time=_mean_difference(group, equal_time),
            gap_closed=_gap_closed(found, scratch, teacher),
            p_holm=corrected.get(group.label),
        )
        for group, found in compared
    ]


def _paired(group: Group, reference: Group) -> Paired | None:
    values, others = group.epe3d, reference.epe3d
    differences = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
    return paired(differences) if differences else None


def _mean_difference(group: Group, reference: Group | None) -> float | None:
    found = None if reference is None or reference is group else _paired(group, reference)
    return None if found is None else found.mean


def _scene_interval(group: Group, reference: Group) -> tuple[float | None, float | None]:
    """Interval over seeds and scenes, if both runs of every pair list the same scenes."""
    others = {one.record.seed: one.evaluation.scenes for one in reference.members}
    own = {one.record.seed: one.evaluation.scenes for one in group.members}
    pairs = [(own[seed], others[seed]) for seed in sorted(own.keys() & others.keys())]
    names = [scene.name for scene in pairs[0][0]] if pairs else []
    if not names or any([scene.name for scene in side] != names for pair in pairs for side in pair):
        return None, None
    differences = np.array([[a.model - b.model for a, b in zip(*pair, strict=True)] for pair in pairs])
    kind = group.first.evaluation.dataset.kind
    return hierarchical_interval(differences, [sequence_of(kind, name) for name in names])


def _gap_closed(to_scratch: Paired, scratch: Group, teacher: float | None) -> float | None:
    if teacher is None or scratch.deviation is None:
        return None
    gap = float(np.mean(list(scratch.epe3d.values()))) - teacher
    return -100 * to_scratch.mean / gap if gap > 2 * scratch.deviation else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _notes(results: Sequence[Result]) -> tuple[str, ...]:
    notes = [
        "A seed sets initialization, order and augmentation in the same way for all rows; all seeds share one teacher.",
        "Deviation: of EPE3D over seeds. Dynamic, static: EPE3D of moving and of static points.",
    ]
    if any(is_synthetic_kind(one.evaluation.dataset.kind) for one in results):
        notes.append("Synthetic scenes are not FlyingThings3D: compare these rows only with each other.")
    return tuple(notes)
