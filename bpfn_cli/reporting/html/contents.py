# SPDX-License-Identifier: MIT
"""What a page says about the runs of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bpfn_cli.errors import printable
from bpfn_cli.reporting.comparison import comparison_report
from bpfn_cli.reporting.drawings import Drawing, run_drawings
from bpfn_cli.reporting.drawings.networks import networks_of
from bpfn_cli.reporting.html.page import DrawnTable, Fold, Page, Picture, Pictures, Section
from bpfn_cli.reporting.html.scenes import SceneSet
from bpfn_cli.reporting.html.settings import commands_table, settings_tables, versions_table
from bpfn_cli.reporting.tables import Report, Table
from bpfn_cli.runs.results import RunResults

MOST_NETWORKS = 24  # whose learning curves are drawn, so that the page stays small


@dataclass(frozen=True)
class Options:
    """What a page shows beside the tables. latency_ms: as of `accuracy_drawings`."""

    published: bool = False
    latency_ms: Mapping[str, float] = field(default_factory=dict)


def page_of(
    results: RunResults,
    report: Report,
    scenes: Sequence[SceneSet],
    options: Options = Options(),
    pictures: Pictures | None = None,
) -> Page:
    """Args: report: the tables of `results`. pictures: keeps figures between pages."""
    pictures = pictures or Pictures()
    drawings = run_drawings(
        results, published=options.published, latency_ms=options.latency_ms, most_networks=MOST_NETWORKS
    )

    def drawn(*subjects: str) -> list[Picture]:
        return [pictures.of(one) for one in drawings if one.subject in subjects]

    study = comparison_report(results)
    runs = results.runs
    settings = [DrawnTable.of(table) for table in settings_tables(runs)]
    sections = [
        Section("accuracy", "Accuracy", report.notes, _tables(report, _is_accuracy), drawn("distribution")),
        Section("waiting", "Runs without results", (), _tables(report, lambda kind: kind == "without_results")),
        Section("cost", "Size and accuracy against cost", (), _tables(report, _is_cost), drawn("cost")),
        Section(
            "study", "Differences between methods", study.notes, [*map(DrawnTable.of, study.tables)], drawn("study")
        ),
        Section("classes", "Errors by class of points", (), (), drawn("classes"), folds=_class_folds(report)),
        Section("scenes", "Worst and best scenes", (), scenes=scenes),
        _learning(results, drawings, pictures),
        Section("settings", "Settings", (), settings[:-1], folds=_folds("What all runs share", settings[-1:])),
        Section("commands", "Commands and versions", (), _commands(results)),
        Section(
            "left-out", "Left out", [f"{len(results.problems)} problems:", *results.problems] * bool(results.problems)
        ),
    ]
    return Page(
        f"Training runs in {printable(results.folder)}",
        _summary(results),
        datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
        [section for section in sections if not section.is_empty],
        report.message,
    )


def _learning(results: RunResults, drawings: Iterable[Drawing], pictures: Pictures) -> Section:
    networks = len(networks_of(results.runs))
    every = [one for one in drawings if one.subject == "learning"]
    whole = [pictures.of(one) for one in every if one.stem.startswith("validation")]
    single = [(one, pictures.of(one)) for one in every if not one.stem.startswith("validation")]
    texts = []
    if networks > MOST_NETWORKS:
        advice = "for others, make a page of their run folder: bpfn report --runs RUN --html DIR"
        texts.append(f"Loss terms of the newest {MOST_NETWORKS} of {networks} networks; {advice}.")
    folds = [Fold(printable(one.caption), [picture]) for one, picture in single]
    return Section("learning", "Learning curves", texts, (), whole, folds=folds)


def _tables(report: Report, chosen: Callable[[str], bool]) -> list[DrawnTable]:
    return [DrawnTable.of(table) for table in report.tables if chosen(table.kind)]


def _is_accuracy(kind: str) -> bool:
    return kind in ("accuracy", "published_accuracy")


def _is_cost(kind: str) -> bool:
    return kind in ("complexity", "published_complexity")


def _class_folds(report: Report) -> list[Fold]:
    tables = [table for table in report.tables if _is_by_class(table)]
    return [Fold(printable(table.title), (), [DrawnTable.of(table)]) for table in tables]


def _is_by_class(table: Table) -> bool:
    return table.kind.startswith("classes_") or table.kind == "bucket_normalized"


def _folds(title: str, tables: Sequence[DrawnTable]) -> list[Fold]:
    return [Fold(title, (), tables)] if tables else []


def _commands(results: RunResults) -> list[DrawnTable]:
    runs = results.runs
    return [DrawnTable.of(commands_table(runs)), DrawnTable.of(versions_table(runs))] if runs else []


def _summary(results: RunResults) -> str:
    """Such as "21 runs: 20 finished, 1 running"."""
    if not results.runs:
        return "No runs."
    states = Counter(run.record.state for run in results.runs)
    evaluated = sum(bool(run.evaluations) for run in results.runs)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{len(results.runs)} runs: {counts}; {evaluated} with test results."
