# SPDX-License-Identifier: MIT
"""What a page says about the runs of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bpfn_cli.errors import printable
from bpfn_cli.progress import OnProgress
from bpfn_cli.reporting.classes import class_report_tables
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


@dataclass(frozen=True)
class Contents:
    """Makes the page of `results`. report: their tables. scenes: with the pages that were written."""

    results: RunResults
    report: Report
    scenes: Sequence[SceneSet]
    drawings: Sequence[Drawing]
    pictures: Pictures

    def page(self) -> Page:
        """The page with all sections that have something to say."""
        return Page(
            f"Training runs in {printable(self.results.folder)}",
            _summary(self.results),
            datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
            [section for section in self.sections() if not section.is_empty],
            self.report.message,
        )

    def sections(self) -> Iterator[Section]:
        results, runs = self.results, self.results.runs
        folds = [*_reading(self.report.notes), *_folds(self.of_kind("published_accuracy"))]
        accuracy = _tables(self.of_kind("accuracy"))
        yield Section("accuracy", "Accuracy", tables=accuracy, figures=self.drawn("distribution"), folds=folds)
        yield Section("waiting", "Runs without results", tables=_tables(self.of_kind("without_results")))
        folds = _folds([*self.of_kind("history"), *self.of_kind("published_complexity")])
        title, sizes = "Size, and accuracy against cost", _tables(self.of_kind("complexity"))
        yield Section("cost", title, tables=sizes, figures=self.drawn("cost"), folds=folds)
        yield self.study()
        by_class = _folds(class_report_tables(runs, results.others))
        yield Section("classes", "Errors by class of points", figures=self.drawn("classes"), folds=by_class)
        yield Section("scenes", "Worst and best scenes", scenes=self.scenes)
        yield self.learning()
        settings = list(settings_tables(runs))
        yield Section("settings", "Settings", tables=_tables(settings[:-1]), folds=_folds(settings[-1:]))
        made = [commands_table(runs), versions_table(runs)] if runs else []
        yield Section("commands", "Commands and versions", tables=_tables(made))
        yield Section("left-out", "Left out", texts=[printable(problem) for problem in results.problems])

    def study(self) -> Section:
        """The differences between the methods of a study, if the runs are of one."""
        study = comparison_report(self.results)
        folds = _reading(study.notes) if study.tables else []
        title = "Differences between methods"
        return Section("study", title, tables=_tables(study.tables), figures=self.drawn("study"), folds=folds)

    def learning(self) -> Section:
        """The curves of all networks in one plot, and those of each behind its name."""
        networks, texts = len(networks_of(self.results.runs)), []
        if networks > MOST_NETWORKS:
            advice = "for others, make a page of their run folder: bpfn report --runs RUN --html DIR"
            texts.append(f"Loss terms of the newest {MOST_NETWORKS} of {networks} networks; {advice}.")
        terms = [one for one in self.drawings if one.subject == "terms"]
        folds = [Fold(printable(one.title), [self.pictures.of(one)]) for one in terms]
        return Section("learning", "Learning curves", texts, figures=self.drawn("learning"), folds=folds)

    def drawn(self, subject: str) -> list[Picture]:
        return [self.pictures.of(one) for one in self.drawings if one.subject == subject]

    def of_kind(self, kind: str) -> list[Table]:
        return [table for table in self.report.tables if table.kind == kind]


def page_of(
    results: RunResults,
    report: Report,
    scenes: Sequence[SceneSet],
    options: Options | None = None,
    pictures: Pictures | None = None,
    progress: OnProgress = None,
) -> Page:
    """Args: report: the tables of `results`. scenes: with their pages. pictures: keeps figures between pages.

    progress: called with the number of figures that are drawn, and of all.
    """
    options, pictures = options or Options(), pictures or Pictures()
    drawings = run_drawings(
        results, published=options.published, latency_ms=options.latency_ms, most_networks=MOST_NETWORKS
    )
    for done, one in enumerate(drawings, start=1):
        pictures.of(one)
        if progress is not None:
            progress(done, len(drawings))
    return Contents(results, report, scenes, drawings, pictures).page()


def _tables(tables: Iterable[Table]) -> list[DrawnTable]:
    return [DrawnTable.of(table) for table in tables]


def _folds(tables: Iterable[Table]) -> list[Fold]:
    """A fold for each table."""
    return [Fold(table.title, tables=[table]) for table in _tables(tables)]


def _reading(notes: Sequence[str]) -> list[Fold]:
    return [Fold("How to read the tables", texts=[printable(note) for note in notes])] if notes else []


def _summary(results: RunResults) -> str:
    """Such as "21 runs: 20 finished, 1 running; 20 with test results."."""
    if not results.runs:
        return "No runs."
    states = Counter(run.record.state for run in results.runs)
    evaluated = sum(bool(run.evaluations) for run in results.runs)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{len(results.runs)} runs: {counts}; {evaluated} with test results."
