# SPDX-License-Identifier: MIT
"""The tables of a study: means over seeds, and paired differences to training from scratch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bpfn_cli.data.datasets import is_synthetic_kind, sequence_of
from bpfn_cli.metrics.statistics import SIGNIFICANCE, Paired, hierarchical_interval, holm, paired, pairs_needed
from bpfn_cli.reporting.accuracy import SYNTHETIC_NOTE, TRAINED_ON_TEST, Result, comparable, results_of
from bpfn_cli.reporting.methods import method_rank
from bpfn_cli.reporting.tables import METRICS, Column, Report, Table, reference_row, row_of
from bpfn_cli.runs.record import RunRecord
from bpfn_cli.runs.results import Run, RunResults

SCRATCH = "scratch"
# Order of the rows: scratch, its control of equal time, the same-width teacher, the methods, the other controls.
RANKS = {SCRATCH: 0, "equal_time": 1, "same_width_teacher": 2, "method": 3}


@dataclass(frozen=True)
class Group:
    """A row about results that differ only in their seed, by which they are sorted."""

    label: str
    members: list[Result]

    @property
    def record(self) -> RunRecord:
        return self.members[0].record

    @property
    def epe3d(self) -> list[float]:
        return [one.evaluation.model.epe3d for one in self.members]

    @property
    def deviation(self) -> float | None:
        """Standard deviation of EPE3D over seeds."""
        return float(np.std(self.epe3d, ddof=1)) if len(self.members) > 1 else None

    @property
    def train_minutes(self) -> float | None:
        seconds = self.mean(lambda one: one.record.train_seconds)
        return None if seconds is None else seconds / 60

    def mean(self, value: Callable[[Result], float | None]) -> float | None:
        """Mean over the seeds that have a value."""
        known = [found for one in self.members if (found := value(one)) is not None]
        return float(np.mean(known)) if known else None

    def metric(self, name: str) -> float | None:
        return self.mean(lambda one: one.metric(name))

    def motion(self, name: str) -> float | None:
        """Mean EPE3D of moving or of static points."""
        return self.mean(lambda one: getattr(one.evaluation.motion, name, None))

    def size(self, name: str) -> int | None:
        return getattr(self.record.complexity, name, None)

    def pairs(self, reference: Group) -> list[tuple[Result, Result]]:
        """Results of this group and of `reference` with the same seed."""
        others = {one.record.seed: one for one in reference.members}
        return [(one, others[one.record.seed]) for one in self.members if one.record.seed in others]


@dataclass(frozen=True)
class Difference:
    """A row about the EPE3D of a group minus that of scratch, seed by seed; `gap_closed` in percent."""

    label: str
    paired: Paired
    scenes: tuple[float | None, float | None]
    to_equal_time: Paired | None
    gap_closed: float | None
    p_holm: float | None

    @property
    def pairs_needed(self) -> int | None:
        deviation, mean = self.paired.deviation, self.paired.mean
        return pairs_needed(deviation, mean) if deviation and mean else None


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
    Column("module_macs", "MACs, modules", lambda row: row.size("module_macs"), ".4g", detail=6),
]
# For rows about a `Difference`.
DIFFERENCES = [
    Column("method", "Method", lambda row: row.label),
    Column("pairs", "Pairs", lambda row: row.paired.pairs, "d"),
    Column("difference", "To scratch", lambda row: row.paired.mean, "+.4f", "m"),
    Column("low", "from", lambda row: row.paired.low, "+.4f"),
    Column("high", "to", lambda row: row.paired.high, "+.4f"),
    Column("low_scenes", "Seeds and scenes: from", lambda row: row.scenes[0], "+.4f", detail=4),
    Column("high_scenes", "to", lambda row: row.scenes[1], "+.4f", detail=3),
    Column("pairs_needed", "Pairs needed", lambda row: row.pairs_needed, ",d", detail=5),
    Column("p", "Sign-flip p", lambda row: "not testable" if row.paired.p is None else f"{row.paired.p:.3f}", detail=1),
    Column("p_holm", "Holm p", lambda row: None if row.p_holm is None else f"{row.p_holm:.3f}", detail=2),
    Column(
        "to_equal_time",
        "To equal time",
        lambda row: row.to_equal_time and row.to_equal_time.mean,
        "+.4f",
        "m",
        detail=6,
    ),
    Column("gap_closed_percent", "Gap closed", lambda row: row.gap_closed, ".0f", "%", detail=7),
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

NOTES = (
    "A seed sets initialization, order and augmentation in the same way for all rows; all seeds share one teacher.",
    "Deviation: of EPE3D over seeds. Dynamic, static: EPE3D of moving and of static points.",
)


def comparison_report(results: RunResults) -> Report:
    """The tables of the finished trainings of a study: means and differences for each variant."""
    trained = groups_by_variant(results)
    if not trained:
        return Report((), problems=results.problems, message=f"No finished training of a study in {results.folder}.")
    tables = [table for variant, groups in trained.items() for table in _tables(variant, groups)]
    first = next(iter(trained.values()))[0].members[0]  # all have one protocol
    notes = [*NOTES, *([SYNTHETIC_NOTE] if is_synthetic_kind(first.evaluation.dataset.kind) else [])]
    if first.is_training_error:
        notes.append(TRAINED_ON_TEST.format("all networks"))
    return Report(tuple(tables), tuple(notes), results.problems)


def groups_by_variant(results: RunResults) -> dict[str, list[Group]]:
    """The rows of the finished trainings of a study, in the order of the tables."""
    trained = _study_results(results.runs)
    variants = sorted({one.record.variant for one in trained})
    return {variant: _groups([one for one in trained if one.record.variant == variant]) for variant in variants}


def _study_results(runs: Sequence[Run]) -> list[Result]:
    """The last finished run of each cell, under the protocol of the study, which is the one that most of them share."""
    cells = {run.record.cell: run for run in runs if run.complete and run.record.cell is not None}
    results = [one for run in cells.values() for one in results_of(run)]
    found: dict[str | None, Result] = {}
    for one in max(comparable(results), key=len, default=()):
        found.setdefault(one.record.cell, one)
    return [found[cell] for cell in cells if cell in found]


def _tables(variant: str, groups: Sequence[Group]) -> list[Table]:
    rows = [row_of(MEANS, group) for group in groups]
    # The teacher of the methods, if it was evaluated under their protocol.
    teachers = (one.record.teacher for group in groups if _is_method(group.record) for one in group.members)
    teacher, test = next(((one.variant, one.test) for one in teachers if one and one.test), ("", None))
    if test:
        rows.insert(0, reference_row(MEANS, test, "reference", method=f"teacher ({teacher})", seeds=1))
    tables = [Table("means", f"{variant}: {groups[0].members[0].protocol.title}", MEANS, rows)]
    scratch = next((group for group in groups if group.label == SCRATCH), None)
    if scratch is not None and len(groups) > 1:
        differences = _differences(groups, scratch, test.epe3d if test else None)
        rows = [row_of(DIFFERENCES, difference) for difference in differences]
        tables.append(Table("differences", f"{variant}: differences to scratch", DIFFERENCES, rows, DIFFERENCE_NOTES))
    return tables


def _is_method(record: RunRecord) -> bool:
    return record.control is None and record.method != SCRATCH


def _groups(results: Sequence[Result]) -> list[Group]:
    members: dict[str, list[Result]] = {}
    for one in sorted(results, key=lambda one: one.record.seed):
        members.setdefault(_label(one.record), []).append(one)
    return sorted((Group(label, found) for label, found in members.items()), key=_place)


def _label(record: RunRecord) -> str:
    if record.control is None:
        return record.method
    method = re.sub(r"\+(random-teacher|shuffled-teacher|random-adapter)$", "", record.method)
    return f"{method}, {record.control.replace('same_width', 'same-width').replace('_', ' ')}"


def _place(group: Group) -> tuple[int, int, str]:
    kind = group.record.control or ("method" if _is_method(group.record) else SCRATCH)
    return RANKS.get(kind, len(RANKS)), method_rank(group.record.method), group.label


def _differences(groups: Sequence[Group], scratch: Group, teacher: float | None) -> list[Difference]:
    compared = [(group, found) for group in groups if (found := _paired(group, scratch))]
    tested = {group.label: found.p for group, found in compared if _is_method(group.record) and found.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    equal_time = next((group for group in groups if group.record.control == "equal_time"), None)
    return [
        Difference(
            group.label,
            found,
            scenes=_scene_interval(group, scratch),
            to_equal_time=_paired(group, equal_time),
            gap_closed=_gap_closed(found, scratch, teacher),
            p_holm=corrected.get(group.label),
        )
        for group, found in compared
    ]


def _paired(group: Group, reference: Group | None) -> Paired | None:
    if reference is None or reference is group:
        return None
    differences = [one.evaluation.model.epe3d - other.evaluation.model.epe3d for one, other in group.pairs(reference)]
    return paired(differences) if differences else None


def _scene_interval(group: Group, reference: Group) -> tuple[float | None, float | None]:
    """Interval over seeds and scenes, if both runs of every pair list the same scenes."""
    pairs = [(one.evaluation.scenes, other.evaluation.scenes) for one, other in group.pairs(reference)]
    names = [scene.name for scene in pairs[0][0]]
    if not names or any([scene.name for scene in side] != names for pair in pairs for side in pair):
        return None, None
    differences = np.array([[a.model - b.model for a, b in zip(*pair, strict=True)] for pair in pairs])
    kind = group.members[0].evaluation.dataset.kind
    return hierarchical_interval(differences, [sequence_of(kind, name) for name in names])


def _gap_closed(to_scratch: Paired, scratch: Group, teacher: float | None) -> float | None:
    if teacher is None or scratch.deviation is None:
        return None
    gap = float(np.mean(scratch.epe3d)) - teacher
    return -100 * to_scratch.mean / gap if gap > 2 * scratch.deviation else None
