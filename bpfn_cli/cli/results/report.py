# SPDX-License-Identifier: MIT
"""`bpfn report`."""

from typing import Annotated

from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, finish, print_json, say
from bpfn_cli.cli.places import RUNS


def report(
    source: options.Source = None,
    out: options.Out = None,
    published: Annotated[bool, options.switch("--published", "Add tables of the published results.")] = False,
    json: options.Json = False,
) -> None:
    """Print tables of the accuracy and size of all networks.

    There is one table of accuracy for each dataset. With --out DIR, also write them as `report.md` and as CSV files.

    \b
    Examples:
      $ bpfn report                                  # the runs in `runs/`
      $ bpfn report --out results                    # also as Markdown and CSV files
      $ bpfn report --published                      # with the published results
    """
    from bpfn_cli.errors import DataError, printable
    from bpfn_cli.files import make_folder
    from bpfn_cli.reporting import build_report, print_console, read_runs, to_json, write_pages

    if source is not None and not source.is_dir():
        raise DataError(f"{printable(source)}: no such folder of runs; check the path")
    if out is not None:
        make_folder(out)
    results = read_runs(source or RUNS)
    tables = build_report(results, published=published)
    if json:
        print_json(to_json(tables))
    else:
        print_console(tables, console())
    if out is not None:
        write_pages(tables, out, "report")
        finish(out, f"open {out / 'report.md'}")
    elif results.runs:
        say("next: bpfn report --out results (Markdown and CSV), bpfn report --published, or bpfn eval on other data")
