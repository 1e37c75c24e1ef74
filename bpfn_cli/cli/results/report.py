# SPDX-License-Identifier: MIT
"""`bpfn report`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, finish, print_json, say
from bpfn_cli.cli.places import RUNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfn_cli.reporting import Planned, Report
    from bpfn_cli.reporting.drawings import Drawing
    from bpfn_cli.reporting.html import PageWriter
    from bpfn_cli.runs.listing import Traces
    from bpfn_cli.runs.results import RunResults

PLANNED = options.path("--planned", help="Study file; adds its trainings that have no run yet.", metavar="FILE")
HTML = options.path("--html", help="Also write a page for the browser, DIR/index.html.", metavar="DIR")
FIGURES = options.path("--figures", help="Also write all figures, as PNG and SVG.", metavar="DIR")
BENCH = options.path("--bench", help="Times for the figures, from `bpfn bench --out FILE`.", metavar="FILE")
SCENES = typer.Option(
    "--scenes",
    min=0,
    max=100,
    help="Worst and best scenes of a network that get a page each with --html; default: 3.",
    metavar="N",
)
MOST_SCENES = 3  # the worst and the best of each network that get a page
SECONDS_BETWEEN_LOOKS = 5.0


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """What `bpfn report` takes."""

    runs: options.Runs = RUNS
    out: Annotated[Path | None, options.out("the tables, as Markdown and CSV files")] = None
    html: Annotated[Path | None, HTML] = None
    figures: Annotated[Path | None, FIGURES] = None
    scenes: Annotated[int | None, SCENES] = None
    bench: Annotated[Path | None, BENCH] = None
    watch: Annotated[bool, options.switch("--watch", "Write the page again whenever runs change.")] = False
    published: Annotated[bool, options.switch("--published", "Add tables of the published results.")] = False
    detail: Annotated[bool, options.switch("--detail", "Add tables of the error by class of points.")] = False
    planned: Annotated[Path | None, PLANNED] = None
    force: options.Force = False
    json: options.Json = False


@options.takes(ReportFlags)
def report(flags: ReportFlags) -> None:
    """Print tables of the accuracy and size of all networks.

    There is one table of accuracy for each dataset. With --out DIR, also write them as `report.md` and as CSV files.
    With --planned FILE, the runs are those that `bpfn compare FILE` trains, if there are any.

    --html DIR writes one page with all tables, accuracy against cost, learning curves, errors by class of points, the
    worst and best scenes, settings and versions. It needs no network and no server. --figures DIR writes the figures
    alone, sized for a column or a page of a paper.

    \b
    Examples:
      $ bpfn report                                  # the runs in `runs/`
      $ bpfn report --out results                    # also as Markdown and CSV files
      $ bpfn report --out results --force            # again, after more runs
      $ bpfn report --html page                      # a page for the browser: open page/index.html
      $ bpfn report --html page --watch              # and keep it up to date during trainings
      $ bpfn report --figures figures                # figures for a paper
      $ bpfn report --published                      # with the published results
      $ bpfn report --detail                         # with errors of moving and static, near and far points
      $ bpfn report --planned study.yaml             # with what is left to train
    """
    from bpfn_cli.errors import DataError, UsageError, printable
    from bpfn_cli.files import made_folder
    from bpfn_cli.reporting import print_console, to_json
    from bpfn_cli.runs.listing import traces_of
    from bpfn_cli.viewing.libraries import need_viz

    if flags.watch and flags.html is None:
        raise UsageError("--watch: keeps a page up to date; add --html DIR")
    if flags.watch and flags.json:
        raise UsageError("--watch and --json: use only one of them")
    if flags.scenes is not None and flags.html is None:
        raise UsageError("--scenes: has no effect without --html DIR")
    if flags.bench and not (flags.html or flags.figures):
        raise UsageError("--bench: has no effect without --html DIR or --figures DIR")
    if flags.html or flags.figures:
        need_viz("matplotlib", *(["jinja2"] if flags.html else []))
    runs = _folder_of(flags.planned) if flags.planned and flags.runs == RUNS else flags.runs
    if runs != RUNS and not runs.is_dir():
        raise DataError(f"{printable(runs)}: no such folder of runs; check the path")
    seen = traces_of(runs)  # before they are read, so that no later change is missed
    with made_folder(flags.out, flags.figures, flags.html):
        written = _Written.claimed(flags, runs)
        if not flags.watch:
            print_json(to_json(written.tables)) if flags.json else print_console(written.tables, console())
        written.write()
    if flags.watch and written.pages is not None:
        _watch(flags, runs, written.pages, seen)
    elif written.last is not None:
        finish(written.last)
        if flags.html:
            say(f"to see it, open {written.last} in a browser")
    elif written.results.runs:
        say("next: bpfn report --html page (figures and scenes), bpfn report --out results, or bpfn eval on other data")


@dataclass(frozen=True)
class _Written:
    """What is read, and what is written of it."""

    flags: ReportFlags
    results: RunResults
    tables: Report
    pages: PageWriter | None
    drawings: Sequence[Drawing]

    @classmethod
    def claimed(cls, flags: ReportFlags, runs: Path) -> _Written:
        """Read the runs, and check that all outputs can be written."""
        from bpfn_cli.errors import DataError, printable
        from bpfn_cli.files import claim_outputs
        from bpfn_cli.reporting import table_files
        from bpfn_cli.reporting.drawings import drawing_files, run_drawings
        from bpfn_cli.reporting.drawings.accuracy import read_latency
        from bpfn_cli.reporting.html import PageWriter

        latency_ms = read_latency(flags.bench) if flags.bench else {}
        results, tables = _read(flags, runs)
        pages = None
        if flags.html is not None:
            pages = PageWriter(
                flags.html, flags.published, latency_ms, MOST_SCENES if flags.scenes is None else flags.scenes
            )
            claim_outputs(flags.html, pages.files(results), force=flags.force, inputs=[runs], flag="--html")
        drawings: list[Drawing] = []
        if flags.figures is not None:
            drawings = run_drawings(results, published=flags.published, latency_ms=latency_ms)
            if not drawings:
                raise DataError(
                    f"--figures: the runs in {printable(runs)} have nothing to draw; `bpfn train` makes one"
                )
            claim_outputs(flags.figures, drawing_files(drawings), force=flags.force, inputs=[runs], flag="--figures")
        if flags.out is not None:
            claim_outputs(flags.out, table_files(tables, "report"), force=flags.force, inputs=[runs])
        return cls(flags, results, tables, pages, drawings)

    @property
    def last(self) -> Path | None:
        """The file to open."""
        flags = self.flags
        if flags.html is not None:
            return flags.html / "index.html"
        return flags.figures or (flags.out / "report.md" if flags.out else None)

    def write(self) -> None:
        from bpfn_cli.reporting import write_tables
        from bpfn_cli.reporting.drawings import write_drawings

        flags = self.flags
        if flags.out is not None:
            write_tables(self.tables, flags.out, "report")
        if flags.figures is not None:
            with ConsoleProgress().bar("drawing") as bar:
                for done, one in enumerate(self.drawings, start=1):
                    write_drawings([one], flags.figures)
                    bar(done, len(self.drawings), one.stem)
            say(f"{2 * len(self.drawings)} figures in {flags.figures}")
        if self.pages is not None:
            with ConsoleProgress().bar("drawing") as bar:
                self.pages.write(self.results, self.tables, SECONDS_BETWEEN_LOOKS if flags.watch else None, bar)


def _read(flags: ReportFlags, runs: Path) -> tuple[RunResults, Report]:
    from bpfn_cli.reporting import build_report, read_runs

    results = read_runs(runs)
    waiting = _without_run(flags.planned, results) if flags.planned else ()
    return results, build_report(results, published=flags.published, detail=flags.detail, planned=waiting)


def _watch(flags: ReportFlags, runs: Path, pages: PageWriter, seen: Traces) -> None:
    """Write the page again whenever a run changes, until Ctrl-C. Args: seen: what the page was made of."""
    from bpfn_cli.runs.listing import traces_of

    say(f"open {pages.index}; watching {runs} until Ctrl-C")
    try:
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if (now := traces_of(runs)) != seen:
                seen = now
                pages.write(*_read(flags, runs), SECONDS_BETWEEN_LOOKS)
                say(f"{time.strftime('%H:%M:%S')} written: {pages.index}")
    except KeyboardInterrupt:
        pages.write(*_read(flags, runs))  # without the reload
        finish(pages.index)


def _folder_of(study: Path) -> Path:
    """Where the runs of a study are, or else all runs."""
    folder = RUNS / study.stem
    return folder if folder.is_dir() else RUNS


def _without_run(path: Path, results: RunResults) -> list[Planned]:
    from bpfn_cli.reporting import Planned
    from bpfn_cli.studies.study import cells_without_run, read_study

    found = cells_without_run(read_study(path), (run.record for run in results.runs))
    return [
        Planned(cell.name, cell.recipe.variant.name, cell.method, cell.recipe.seed, cell.planned_epochs)
        for cell in found
    ]
