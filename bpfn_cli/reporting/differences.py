# SPDX-License-Identifier: MIT
"""Paired differences between the networks of a study: over all points, or over the points of a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bpfn_cli.data.datasets import sequence_of
from bpfn_cli.metrics.result import MODEL, EvaluationResult
from bpfn_cli.metrics.statistics import FEWEST, Paired, hierarchical_interval, holm, paired, pairs_needed
from bpfn_cli.reporting.rows import Result
from bpfn_cli.runs.record import RunRecord

SCRATCH = "scratch"


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
class Measure:
    """The error that is compared, in metres: over all points.

    partition, index: for the points of one class alone, which are then averaged over all scenes at once.
    """

    partition: str = ""
    index: int = 0

    def error(self, result: Result) -> float | None:
        """Of the network; None: not measured, or the class has no point."""
        return self.error_in(result.evaluation)

    def error_in(self, evaluation: EvaluationResult, predictor: str = MODEL) -> float | None:
        if not self.partition:
            row = evaluation.row(predictor)
            return None if row is None else row.epe3d
        table = evaluation.classes(self.partition)
        return None if table is None or predictor not in table.epe3d else table.epe3d[predictor][self.index]

    def scenes(self, result: Result) -> list[tuple[str, float, float]]:
        """Name, error and weight of each scene: the mean and 1, or the sum and the number of points of the class."""
        if not self.partition:
            return [(scene.name, scene.model, 1.0) for scene in result.evaluation.scenes]
        known = [
            (scene.name, scene.class_errors_m[self.partition], scene.class_points[self.partition])
            for scene in result.evaluation.scenes
            if self.partition in scene.class_errors_m and self.partition in scene.class_points
        ]
        is_whole = len(known) == len(result.evaluation.scenes)
        inside = all(self.index < min(len(errors), len(points)) for _, errors, points in known)
        return [(name, errors[self.index], points[self.index]) for name, errors, points in known if is_whole and inside]


ALL_POINTS = Measure()
TeacherError = Callable[["Group", Measure], float | None]


@dataclass(frozen=True)
class Difference:
    """A row about the error of a group minus that of scratch, seed by seed; `gap_closed` in percent.

    epe3d: mean error of the group in metres. points, name: of the class that is compared.
    """

    label: str
    paired: Paired
    scenes: tuple[float | None, float | None]
    to_equal_time: Paired | None
    gap_closed: float | None
    p_holm: float | None
    epe3d: float | None = None
    name: str = ""
    points: int = 0

    @property
    def pairs_needed(self) -> int | None:
        deviation, mean = self.paired.deviation, self.paired.mean
        return pairs_needed(deviation, mean) if deviation and mean else None


def is_method(record: RunRecord) -> bool:
    return record.control is None and record.method != SCRATCH


def differences(
    groups: Sequence[Group], scratch: Group, teacher_error: TeacherError, measure: Measure = ALL_POINTS
) -> list[Difference]:
    """To scratch, of every group that shares a seed with it. Args: teacher_error: of a group's teacher, in metres."""
    compared = [(group, found) for group in groups if (found := _paired(group, scratch, measure))]
    tested = {group.label: found.p for group, found in compared if is_method(group.record) and found.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    equal_time = next((group for group in groups if group.record.control == "equal_time"), None)
    return [
        Difference(
            group.label,
            found,
            scenes=_scene_interval(group, scratch, measure),
            to_equal_time=_paired(group, equal_time, measure),
            gap_closed=_gap_closed(found, scratch, teacher_error(group, measure), measure),
            p_holm=corrected.get(group.label),
            epe3d=group.mean(measure.error),
        )
        for group, found in compared
    ]


def _paired(group: Group, reference: Group | None, measure: Measure) -> Paired | None:
    if reference is None or reference is group:
        return None
    pairs = [(measure.error(one), measure.error(other)) for one, other in group.pairs(reference)]
    differences = [one - other for one, other in pairs if one is not None and other is not None]
    return paired(differences) if differences else None


def _scene_interval(group: Group, reference: Group, measure: Measure) -> tuple[float | None, float | None]:
    """Interval over seeds and scenes, if there are enough of both, and both runs of every pair list the same scenes."""
    pairs = [(measure.scenes(one), measure.scenes(other)) for one, other in group.pairs(reference)]
    scenes = [(name, weight) for name, _, weight in pairs[0][0]]
    same = all([(name, weight) for name, _, weight in side] == scenes for pair in pairs for side in pair)
    kind = group.members[0].evaluation.dataset.kind
    sequences = [sequence_of(kind, name) for name, _ in scenes]
    enough = len(pairs) >= FEWEST and len(set(sequences)) > 1
    if not (same and enough and any(weight for _, weight in scenes)):
        return None, None
    differences = np.array([[a[1] - b[1] for a, b in zip(*pair, strict=True)] for pair in pairs])
    return hierarchical_interval(differences, sequences, [weight for _, weight in scenes])


def _gap_closed(to_scratch: Paired, scratch: Group, teacher: float | None, measure: Measure) -> float | None:
    errors = [error for one in scratch.members if (error := measure.error(one)) is not None]
    if teacher is None or len(errors) < 2:
        return None
    gap = float(np.mean(errors)) - teacher
    return -100 * to_scratch.mean / gap if gap > 2 * float(np.std(errors, ddof=1)) else None
