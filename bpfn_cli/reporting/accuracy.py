# SPDX-License-Identifier: MIT
"""The accuracy tables, one a protocol, and the runs that have no result yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from bpfn_cli.reporting.layout import METRICS, Column, Mark, Row, Table, Value, dataset_title, row_of
from bpfn_cli.runs.results import Evaluation, MetricRow, Run

REFERENCES = {"zero_flow": "zero flow", "nearest_neighbor": "nearest neighbor"}
METHOD_MEANINGS = {
    "teacher": "the network the others learn from",
    "scratch": "ground truth alone",
    "fine-tuned": "started from given weights",
    "basic": "ground truth and the teacher's flow",
    "hint": "ground truth and the teacher's features of the first cloud",
    "bihint": "ground truth and the teacher's features of both clouds",
    "ail": "basic, more where the teacher errs little",
    "aht": "hint, more where the teacher errs little",
    "bounded": "ground truth, more where the student is worse than the teacher",
    "weighted": "basic, moving and still points balanced",
    "rkd": "ground truth and the relations among the teacher's flows",
    "localization": "ground truth and the teacher's distributions of flow",
    "pairwise": "ground truth and the similarities among the teacher's features",
    "adversarial": "ground truth and a critic that tells student from teacher",
    "gan-compression": "squared hints and a critic",
    "mobilebert": "ground truth and the teacher's features and attention",
    "self": "the finest level teaches the coarser ones",
    "online": "two students learn from each other",
    "meta": "the teacher learns to teach",
    "netaug": "the student is also trained as part of wider networks",
    "early-stop-hard": "without the teacher after a share of the epochs",
    "early-stop-linear": "with less and less of the teacher",
    "early-stop-auto": "without the teacher once it is overtaken",
    "random-teacher": "a control: a teacher that was never trained",
    "shuffled-teacher": "a control: the teacher's outputs dealt to other points",
}
METHODS = tuple(METHOD_MEANINGS)[1:]  # in the order of the rows
# Baselines of one protocol may differ by the rounding of two machines, not by more (relative).
SAME = 1e-4

ACCURACY = (
    Column("model", "Model"),
    Column("method", "Method"),
    Column("state", "State", usual="finished"),
    Column("trained_on", "Trained on", detail=3),
    *METRICS,
    Column("below_best_baseline_percent", "Below best baseline", ".1f", " %", detail=1),
    Column("seed", "Seed", "d", detail=2),
    Column("weights", "Weights", detail=4),
    Column("epochs_done", "Epochs done", "d", detail=5),
    Column("epochs", "Epochs", "d", detail=5),
    Column("train_minutes", "Training", ".1f", " min", detail=6),
    Column("teacher", "Teacher", detail=7),
    Column("run", "Run", detail=8),
)
WITHOUT_RESULTS = (
    Column("model", "Model"),
    Column("method", "Method"),
    Column("state", "State"),
    Column("epochs_done", "Epochs done", "d"),
    Column("epochs", "Epochs", "d"),
    Column("trained_on", "Trained on", detail=1),
    Column("seed", "Seed", "d", detail=2),
    Column("reason", "Reason", detail=3),
    Column("run", "Run", detail=4),
)


@dataclass(frozen=True, order=True)
class Protocol:
    """What two results must share to stand in one table."""

    kind: str
    split: str
    points: int
    scenes: int
    sha256: str
    seed: int

    @classmethod
    def of(cls, evaluation: Evaluation) -> Protocol:
        data = evaluation.dataset
        return cls(data.kind, data.split, evaluation.points, data.scenes, data.sha256, evaluation.seed)

    @property
    def title(self) -> str:
        return f"{dataset_title(self.kind)}, {self.split} split, {self.scenes} scenes, {self.points} points"

    @property
    def full_title(self) -> str:
        return f"{self.title}, data {self.sha256[:12]}, sampling seed {self.seed}"


@dataclass(frozen=True)
class Scored:
    """One run's network under one protocol."""

    run: Run
    evaluation: Evaluation

    @property
    def protocol(self) -> Protocol:
        return Protocol.of(self.evaluation)

    @property
    def is_ranked(self) -> bool:
        return self.run.complete and self.run.record.role == "student"

    @property
    def epe3d(self) -> float:
        return self.evaluation.model.epe3d

    @property
    def below_best_baseline(self) -> float | None:
        """Percent by which EPE3D lies below the better baseline's; None for an incomplete run."""
        best = min((row.epe3d for row in self.evaluation.rows if row.name in REFERENCES), default=None)
        return 100 * (1 - self.epe3d / best) if best and self.run.complete else None


def accuracy_tables(runs: Sequence[Run]) -> list[Table]:
    """One table for each protocol found, never two protocols in one."""
    scored = [Scored(run, evaluation) for run in runs for evaluation in dict.fromkeys(run.evaluations)]
    protocols = sorted({one.protocol for one in scored})
    titles = [protocol.title for protocol in protocols]
    tables = []
    for protocol in protocols:
        title = protocol.title if titles.count(protocol.title) == 1 else protocol.full_title
        tables.append(_accuracy_table(title, protocol, [one for one in scored if one.protocol == protocol]))
    return tables


def without_results_tables(runs: Sequence[Run]) -> list[Table]:
    """One table of the runs that no evaluation was found of, or none."""
    waiting = [run for run in runs if not run.evaluations]
    if not waiting:
        return []
    rows = []
    for run in sorted(waiting, key=lambda run: (not run.complete, run.name)):
        known = {**_run_cells(run, None), "reason": run.record.reason}
        rows.append(row_of(WITHOUT_RESULTS, known, "" if run.complete else "incomplete"))
    notes = []
    if any(run.complete for run in waiting):
        notes.append("Finished: measure it with `bpfn eval --checkpoint FILE`, its student.safetensors.")
    if any(run.record.state == "running" for run in waiting):
        notes.append("Running: still at work, or killed before it could write its end.")
    return [Table("without_results", "Runs without results", WITHOUT_RESULTS, tuple(rows), tuple(notes))]


def accuracy_notes(runs: Sequence[Run]) -> list[str]:
    """What the words and marks of the accuracy tables mean; nothing where no run was measured."""
    if not any(run.evaluations for run in runs):
        return []
    used: set[str] = set()
    for run in runs:
        used |= {"teacher"} if run.record.role == "teacher" else set(run.record.method.split("+"))
    meanings = [f"{name}: {meaning}" for name, meaning in METHOD_MEANINGS.items() if name in used]
    return [
        f"Method is what a network was trained with. {'; '.join(meanings)}; a + adds methods up.",
        "Below best baseline: how far EPE3D lies below the better of zero flow and nearest neighbor, in "
        "percent of it; negative is worse than it. Marked: the lowest EPE3D of the complete students.",
        "Weights: best are those with the lowest EPE3D on the held-out training scenes among the epochs that were "
        "validated, last those after the last epoch.",
    ]


def _accuracy_table(title: str, protocol: Protocol, members: Sequence[Scored]) -> Table:
    lowest = min((one.epe3d for one in members if one.is_ranked), default=None)
    networks = [_network_row(one, lowest) for one in sorted(members, key=_place)]
    return Table(
        kind="accuracy",
        title=title,
        columns=ACCURACY,
        rows=(*_reference_rows(members), *_outside_teacher_rows(members), *networks),
        notes=tuple(_notes(protocol, members)),
        context=(
            ("dataset", protocol.kind),
            ("split", protocol.split),
            ("scenes", protocol.scenes),
            ("points", protocol.points),
            ("sampling_seed", protocol.seed),
            ("data_sha256", protocol.sha256),
        ),
    )


def _reference_rows(members: Sequence[Scored]) -> Iterator[Row]:
    for name, title in REFERENCES.items():
        measured = next((row for one in members if (row := one.evaluation.row(name))), None)
        if measured:
            yield row_of(ACCURACY, {"model": title, **_metrics(measured)}, "reference")


def _outside_teacher_rows(members: Sequence[Scored]) -> Iterator[Row]:
    """Teachers that no run trained: measured together with their students."""
    found: dict[str, tuple[str, MetricRow]] = {}
    for one in members:
        teacher, measured = one.run.record.teacher, one.evaluation.row("teacher")
        if teacher and measured:
            found.setdefault(teacher.sha256, (teacher.variant, measured))
    for sha256, (variant, measured) in sorted(found.items()):
        yield row_of(ACCURACY, {"model": variant, "method": "teacher", "run": sha256[:8], **_metrics(measured)}, "")


def _place(one: Scored) -> tuple[bool, bool, int, str, str, str, int, str, str]:
    """Complete ones first; of these teachers, then scratch, then the methods (LOSSES.md 2.6)."""
    record = one.run.record
    return (
        not one.run.complete,
        record.role != "teacher",
        METHODS.index(record.method) if record.method in METHODS else len(METHODS),
        record.method,
        record.variant,
        _trained_on(one.run, one.evaluation.points),
        record.seed,
        one.run.name,
        one.evaluation.checkpoint.which,
    )


def _network_row(one: Scored, lowest: float | None) -> Row:
    record = one.run.record
    known = {
        **_run_cells(one.run, one.evaluation.points),
        **_metrics(one.evaluation.model),
        "below_best_baseline_percent": one.below_best_baseline,
        "weights": one.evaluation.checkpoint.which,
        "train_minutes": None if record.train_seconds is None else record.train_seconds / 60,
        "teacher": _teacher(one.run),
    }
    mark: Mark = "" if one.run.complete else "incomplete"
    return row_of(ACCURACY, known, "best" if one.is_ranked and one.epe3d == lowest else mark)


def _run_cells(run: Run, points: int | None) -> dict[str, Value]:
    record = run.record
    return {
        "model": record.variant,
        "method": "teacher" if record.role == "teacher" else record.method,
        "state": "finished" if run.complete else f"incomplete ({record.state})",
        "trained_on": _trained_on(run, points),
        "epochs_done": record.epochs_done,
        "epochs": record.epochs,
        "seed": record.seed,
        "run": run.name,
    }


def _trained_on(run: Run, points: int | None) -> str:
    """The training data, with its number of points where that is not the evaluation's `points`."""
    data = run.record.data
    share = "" if data.fraction is None or data.fraction == 1 else f" {_share(data.fraction)}"
    own_points = "" if run.record.points == points else f", {run.record.points} points"
    learned = data.train_scenes - data.held_out_scenes
    return f"{dataset_title(data.source_kind)}{share}, {learned} scenes{own_points}"


def _share(fraction: float) -> str:
    near = Fraction(fraction).limit_denominator(100)
    is_one_nth = near.numerator == 1 and abs(float(near) - fraction) < 1e-9
    return f"1/{near.denominator}" if is_one_nth else f"{100 * fraction:.3g} %"


def _teacher(run: Run) -> str | None:
    teacher = run.record.teacher
    if teacher is None:
        return None
    return f"{teacher.variant} ({teacher.run})" if teacher.run else teacher.variant


def _metrics(row: MetricRow) -> dict[str, Value]:
    return {metric.key: getattr(row, metric.key) for metric in METRICS}


def _notes(protocol: Protocol, members: Sequence[Scored]) -> Iterator[str]:
    yield f"Test data {protocol.sha256[:12]}, sampling seed {protocol.seed}."
    if protocol.kind == "synthetic":
        yield (
            "Synthetic scenes are not FlyingThings3D: these rows rank methods among themselves and cannot be "
            "set against published numbers."
        )
    if not all(one.run.complete for one in members):
        yield "Incomplete runs stand last; their numbers are not ranked or compared."
    on_test = sorted({one.run.name for one in members if one.run.record.selected_on == "test"})
    if on_test:
        yield (
            f"Chosen on the test split, as published: {', '.join(on_test)}. Their figures are the best of many looks "
            "at these scenes, and look better than those of runs that were measured here once."
        )
    precisions = {one.run.name: one.run.record.recipe.train.precision for one in members}
    reduced = [f"{name} ({precision})" for name, precision in sorted(precisions.items()) if precision != "32"]
    if reduced:
        yield f"Trained with reduced matrix products: {', '.join(reduced)}."
    changed = sorted({one.run.name for one in members if any(again.differences for again in one.run.record.resumed)})
    if changed:
        yield f"Recipe, data or versions were changed in the midst of the training: {', '.join(changed)}; see run.json."
    yield from _disagreements(members)


def _disagreements(members: Sequence[Scored]) -> Iterator[str]:
    """A baseline needs no training, so one protocol gives one number; anything else is a fault to show."""
    for name, title in REFERENCES.items():
        values = [(row.epe3d, one.run.name) for one in members if (row := one.evaluation.row(name))]
        if not values:
            continue
        (low, low_run), (high, high_run) = min(values), max(values)
        if high - low > SAME * high:
            yield (
                f"Caution: EPE3D of {title} is {low:.4f} in run {low_run} and {high:.4f} in run {high_run} "
                "on the same data: repeat `bpfn eval` of both."
            )
