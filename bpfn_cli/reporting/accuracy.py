# SPDX-License-Identifier: MIT
"""The accuracy tables, one for each protocol, and the table of runs without results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bpfn_cli.data.datasets import is_synthetic_kind
from bpfn_cli.metrics.result import (
    BASELINE_NAMES,
    BASELINE_TITLES,
    RIGID_ICP,
    EvaluationResult,
)
from bpfn_cli.reporting.methods import method_meanings
from bpfn_cli.reporting.rows import (
    ROUNDING,
    Measured,
    Planned,
    Protocol,
    Result,
    RunRow,
    in_order,
    tables_of,
)
from bpfn_cli.reporting.tables import METRICS, Column, Row, Table, reference_row
from bpfn_cli.runs.results import Run

SYNTHETIC_NOTE = "Synthetic scenes are not FlyingThings3D: do not compare these rows with published numbers."
SPLIT = "Zero flow has another error in another table of these data, so the scenes differ: evaluate again to compare."
# Each is filled in with names of runs.
ON_TEST = (
    "Weights chosen on the test split, as published: {}. These results are the best of many evaluations on these "
    "scenes and look better than those of runs that were evaluated on them once."
)
TRAINED_ON_TEST = "Training errors, since they learned from the scenes that they are tested on: {}."
REDUCED = "Trained with reduced precision of the matrix products: {}."
CHANGED = "Recipe, data or versions changed during training: {}; see run.json."


# For rows about a `Result`; baselines and teachers from elsewhere have only metrics.
ACCURACY = [
    Column("model", "Model", lambda row: row.record.variant),
    Column("method", "Method", lambda row: row.method),
    Column("state", "State", lambda row: row.state, usual="finished"),
    Column("progress", "Validation EPE3D", lambda row: row.progress, unit="m", detail=1),
    Column("trained_on", "Trained on", lambda row: row.trained_on, detail=3),
    *METRICS,
    Column("below_best_baseline_percent", "Below best baseline", lambda row: row.gain, ".1f", "%", detail=1),
    Column("seed", "Seed", lambda row: row.record.seed, "d", detail=2),
    Column("weights", "Weights", lambda row: row.evaluation.checkpoint.which, detail=4),
    Column("best_epoch", "Best epoch", lambda row: row.run.best_epoch, "d", detail=5),
    Column("epochs_done", "Epochs done", lambda row: row.record.epochs_done, "d", detail=5),
    Column("epochs", "Epochs", lambda row: row.record.epochs, "d", detail=5),
    Column("train_minutes", "Training", lambda row: row.train_minutes, ".1f", "min", detail=6),
    Column("teacher", "Teacher", lambda row: row.teacher, detail=7),
    Column("run", "Run", lambda row: row.run.name, detail=8),
]
REASON = Column("reason", "Reason", lambda row: row.record.reason, detail=7)
# For rows about a `RunRow`.
_KEYS = ["model", "method", "state", "progress", "best_epoch", "epochs_done", "epochs", "trained_on", "seed"]
_KEYS += ["reason", "run"]
WITHOUT_RESULTS = [column for key in _KEYS for column in (*ACCURACY, REASON) if column.key == key]
# For the rows of one evaluation.
PREDICTORS = (Column("predictor", "", lambda row: row.name), *METRICS)


def accuracy_tables(runs: Sequence[Run], others: Sequence[EvaluationResult] = ()) -> list[Table]:
    """One table for each protocol. others: evaluations of weights that belong to no run."""
    groups = tables_of(runs, others)
    protocols = Counter(group[0].protocol for group in groups)
    titles = Counter(protocol.title for protocol in protocols)
    return [
        _accuracy_table(group, titles[group[0].protocol.title] > 1, protocols[group[0].protocol] > 1)
        for group in groups
    ]


def evaluation_table(evaluation: EvaluationResult) -> Table:
    """The metrics of all predictors of one evaluation."""
    rows = [reference_row(PREDICTORS, row, "", predictor=predictor_title(row.name)) for row in evaluation.rows]
    return Table("evaluation", Protocol.from_evaluation(evaluation).title, PREDICTORS, rows)


def without_results_tables(runs: Sequence[Run], planned: Sequence[Planned] = ()) -> list[Table]:
    """One table of the runs without an evaluation, then of planned trainings; or none."""
    waiting = sorted((run for run in runs if not run.evaluations), key=lambda run: (not run.complete, run.name))
    if not waiting and not planned:
        return []
    notes = []
    if any(run.complete for run in waiting):
        notes.append("Finished: evaluate it with `bpfn eval --checkpoint FILE`, where FILE is its student.safetensors.")
    if any(run.record.state == "running" for run in waiting):
        notes.append("Running: in progress, or killed.")
    if planned:
        notes.append("Planned: trainings of the study that have no run yet.")
    rows = [RunRow(run).row(WITHOUT_RESULTS) for run in waiting] + [one.row(WITHOUT_RESULTS) for one in planned]
    return [Table("without_results", "Runs without results", WITHOUT_RESULTS, rows, notes)]


def accuracy_notes(runs: Sequence[Run]) -> list[str]:
    """Explanations of the words in the accuracy tables."""
    if not any(run.evaluations for run in runs):
        return []
    used = {name for run in runs for name in RunRow(run).method.split("+")}
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in method_meanings().items() if name in used)
    return [
        f"Method: how a network was trained; + combines methods. {meanings}.",
        "Below best baseline: how far EPE3D is below the best of zero flow, nearest neighbor and rigid ICP; "
        "negative is worse. Marked: the lowest EPE3D of finished students, if below zero flow and nearest neighbor.",
        "Weights: best are those of the validated epoch with the lowest EPE3D on the held-out training scenes (best "
        "epoch), last those of the last epoch.",
    ]


def _accuracy_table(group: Sequence[Measured], is_ambiguous: bool, is_split: bool) -> Table:
    """The table of comparable results. is_ambiguous: other data have this title, is_split: and even this protocol."""
    protocol, results = group[0].protocol, [one for one in group if isinstance(one, Result)]
    rows = [*_baseline_rows(group), *(one.row(ACCURACY) for one in in_order(group))]
    details = (
        f", data {protocol.data_sha256[:12]}, sampling seed {protocol.sampling_seed}"
        if is_ambiguous or is_split
        else ""
    )
    details += f", zero flow {group[0].zero_flow:.4f} m" if is_split else ""
    notes = [*_notes(protocol, results), *([SPLIT] if is_split else []), *_disagreements(results)]
    return Table("accuracy", protocol.title + details, [*ACCURACY], rows, notes, protocol.as_dict())


def _baseline_rows(results: Sequence[Measured]) -> Iterator[Row]:
    for name in BASELINE_NAMES:
        measured = next((row for one in results if (row := one.evaluation.row(name))), None)
        if measured:
            yield reference_row(ACCURACY, measured, "reference", model=BASELINE_TITLES[name])


def predictor_title(predictor: str) -> str:
    """Such as "rigid ICP full"."""
    return predictor.replace(RIGID_ICP, BASELINE_TITLES[RIGID_ICP]).replace("_", " ")


def _notes(protocol: Protocol, results: Sequence[Result]) -> Iterator[str]:
    yield f"Test data {protocol.data_sha256[:12]}, sampling seed {protocol.sampling_seed}."
    if is_synthetic_kind(protocol.dataset):
        yield SYNTHETIC_NOTE
    if not all(one.run.complete for one in results):
        yield "Incomplete runs come last and are not ranked or compared."
    yield from training_notes(results)


def training_notes(results: Sequence[Result]) -> Iterator[str]:
    """What readers must know about how runs were trained."""
    on_test = {one.run.name for one in results if one.record.selected_on == "test"}
    reduced = {f"{one.run.name} ({bits})" for one in results if (bits := one.record.precision) != "32"}
    changed = {one.run.name for one in results if any(again.differences for again in one.record.resumed)}
    learned = {one.run.name for one in results if one.is_training_error}
    for note, names in ((TRAINED_ON_TEST, learned), (ON_TEST, on_test), (REDUCED, reduced), (CHANGED, changed)):
        if names:
            is_long = len(names) == len(results) > 8
            yield note.format("all runs" if is_long else ", ".join(sorted(names)))


def _disagreements(results: Sequence[Result]) -> Iterator[str]:
    """A baseline needs no training, so it has one value per protocol; others point to a fault."""
    for name in BASELINE_NAMES:
        values = [(row.epe3d, one.run.name) for one in results if (row := one.evaluation.row(name))]
        (low, low_run), (high, high_run) = min(values, default=(0, "")), max(values, default=(0, ""))
        if high - low > ROUNDING * high:
            yield (
                f"Caution: EPE3D of {BASELINE_TITLES[name]} is {low:.4f} in run {low_run} and {high:.4f} in run "
                f"{high_run} on the same data; repeat `bpfn eval` for both."
            )
