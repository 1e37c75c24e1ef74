# SPDX-License-Identifier: MIT
"""Figures of the accuracy tables: against cost, by class of points, and over scenes; one set for each protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bpfn_cli.errors import DataError, printable
from bpfn_cli.figures.errors import class_figure, distribution_figure
from bpfn_cli.figures.style import REFERENCES
from bpfn_cli.figures.tradeoffs import TradeoffPoint, tradeoff_figure
from bpfn_cli.metrics.result import (
    BASELINE_NAMES,
    BASELINE_TITLES,
    TEACHER,
    Amount,
    EvaluationResult,
    Name,
    Positive,
    Schema,
)
from bpfn_cli.reporting.classes import class_heading
from bpfn_cli.reporting.drawings.drawing import Drawing, file_stem
from bpfn_cli.reporting.drawings.networks import SeedGroup, networks_of
from bpfn_cli.reporting.published import Published
from bpfn_cli.reporting.rows import (
    Measured,
    OtherWeights,
    OutsideTeacher,
    Result,
    in_order,
    tables_of,
)
from bpfn_cli.reporting.tables import PUBLISHED, dataset_title
from bpfn_cli.runs.record import read_schema
from bpfn_cli.runs.results import RunResults

AXES = {"range": "distance [m]", "speed": "speed [m per frame]"}  # others: the name of the partition
PARTS = {"range": "distance", "speed": "speed", "motion": "motion", "three-way": "part of the scene"}
LATENCY = "time [ms]"
IN_PROGRESS = "in progress"
MOST_LINES = 8  # besides the baselines
Networks = Mapping[Path, SeedGroup]  # by the folders of their runs


def accuracy_drawings(results: RunResults, latency_ms: Mapping[str, float] | None = None) -> Iterator[Drawing]:
    """Args: latency_ms: of a pass, by variant."""
    networks = {run.path: network for network in networks_of(results.runs) for run in network.runs}
    for group in tables_of(results.runs, results.others):
        protocol = group[0].protocol
        stem = file_stem(protocol.dataset, protocol.split, str(protocol.points))
        drawn = [one for one in in_order(group) if _is_drawn(one)]
        yield from _tradeoffs(drawn, networks, stem, latency_ms or {})
        yield from _classes(drawn, networks, stem)
        yield from _distribution(drawn, networks, stem)


def _is_drawn(one: Measured) -> bool:
    """Of a run, only the deployed weights, and only once it is finished."""
    return not isinstance(one, Result) or (one.run.complete and one.is_deployed)


def published_drawings(published: Published) -> Iterator[Drawing]:
    """The published results against the published sizes, apart from what was measured here.

    Only of networks trained on all of FlyingThings3D; the last one that the reports print for a variant and method.
    """
    sizes: dict[str, dict[str, float]] = {}
    for entry in published.complexity:
        known = {"MACs [G]": entry.macs_g, "parameters [M]": entry.parameters_m}
        if not entry.is_other_network:
            sizes.setdefault(entry.variant, {}).update({axis: float(cost) for axis, cost in known.items() if cost})
    for test in dict.fromkeys(result.test for result in published.results):
        points = {
            (one.variant, one.method): TradeoffPoint(one.method, one.variant, sizes[one.variant], float(epe3d))
            for one in published.results
            if (one.test, one.trained_on) == (test, "flyingthings3d")
            and (epe3d := one.metric("epe3d")) is not None
            and one.note != IN_PROGRESS
            and not one.is_other_network
            and sizes.get(one.variant)
        }
        if points:
            title = f"Published, tested on {dataset_title(test)}"
            caption = f"{PUBLISHED.capitalize()}: EPE3D on {dataset_title(test)} against cost."
            draw = partial(tradeoff_figure, list(points.values()), title)
            yield Drawing("cost", file_stem("published", test), caption, draw)


class _Pass(Schema):
    """The time of the passes of a path in milliseconds."""

    median_ms: Amount


class _Case(Schema):
    """What is read of a case of `bpfn bench`."""

    variant: Name
    device: Name = "cpu"
    batch: Positive
    points: Positive
    training: bool = False
    fast: _Pass


class _Bench(Schema):
    """What is read of the file of `bpfn bench --out`."""

    results: tuple[_Case, ...]


def read_latency(path: Path) -> dict[str, float]:
    """Milliseconds of a pass of one pair of clouds by variant, for the largest number of points.

    Raises: DataError: not a file of `bpfn bench --out`, without inference of single pairs, or of several devices.
    """
    if not path.exists():
        raise DataError(f"{printable(path)}: no such file; `bpfn bench --out FILE` writes one")
    cases = read_schema(path, _Bench, "repeat `bpfn bench --out FILE`").results
    found = sorted((one for one in cases if one.batch == 1 and not one.training), key=lambda one: one.points)
    if not found:
        raise DataError(f"{printable(path)}: has no pass of one pair of clouds; repeat `bpfn bench` without --train")
    largest = [one for one in found if one.points == found[-1].points]
    if len(devices := {one.device for one in largest}) > 1:
        names = " and ".join(sorted(devices))
        raise DataError(f"{printable(path)}: has times of {printable(names)}; repeat `bpfn bench` with one --device")
    return {one.variant: one.fast.median_ms for one in largest}


def _tradeoffs(
    group: Sequence[Measured], networks: Networks, stem: str, latency_ms: Mapping[str, float]
) -> Iterator[Drawing]:
    members: dict[str, list[Result]] = {}
    for one in group:
        if isinstance(one, Result) and one.record.complexity:
            members.setdefault(networks[one.run.path].label, []).append(one)
    points = [_point(networks[found[0].run.path].method, found, latency_ms) for found in members.values()]
    points += [_point_of_file(one, latency_ms) for one in group if isinstance(one, OtherWeights) and one.history]
    if len({point.variant for point in points}) > 1:
        title = group[0].protocol.title
        caption = f"EPE3D against cost: {title}. Means over seeds; lines reach from the lowest to the highest."
        teachers = {row.epe3d for one in group if (row := one.evaluation.row(TEACHER))}
        lines = {"teacher": min(teachers)} if len(teachers) == 1 else {}
        draw = partial(tradeoff_figure, points, title, lines)
        yield Drawing("cost", f"cost_{stem}", caption, draw)


def _point_of_file(one: OtherWeights, latency_ms: Mapping[str, float]) -> TradeoffPoint:
    step, variant = one.history[-1], one.names["model"]
    costs = {"MACs [G]": step.macs / 1e9, "parameters [M]": step.parameters / 1e6, "file [MB]": step.bytes / 1e6}
    costs |= {LATENCY: latency_ms[variant]} if variant in latency_ms else {}
    return TradeoffPoint(Path(one.names["run"]).stem, variant, costs, one.evaluation.model.epe3d)


def _point(label: str, found: Sequence[Result], latency_ms: Mapping[str, float]) -> TradeoffPoint:
    size, variant = found[0].record.complexity, found[0].record.variant
    errors = [one.evaluation.model.epe3d for one in found]
    assert size is not None
    costs = {"MACs [G]": size.module_macs / 1e9, "parameters [M]": size.parameters / 1e6}
    costs |= {"file [MB]": round(size.checkpoint_bytes / 1e6, 2)}  # names of runs take a few bytes
    costs |= {LATENCY: latency_ms[variant]} if variant in latency_ms else {}
    return TradeoffPoint(
        label, variant, costs, float(np.mean(errors)), (min(errors), max(errors)) if len(errors) > 1 else None
    )


def _classes(group: Sequence[Measured], networks: Networks, stem: str) -> Iterator[Drawing]:
    for name in dict.fromkeys(table.partition for one in group for table in one.evaluation.by_class):
        found = [(one, table) for one in group if (table := one.evaluation.classes(name))]
        first = found[0][1]
        shown = [(one, table) for one, table in found if first.is_like(table) and one.predictor in table.epe3d]
        baselines = {
            BASELINE_TITLES[key]: [first.epe3d[key]] for key in BASELINE_NAMES if key in first.epe3d
        }  # a row for each seed, as for networks
        labels = _labels([one for one, _ in shown], networks)
        rows = ((label, table.epe3d[one.predictor]) for label, (one, table) in zip(labels, shown, strict=True))
        errors, note = _lines(baselines, rows)
        title = f"EPE3D by {PARTS.get(name, name)}"
        caption = f"{title}: {group[0].protocol.title}. {note}".rstrip()
        classes = [class_heading(one) for one in first.classes]
        draw = partial(class_figure, classes, errors, title, AXES.get(name, name))
        yield Drawing("classes", f"{file_stem(name)}_{stem}", caption, draw)


def _distribution(group: Sequence[Measured], networks: Networks, stem: str) -> Iterator[Drawing]:
    found = [one for one in group if not isinstance(one, OutsideTeacher) and one.evaluation.scenes]
    if not found:
        return
    first = found[0].evaluation
    names = [scene.name for scene in first.scenes]
    alike = [one for one in found if [scene.name for scene in one.evaluation.scenes] == names]
    baselines = {BASELINE_TITLES[key]: [values] for key in BASELINE_NAMES if (values := _of_scenes(first, key))}
    rows = [[scene.model for scene in one.evaluation.scenes] for one in alike]
    errors, note = _lines(baselines, zip(_labels(alike, networks), rows, strict=True))
    caption = f"Share of the {len(names)} scenes with an EPE3D below the value: {group[0].protocol.title}. {note}"
    draw = partial(distribution_figure, errors, "Distribution of errors over scenes")
    yield Drawing("distribution", f"distribution_{stem}", caption.rstrip(), draw)


def _of_scenes(evaluation: EvaluationResult, predictor: str) -> list[float]:
    """The errors of a baseline; empty: not measured in each scene."""
    values = [(scene.model_extra or {}).get(predictor) for scene in evaluation.scenes]
    known = [float(value) for value in values if isinstance(value, int | float)]
    return known if len(known) == len(values) else []


def _lines(
    baselines: Mapping[str, Sequence[Sequence[float | None]]],
    rows: Iterable[tuple[str, Sequence[float | None]]],
) -> tuple[dict[str, list[float | None]], str]:
    """Means over seeds by label; those with the lowest mean where a reader could not tell all apart."""
    members: dict[str, list[Sequence[float | None]]] = {label: list(values) for label, values in baselines.items()}
    for label, values in rows:
        members.setdefault(label, []).append(values)
    means = {label: [_mean(column) for column in zip(*found, strict=True)] for label, found in members.items()}
    networks = sorted((label for label in means if label not in REFERENCES), key=lambda label: _mean(means[label]) or 0)
    if len(networks) <= MOST_LINES:
        return means, ""
    kept = {*networks[:MOST_LINES], *REFERENCES}
    note = f"The {MOST_LINES} networks with the lowest errors of {len(networks)}."
    return {label: values for label, values in means.items() if label in kept}, note


def _labels(group: Sequence[Measured], networks: Networks) -> list[str]:
    """Equal for runs that differ only in their seed, and distinct for different weights of other kinds."""
    found = [_label_and_weights(one, networks) for one in group]
    weights: dict[str, set[str]] = {}
    for label, sha256 in found:
        weights.setdefault(label, set()).add(sha256)
    return [label if len(weights[label]) == 1 else f"{label} {sha256[:8]}" for label, sha256 in found]


def _label_and_weights(one: Measured, networks: Networks) -> tuple[str, str]:
    """The sha256 of weights, which is empty for runs: those of a label are seeds."""
    if isinstance(one, Result):
        return networks[one.run.path].label, ""
    if isinstance(one, OutsideTeacher):
        return "teacher", one.sha256
    return f"{one.names['model']}, {one.names['run']}", one.evaluation.checkpoint.sha256


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
