# SPDX-License-Identifier: MIT
"""The tables of a study: means over seeds, and paired differences to training from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bpfn_cli.data.datasets.scenes import sequence_of
from bpfn_cli.metrics.statistics import SIGNIFICANCE, Paired, hierarchical_interval, holm, paired, pairs_needed
from bpfn_cli.reporting.accuracy import METHOD_MEANINGS, Protocol
from bpfn_cli.reporting.layout import METRICS, Column, Report, Row, Table, Value, row_of
from bpfn_cli.runs.results import Evaluation, Run, RunResults, Teacher

SCRATCH = "scratch"
CONTROLS = {
    "equal_time": "scratch, equal time",
    "same_width_teacher": "same-width teacher",
    "random_teacher": "random teacher",
    "shuffled_teacher": "shuffled teacher",
}

MEANS = (
    Column("method", "Method"),
    Column("seeds", "Seeds", "d"),
    *METRICS,
    Column("epe3d_deviation", "Deviation [m]", ".4f"),
    Column("epe3d_dynamic", "Dynamic [m]", ".4f"),
    Column("epe3d_static", "Static [m]", ".4f"),
    Column("train_minutes", "Training", ".1f", " min"),
    Column("epochs", "Epochs", "d", detail=1),
    Column("parameters", "Parameters", ",d", detail=2),
    Column("module_macs", "MACs, modules", ".4g", detail=3),
)
DIFFERENCES = (
    Column("method", "Method"),
    Column("pairs", "Pairs", "d"),
    Column("difference", "To scratch [m]", "+.4f"),
    Column("low", "from", "+.4f"),
    Column("high", "to", "+.4f"),
    Column("low_scenes", "Seeds and scenes: from", "+.4f"),
    Column("high_scenes", "to", "+.4f"),
    Column("pairs_needed", "Pairs needed", ",d"),
    Column("p", "Sign-flip p"),
    Column("p_holm", "Holm p"),
    Column("to_equal_time", "To equal time [m]", "+.4f"),
    Column("gap_closed_percent", "Gap closed", ".0f", " %"),
)


@dataclass(frozen=True)
class Trained:
    """One finished training of a study and its evaluation."""

    run: Run
    evaluation: Evaluation

    @property
    def key(self) -> tuple[str, Protocol]:
        """What trainings must share to stand in one table."""
        return self.run.record.variant, Protocol.of(self.evaluation)

    @property
    def epe3d(self) -> float:
        return self.evaluation.model.epe3d

    @property
    def label(self) -> str:
        record = self.run.record
        if record.control is None:
            return record.method
        named = CONTROLS.get(record.control, record.control)
        method = record.method.removesuffix("+random-teacher").removesuffix("+shuffled-teacher")
        return named if method == SCRATCH else f"{method}, {named}"

    @property
    def is_method(self) -> bool:
        return self.run.record.control is None and self.run.record.method != SCRATCH


@dataclass(frozen=True)
class Group:
    """The trainings of one row: equal but for their seed."""

    label: str
    members: tuple[Trained, ...]

    @property
    def first(self) -> Trained:
        return self.members[0]

    @property
    def by_seed(self) -> dict[int, Trained]:
        return {one.run.record.seed: one for one in self.members}

    def mean(self, values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None


def comparison_report(results: RunResults) -> Report:
    """The tables of all finished trainings of a study: two for each variant and protocol."""
    trained = list(_trained(results.runs))
    tables: list[Table] = []
    for key in sorted({one.key for one in trained}):
        tables += _tables(*key, [one for one in trained if one.key == key])
    message = None if tables else f"No finished training of a study in {results.folder}."
    return Report(tuple(tables), _notes(trained) if tables else (), results.problems, message)


def _trained(runs: Sequence[Run]) -> Iterator[Trained]:
    """The last finished run of each cell, under the protocol that most of them share: that of the study."""
    cells: dict[str, Run] = {}
    for run in runs:
        if run.complete and run.record.cell is not None:
            cells[run.record.cell] = run
    protocols = Counter(Protocol.of(one) for run in cells.values() for one in dict.fromkeys(run.evaluations))
    if not protocols:
        return
    shared = max(sorted(protocols), key=lambda protocol: protocols[protocol])
    for run in cells.values():
        found = [one for one in run.evaluations if Protocol.of(one) == shared]
        if found:
            yield Trained(run, found[0])


def _groups(trained: Sequence[Trained]) -> list[Group]:
    """One a row: scratch, its control of equal time, the same-width teacher, methods, controls (LOSSES.md 2.6)."""
    labels = sorted(dict.fromkeys(one.label for one in trained), key=lambda label: _rank(label, trained))
    return [
        Group(label, tuple(sorted((one for one in trained if one.label == label), key=lambda one: one.run.record.seed)))
        for label in labels
    ]


def _rank(label: str, trained: Sequence[Trained]) -> tuple[int, int]:
    one = next(one for one in trained if one.label == label)
    control = one.run.record.control
    ranks = {None: 3 if one.is_method else 0, "equal_time": 1, "same_width_teacher": 2}
    methods = list(METHOD_MEANINGS)
    method = one.run.record.method
    return ranks.get(control, 4), methods.index(method) if method in methods else len(methods)


def _tables(variant: str, protocol: Protocol, trained: Sequence[Trained]) -> list[Table]:
    teacher = _teacher_of_methods(trained)
    groups = _groups(trained)
    scratch = next((group for group in groups if group.label == SCRATCH), None)
    rows = [_mean_row(group) for group in groups]
    means = Table("means", f"{variant}: {protocol.title}", MEANS, (*_teacher_row(teacher), *rows))
    if scratch is None or len(groups) == 1:
        return [means]
    epe3d = teacher.test.epe3d if teacher is not None and teacher.test is not None else None
    return [means, _difference_table(variant, groups, scratch, epe3d)]


def _teacher_row(teacher: Teacher | None) -> tuple[Row, ...]:
    if teacher is None or teacher.test is None:
        return ()
    metrics = {metric.key: getattr(teacher.test, metric.key) for metric in METRICS}
    return (row_of(MEANS, {"method": f"teacher ({teacher.variant})", "seeds": 1, **metrics}, "reference"),)


def _teacher_of_methods(trained: Sequence[Trained]) -> Teacher | None:
    """The teacher of the methods, with its metrics by the evaluator that measured them."""
    teachers = (one.run.record.teacher for one in trained if one.is_method)
    return next((teacher for teacher in teachers if teacher is not None and teacher.test is not None), None)


def _mean_row(group: Group) -> Row:
    record, members = group.first.run.record, group.members
    known: dict[str, Value] = {"method": group.label, "seeds": len(members)}
    for metric in METRICS:
        known[metric.key] = group.mean(getattr(one.evaluation.model, metric.key) for one in members)
    known["epe3d_deviation"] = float(np.std([one.epe3d for one in members], ddof=1)) if len(members) > 1 else None
    motions = [one.evaluation.motion for one in members]
    known["epe3d_dynamic"] = group.mean(motion.epe3d_dynamic for motion in motions if motion)
    known["epe3d_static"] = group.mean(motion.epe3d_static for motion in motions if motion)
    seconds = group.mean(one.run.record.train_seconds for one in members)
    known["train_minutes"] = None if seconds is None else seconds / 60
    known["epochs"] = record.epochs
    if record.complexity is not None:
        known |= {"parameters": record.complexity.parameters, "module_macs": record.complexity.module_macs}
    return row_of(MEANS, known)


def _difference_table(variant: str, groups: Sequence[Group], scratch: Group, teacher: float | None) -> Table:
    compared = [(group, _paired_with(group, scratch)) for group in groups if group is not scratch]
    found = [(group, of_group) for group, of_group in compared if of_group is not None]
    methods = [(group, of_group.p) for group, of_group in found if group.first.is_method and of_group.p is not None]
    corrected = dict(
        zip([group.label for group, _ in methods], holm([p for _, p in methods if p is not None]), strict=True)
    )
    equal_time = next((group for group in groups if group.first.run.record.control == "equal_time"), None)
    rows = []
    for group, of_group in found:
        known: dict[str, Value] = {
            "method": group.label,
            "pairs": of_group.pairs,
            "difference": of_group.mean,
            "low": of_group.low,
            "high": of_group.high,
            "pairs_needed": _pairs_needed(of_group),
            "p": _p(of_group),
            "p_holm": f"{corrected[group.label]:.3f}" if group.label in corrected else None,
            "gap_closed_percent": _gap_closed(group, scratch, teacher),
        }
        if equal_time is not None and group is not equal_time:
            to_equal = _paired_with(group, equal_time)
            known["to_equal_time"] = None if to_equal is None else to_equal.mean
        known |= _scene_interval(group, scratch)
        rows.append(row_of(DIFFERENCES, known))
    notes = (
        "Differences of EPE3D in metres, seed by seed: negative is better than scratch. from, to: 95 % interval, BCa "
        "bootstrap over seeds; then over seeds and scenes.",
        f"Sign-flip p: with k pairs none below 2 / 2^k is possible, so {SIGNIFICANCE:g} takes six. Holm p: corrected "
        "for the number of methods; controls are not counted.",
        "Pairs needed: seeds by which a difference as large as the one found would show at p 0.05 in 8 of 10 studies.",
        "Gap closed: of the way from scratch to the teacher; blank where that is within two deviations of scratch.",
    )
    return Table("differences", f"{variant}: differences to scratch", DIFFERENCES, tuple(rows), notes)


def _paired_with(group: Group, reference: Group) -> Paired | None:
    shared = sorted(group.by_seed.keys() & reference.by_seed.keys())
    if not shared:
        return None
    return paired([group.by_seed[seed].epe3d - reference.by_seed[seed].epe3d for seed in shared])


def _scene_interval(group: Group, reference: Group) -> dict[str, Value]:
    """Over seeds and scenes, where both runs of every pair list the same scenes."""
    shared = sorted(group.by_seed.keys() & reference.by_seed.keys())
    pairs = [(group.by_seed[seed].evaluation.scenes, reference.by_seed[seed].evaluation.scenes) for seed in shared]
    names = [scene.name for scene in pairs[0][0]] if pairs else []
    if not names or any([scene.name for scene in side] != names for pair in pairs for side in pair):
        return {}
    apart = np.array([[a.model - b.model for a, b in zip(*pair, strict=True)] for pair in pairs])
    kind = group.first.evaluation.dataset.kind
    sequences = [sequence_of(kind, name) for name in names]
    low, high = hierarchical_interval(apart, sequences)
    return {"low_scenes": low, "high_scenes": high}


def _pairs_needed(found: Paired) -> int | None:
    return pairs_needed(found.deviation, found.mean) if found.deviation and found.mean else None


def _p(found: Paired) -> str:
    return f"{found.p:.3f}" if found.p is not None else "not testable"


def _gap_closed(group: Group, scratch: Group, teacher: float | None) -> float | None:
    if teacher is None or len(scratch.members) < 2:
        return None
    values = [one.epe3d for one in scratch.members]
    gap = float(np.mean(values)) - teacher
    if gap <= 2 * float(np.std(values, ddof=1)):
        return None
    to_scratch = _paired_with(group, scratch)
    return None if to_scratch is None else -100 * to_scratch.mean / gap


def _notes(trained: Sequence[Trained]) -> tuple[str, ...]:
    notes = [
        "Seeds change initialization, order and augmentation alike in all rows; one teacher serves all seeds.",
        "Deviation: of EPE3D over seeds. Dynamic, static: EPE3D of points that move by themselves and of the others.",
    ]
    if any(one.evaluation.dataset.kind.startswith("synthetic") for one in trained):
        notes.append("Synthetic scenes are not FlyingThings3D: these rows rank methods among themselves.")
    return tuple(notes)
