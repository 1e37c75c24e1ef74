# SPDX-License-Identifier: MIT
"""Runs that differ only in their seed, as one network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bpfn_cli.figures.style import MOST_CURVES
from bpfn_cli.reporting.methods import method_rank
from bpfn_cli.reporting.rows import method_label
from bpfn_cli.runs.record import RunRecord
from bpfn_cli.runs.results import MetricCurves, Run, metric_curves


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ only in their seed. label: distinct among the networks of a report."""

    label: str
    runs: tuple[Run, ...]

    @property
    def record(self) -> RunRecord:
        return self.runs[0].record

    @property
    def method(self) -> str:
        """The label without the variant."""
        return self.label.removeprefix(f"{self.record.variant}, ")

    @cached_property
    def drawn(self) -> list[Run]:
        """The runs whose curves are drawn: the finished ones; if there are none, the newest of each seed."""
        newest = {run.record.seed: run for run in sorted(self.runs, key=lambda run: run.record.started)}
        return [run for run in self.runs if run.complete] or list(newest.values())

    @property
    def lowest(self) -> float:
        """The lowest validation EPE3D of its runs in metres; infinite: not validated."""
        return min((value for run in self.runs for value in run.curve.values()), default=float("inf"))

    @property
    def newest(self) -> float:
        """When its last run started, in seconds."""
        return max(run.record.started.timestamp() for run in self.runs)

    @cached_property
    def metrics(self) -> list[MetricCurves]:
        """Of each run that is drawn."""
        return [metric_curves(run.path) for run in self.drawn]


def networks_of(runs: Iterable[Run]) -> list[SeedGroup]:
    """Teachers first, then by method and variant."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run.record), []).append(run)
    labels = [network_label(group[0].record) for group in groups.values()]
    found = []
    for label, group in zip(labels, groups.values(), strict=True):
        unique = label if labels.count(label) == 1 else f"{label} ({group[0].name})"
        found.append(SeedGroup(unique, tuple(sorted(group, key=lambda run: (run.record.seed, run.name)))))
    return sorted(found, key=_place)


def network_label(record: RunRecord) -> str:
    method = "teacher" if record.role == "teacher" else method_label(record)
    return f"{record.variant}, {method}"


def distinguishable(networks: Sequence[SeedGroup]) -> tuple[list[SeedGroup], str]:
    """As many as a reader can tell apart in one plot, those with the lowest EPE3D; and a sentence on the others."""
    if len(networks) <= MOST_CURVES:
        return list(networks), ""
    kept = sorted(networks, key=lambda one: one.lowest)[:MOST_CURVES]
    note = f"The {MOST_CURVES} with the lowest validation EPE3D of {len(networks)} networks."
    return [one for one in networks if one in kept], note


def _place(network: SeedGroup) -> tuple[bool, int, str]:
    record = network.record
    return record.role != "teacher", method_rank(record.method), network.label


def _key(record: RunRecord) -> str:
    """What runs of a network share."""
    recipe = {name: value for name, value in record.recipe.items() if name != "seed"}
    if isinstance(data := recipe.get("data"), dict):
        recipe["data"] = {name: value for name, value in data.items() if name != "holdout_seed"}
    shared = record.variant, record.method, record.control, record.role, record.epochs, record.points
    weights = [one.sha256 if one else None for one in (record.teacher, record.initial)]
    return json.dumps([shared, recipe, record.data.sha256, record.data.fraction, weights], sort_keys=True, default=str)
