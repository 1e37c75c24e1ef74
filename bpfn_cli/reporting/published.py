# SPDX-License-Identifier: MIT
"""The numbers the compression reports print, digit for digit, and their tables."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import Any

import yaml

from bpfn_cli.reporting.layout import METRICS, PUBLISHED, Column, Row, Table, Value, dataset_title, row_of

PUBLISHED_ACCURACY = (
    Column("model", "Model"),
    Column("method", "Method"),
    Column("trained_on", "Trained on"),
    *(Column(metric.key, metric.title, "") for metric in METRICS),
    Column("conditions", "Conditions", detail=1),
    Column("note", "Note", detail=2),
)
PUBLISHED_COMPLEXITY = (
    Column("model", "Model"),
    Column("parameters_m", "Params [M]", ""),
    Column("macs_g", "MACs [G]", ""),
    Column("checkpoint_mb", "File [MB]", ""),
    Column("note", "Note", detail=1),
)
CONDITIONS = ("gamma", "epoch", "days")


@dataclass(frozen=True)
class PublishedComplexity:
    """Size of a variant at 8192 points, batch 1."""

    variant: str
    params_m: Decimal | None
    macs_g: Decimal | None
    checkpoint_mb: Decimal | None
    note: str | None


@dataclass(frozen=True)
class PublishedResult:
    """One row of a published accuracy table; `values` in the order of the metrics, None where not given."""

    variant: str
    method: str
    trained_on: str
    test: str
    values: tuple[Decimal | None, ...]
    conditions: str | None
    note: str | None


@dataclass(frozen=True)
class Published:
    """Everything of `published_results.yaml` that a report shows."""

    metrics: tuple[str, ...]
    complexity: tuple[PublishedComplexity, ...]
    results: tuple[PublishedResult, ...]


def read_published() -> Published:
    """The published rows that travel with the package, in the order of the file."""
    text = resources.files("bpfn_cli.resources").joinpath("published_results.yaml").read_text("utf-8")
    # BaseLoader leaves scalars as text: 0.050 must not become 0.05.
    content = yaml.load(text, Loader=yaml.BaseLoader)
    metrics = tuple(content["metrics"])
    return Published(
        metrics=metrics,
        complexity=tuple(_complexity(entry) for entry in content["complexity"]),
        results=tuple(_result(entry, len(metrics)) for entry in content["results"]),
    )


def published_tables(published: Published) -> list[Table]:
    """The accuracy rows, one table a test set, and the complexity rows; each title says whose they are."""
    tests = dict.fromkeys(result.test for result in published.results)
    sizes = Table(
        kind="published_complexity",
        title=f"{PUBLISHED}: complexity at 8192 points",
        columns=PUBLISHED_COMPLEXITY,
        rows=tuple(_complexity_row(entry) for entry in published.complexity),
    )
    return [*(_accuracy_table(test, published) for test in tests), sizes]


def _complexity(entry: dict[str, Any]) -> PublishedComplexity:
    return PublishedComplexity(
        variant=entry["variant"],
        params_m=_number(entry.get("params_M")),
        macs_g=_number(entry.get("macs_G")),
        checkpoint_mb=_number(entry.get("checkpoint_MB")),
        note=entry.get("note"),
    )


def _result(entry: dict[str, Any], metrics: int) -> PublishedResult:
    values = ["null"] * metrics if entry["values"] == "null" else entry["values"]
    return PublishedResult(
        variant=entry["variant"],
        method=entry["method"],
        trained_on=entry["trained_on"],
        test=entry["test"],
        values=tuple(_number(value) for value in values),
        conditions=", ".join(f"{key} {entry[key]}" for key in CONDITIONS if key in entry) or None,
        note=entry.get("note"),
    )


def _number(text: str | None) -> Decimal | None:
    return None if text is None or text == "null" else Decimal(text)


def _accuracy_table(test: str, published: Published) -> Table:
    results = [result for result in published.results if result.test == test]
    return Table(
        kind="published_accuracy",
        title=f"{PUBLISHED}: accuracy on {dataset_title(test)}",
        columns=PUBLISHED_ACCURACY,
        rows=tuple(_result_row(result, published.metrics) for result in results),
        notes=("Digits as printed; a dash stands where the reports give no value.",),
        context=(("dataset", test),),
    )


def _result_row(result: PublishedResult, metrics: tuple[str, ...]) -> Row:
    known: dict[str, Value] = {
        "model": result.variant,
        "method": result.method.replace("_", " "),
        "trained_on": dataset_title(result.trained_on),
        **dict(zip(metrics, result.values, strict=True)),
        "conditions": result.conditions,
        "note": result.note,
    }
    return row_of(PUBLISHED_ACCURACY, known)


def _complexity_row(entry: PublishedComplexity) -> Row:
    return Row((entry.variant, entry.params_m, entry.macs_g, entry.checkpoint_mb, entry.note))
