# SPDX-License-Identifier: MIT
"""The results that the compression reports print, digit for digit, and their tables."""

from dataclasses import replace
from decimal import Decimal
from importlib import resources
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator

from bpfn_cli.reporting.tables import METRICS, PUBLISHED, Column, Table, dataset_title, row_of

TRAINING_ERROR = "training error: these are the scenes that it was trained on"
# Why results of a variant belong to another network than ours of this name.
OTHER_NETWORKS = {"declinear": "another network: separable at encoder levels 3 and 4 alone, with bottlenecks"}

Printed = Annotated[Decimal | None, BeforeValidator(lambda text: None if text == "null" else text)]


class PublishedComplexity(BaseModel):
    """The size of a variant at 8192 points, batch 1."""

    variant: str
    parameters_m: Printed = None
    macs_g: Printed = None
    checkpoint_mb: Printed = None
    note: str | None = None


class PublishedResult(BaseModel):
    """One row of a published accuracy table; `values` in the order of `METRICS`, None if not printed."""

    variant: str
    method: str
    trained_on: str
    test: str
    values: tuple[Printed, ...]
    conditions: str | None = None
    note: str | None = None

    def metric(self, name: str) -> Decimal | None:
        return dict(zip((metric.key for metric in METRICS), self.values, strict=True))[name]

    @property
    def remarks(self) -> str | None:
        """What a reader must know before comparing the row with others."""
        found = [TRAINING_ERROR] if self.trained_on == self.test == "kitti" else []
        found += [remark for remark in (OTHER_NETWORKS.get(self.variant), self.note) if remark]
        return "; ".join(found) or None


class Published(BaseModel):
    """The content of `published_results.yaml` that a report shows."""

    metrics: tuple[str, ...]
    complexity: tuple[PublishedComplexity, ...]
    results: tuple[PublishedResult, ...]


# For rows about a `PublishedResult`.
ACCURACY = [
    Column("model", "Model", lambda row: row.variant),
    Column("method", "Method", lambda row: row.method.replace("_", " ")),
    Column("trained_on", "Trained on", lambda row: dataset_title(row.trained_on)),
    *(replace(metric, digits="") for metric in METRICS),
    Column("conditions", "Conditions", lambda row: row.conditions, detail=1),
    Column("note", "Note", lambda row: row.remarks, detail=2),
]
# For rows about a `PublishedComplexity`.
COMPLEXITY = [
    Column("model", "Model", lambda row: row.variant),
    Column("parameters_m", "Params", lambda row: row.parameters_m, "", "M"),
    Column("macs_g", "MACs", lambda row: row.macs_g, "", "G"),
    Column("checkpoint_mb", "File", lambda row: row.checkpoint_mb, "", "MB"),
    Column("note", "Note", lambda row: row.note, detail=1),
]
NOTES = ["Digits as printed; a dash means that the reports give no value."]


def read_published() -> Published:
    """The published results that are part of the package."""
    text = resources.files("bpfn_cli.resources").joinpath("published_results.yaml").read_text("utf-8")
    # BaseLoader leaves numbers as text: 0.050 must not become 0.05.
    return Published.model_validate(yaml.load(text, Loader=yaml.BaseLoader))


def published_tables(published: Published) -> list[Table]:
    """One accuracy table for each test set, and one table of sizes; each title says that they are published."""
    tables = []
    for test in dict.fromkeys(result.test for result in published.results):
        title = f"{PUBLISHED}: accuracy on {dataset_title(test)}"
        rows = [row_of(ACCURACY, result) for result in published.results if result.test == test]
        tables.append(Table("published_accuracy", title, ACCURACY, rows, NOTES, {"dataset": test}))
    sizes = [row_of(COMPLEXITY, entry) for entry in published.complexity]
    return [*tables, Table("published_complexity", f"{PUBLISHED}: complexity at 8192 points", COMPLEXITY, sizes)]
