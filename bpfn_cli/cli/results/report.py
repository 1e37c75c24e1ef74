# SPDX-License-Identifier: MIT
"""`bpfn report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, finish, print_json, say
from bpfn_cli.cli.places import RUNS

if TYPE_CHECKING:
    from bpfn_cli.reporting import Planned
    from bpfn_cli.runs.results import RunResults

PLANNED = options.path("--planned", help="Study whose trainings without a run are added.", metavar="FILE")


def report(
    runs: options.Runs = RUNS,
    out: options.Out = None,
    published: Annotated[bool, options.switch("--published", "Add tables of the published results.")] = False,
    detail: Annotated[bool, options.switch("--detail", "Add tables of the error by class of points.")] = False,
    planned: Annotated[Path | None, PLANNED] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Print tables of the accuracy and size of all networks.

    There is one table of accuracy for each dataset. With --out DIR, also write them as `report.md` and as CSV files.
    With --planned FILE, the runs are those that `bpfn compare FILE` trains, if there are any.

    \b
    Examples:
      $ bpfn report                                  # the runs in `runs/`
      $ bpfn report --out results                    # also as Markdown and CSV files
      $ bpfn report --out results --force            # again, after more runs
      $ bpfn report --published                      # with the published results
      $ bpfn report --detail                         # with errors of moving and static, near and far points
      $ bpfn report --planned study.yaml             # with what is left to train
    """
    from bpfn_cli.errors import DataError, printable
    from bpfn_cli.files import claim_outputs
    from bpfn_cli.reporting import build_report, page_names, print_console, read_runs, to_json, write_pages

    if runs != RUNS and not runs.is_dir():
        raise DataError(f"{printable(runs)}: no such folder of runs; check the path")
    results = read_runs(_folder_of(planned) if planned and runs == RUNS else runs)
    waiting = _without_run(planned, results) if planned else ()
    tables = build_report(results, published=published, detail=detail, planned=waiting)
    if out is not None:
        claim_outputs(out, page_names(tables, "report"), force=force, inputs=[runs])
    if json:
        print_json(to_json(tables))
    else:
        print_console(tables, console())
    if out is not None:
        write_pages(tables, out, "report")
        finish(out, f"open {out / 'report.md'}")
    elif results.runs:
        say("next: bpfn report --out results (Markdown and CSV), bpfn report --published, or bpfn eval on other data")


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
