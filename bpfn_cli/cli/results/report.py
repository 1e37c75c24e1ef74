# SPDX-License-Identifier: MIT
"""`bpfn report`."""

from __future__ import annotations

from typing import Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, finish, print_json, say
from bpfn_cli.cli.places import RUNS


def report(
    source: options.Source = None,
    out: options.Out = None,
    published: Annotated[
        bool, typer.Option("--published", help="The published rows too, in tables of their own.", metavar="")
    ] = False,
    json: options.Json = False,
) -> None:
    """Tables of all runs: accuracy by dataset, and what each network costs.

    With --out DIR also as `report.md` and CSV files.

    Examples: `bpfn report`, `bpfn report --source runs --out results --published`
    """
    from bpfn_cli.errors import DataError, printable
    from bpfn_cli.files import make_folder, write_atomic
    from bpfn_cli.reporting import build_report, print_console, read_runs, to_csv, to_json, to_markdown

    if source is not None and not source.is_dir():
        raise DataError(f"{printable(source)}: no such folder of runs; check the path")
    if out is not None:
        make_folder(out)
    found = read_runs(source or RUNS)
    made = build_report(found, published=published)
    if json:
        print_json(to_json(made))
    else:
        print_console(made, console())
    if out is not None:
        write_atomic(out / "report.md", to_markdown(made).encode())
        for name, text in to_csv(made).items():
            write_atomic(out / f"{name}.csv", text.encode())
        finish(out, f"open {out / 'report.md'}")
    elif found.runs:
        say("next: bpfn report --out results (Markdown and CSV), bpfn report --published, or bpfn eval on other data")
