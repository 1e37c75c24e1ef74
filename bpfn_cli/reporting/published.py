# SPDX-License-Identifier: MIT
"""The results that the compression reports print, digit for digit, and their tables."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.reporting.tables import METRICS, PUBLISHED, Column, Table, dataset_title, row_of

PUBLISHED_SCENES = {"flyingthings3d": 3824, "kitti": 142}
TRAINING_ERROR = "training error: these are the scenes that it was trained on"
# Why results of a variant, in a report, belong to another network than ours of this name.
OTHER_NETWORKS = {
    ("half", 3): "another network: with residual bottlenecks",
    ("declinear", 6): "another network: separable at encoder levels 3 and 4 alone, with bottlenecks",
}

Printed = Annotated[Decimal | None, BeforeValidator(lambda text: None if text == "null" else text)]


class PublishedRow(BaseModel):
    """A row of a published table."""

    report: int
    variant: str
    note: str | None = None

    @property
    def is_other_network(self) -> bool:
        """Whether the row is about another network than ours of this name."""
        return (self.variant, self.report) in OTHER_NETWORKS

    @property
    def remarks(self) -> str | None:
        """What a reader must know before comparing the row with others."""
        return "; ".join(self._remarks()) or None

    def _remarks(self) -> list[str]:
        return [remark for remark in (OTHER_NETWORKS.get((self.variant, self.report)), self.note) if remark]


class PublishedComplexity(PublishedRow):
    """Size and inference time of a variant at 8192 points, batch 1."""

    parameters_m: Printed = None
    macs_g: Printed = None
    checkpoint_mb: Printed = None
    latency_s: Printed = None


class PublishedResult(PublishedRow):
    """One row of a published accuracy table; `values` in the order of `METRICS`, None if not printed."""

    method: str
    trained_on: str
    test: str
    values: tuple[Printed, ...]
    conditions: str | None = None

    def metric(self, name: str) -> Decimal | None:
        return dict(zip((metric.key for metric in METRICS), self.values, strict=True))[name]

    def _remarks(self) -> list[str]:
        is_training_error = self.trained_on == self.test == "kitti"
        return [*([TRAINING_ERROR] if is_training_error else []), *super()._remarks()]


class Published(BaseModel):
    """The content of `published_results.yaml` that a report shows."""

    metrics: tuple[str, ...]
    complexity: tuple[PublishedComplexity, ...]
    results: tuple[PublishedResult, ...]


REPORT = Column("report", "Report", lambda row: row.report, "d")
# For rows about a `PublishedResult`.
ACCURACY = [
    REPORT,
    Column("model", "Model", lambda row: row.variant),
    Column("method", "Method", lambda row: row.method.replace("_", " ")),
    Column("trained_on", "Trained on", lambda row: dataset_title(row.trained_on)),
    *(replace(metric, digits="") for metric in METRICS),
    Column("conditions", "Conditions", lambda row: row.conditions, detail=1),
    Column("note", "Note", lambda row: row.remarks, detail=2),
]
# For rows about a `PublishedComplexity`.
COMPLEXITY = [
    REPORT,
    Column("model", "Model", lambda row: row.variant),
    Column("parameters_m", "Params", lambda row: row.parameters_m, "", "M"),
    Column("macs_g", "MACs", lambda row: row.macs_g, "", "G"),
    Column("checkpoint_mb", "File", lambda row: row.checkpoint_mb, "", "MB"),
    Column("latency_s", "Time", lambda row: row.latency_s, "", "s"),
    Column("note", "Note", lambda row: row.remarks, detail=1),
]
NOTES = ["Digits as printed; a dash means that the reports give no value."]


def read_published() -> Published:
    """The published results that are part of the package."""
    text = resources.files("bpfn_cli.resources").joinpath("published_results.yaml").read_text("utf-8")
    # BaseLoader leaves numbers as text: 0.050 must not become 0.05.
    return Published.model_validate(yaml.load(text, Loader=yaml.BaseLoader))


def published_beside(evaluation: EvaluationResult) -> Iterator[Table]:
    """The published results of the network's variant on the same test set, if any, and how theirs differ."""
    variant, data = evaluation.checkpoint.variant, evaluation.dataset
    found = [one for one in read_published().results if (one.variant, one.test) == (variant, data.kind)]
    rows = [row_of(ACCURACY, one) for one in found if any(value is not None for value in one.values)]
    if rows:
        title = f"{PUBLISHED}: {variant} on {dataset_title(data.kind)}"
        yield Table("published_accuracy", title, ACCURACY, rows, [f"Differs: {'; '.join(_differences(evaluation))}."])


def protocol_notes(evaluation: EvaluationResult) -> Iterator[str]:
    """What keeps a result from being compared with published ones, where no published row is beside it."""
    if evaluation.dataset.kind == "kitti" and evaluation.points != PUBLISHED_POINTS:
        usual = f"KITTI is usually evaluated with {PUBLISHED_POINTS} points, and errors depend on their number"
        yield f"{usual}; here {evaluation.points} (--points {PUBLISHED_POINTS})"


def _differences(evaluation: EvaluationResult) -> Iterator[str]:
    """Between an evaluation and the published ones."""
    data, scenes = evaluation.dataset, PUBLISHED_SCENES[evaluation.dataset.kind]
    if (data.split, data.scenes) != ("test", scenes):
        yield f"they tested on {scenes:,} scenes, here {data.scenes:,} (split {data.split})"
    if evaluation.points != PUBLISHED_POINTS:
        yield f"with {PUBLISHED_POINTS} points, here {evaluation.points}"
    if evaluation.parts:
        yield f"all points at once, here in parts of {evaluation.parts}"
    yield f"their draw of points is not known, here seed {evaluation.seed}"


def published_tables(published: Published) -> list[Table]:
    """One accuracy table for each test set, and one table of sizes; each title says that they are published."""
    tables = []
    for test in dict.fromkeys(result.test for result in published.results):
        title = f"{PUBLISHED}: accuracy on {dataset_title(test)}"
        rows = [row_of(ACCURACY, result) for result in published.results if result.test == test]
        tables.append(Table("published_accuracy", title, ACCURACY, rows, NOTES, {"dataset": test}))
    sizes = [row_of(COMPLEXITY, entry) for entry in published.complexity]
    return [*tables, Table("published_complexity", f"{PUBLISHED}: complexity at 8192 points", COMPLEXITY, sizes)]
