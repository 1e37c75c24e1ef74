# SPDX-License-Identifier: MIT
"""`bpfn compare`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, finish, print_json, say
from bpfn_cli.cli.places import RUNS, default_dataset

if TYPE_CHECKING:
    from bpfn_cli.studies.study import CellState


def compare(
    study: Annotated[Path, typer.Argument(readable=False, help="Study (YAML).", metavar="FILE")],
    data: options.Data = None,
    device: options.Device = "auto",
    runs: options.Runs = RUNS,
    name: Annotated[
        str | None, typer.Option("--name", help="Of its folder below the runs; else the file's.", metavar="NAME")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Part i of n, e.g. 2/8, for job arrays.", metavar="I/N")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Only the tables of what is finished.", metavar="")] = False,
    max_time: options.MaxTime = None,
    retry: Annotated[bool, typer.Option("--retry", help="Train again what failed by NaN.", metavar="")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train every variant, loss and seed of a study, with controls, and compare them in pairs.

    The same command goes on where it was stopped, also in the midst of a training. Tables go to `compare.md` and CSV
    files in the study's folder.

    Examples: `bpfn compare configs/studies/synthetic.yaml --dry-run`, `bpfn compare configs/studies/synthetic.yaml`,
    `bpfn compare study.yaml --shard 3/8`, `bpfn compare study.yaml --table`
    """
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.errors import Interrupted, NonFiniteError
    from bpfn_cli.runs.folder import check_run_name
    from bpfn_cli.studies.study import Place, planned, read_study, run_study
    from bpfn_cli.training import Interruption, parse_duration

    stop = Interruption(None if max_time is None else parse_duration(max_time))
    chosen = name or study.stem
    check_run_name(chosen)
    read = read_study(study)
    folder = runs / chosen
    if table:
        _print_tables(folder, json)
        return
    keep_freed_memory()
    place = Place(
        folder=folder,
        data=data or default_dataset(),
        device=resolve_device(device),
        command=shlex.join(["bpfn", *sys.argv[1:]]),
        shard=_shard(shard),
        stop=stop,
    )
    if dry_run:
        _print_states(planned(read, place), json)
        return
    try:
        after = run_study(read, place, ConsoleProgress(), retry)
    except Interrupted as error:
        raise error.resumed_by("the same command") from None
    left = [state for state in after if state.state != "finished"]
    if left:
        say(f"{len(left)} of {len(after)} trainings are not finished: {', '.join(s.cell.name for s in left[:5])}")
    _print_tables(folder, json)
    finish(folder / "compare.md", f"bpfn report --source {folder}")
    failed = [state.cell.name for state in left if state.state == "failed"]
    if failed:
        raise NonFiniteError(f"{', '.join(failed)}: failed by NaN or infinity; see their run.json, or --retry")


def _shard(text: str | None) -> tuple[int, int]:
    from bpfn_cli.errors import UsageError

    if text is None:
        return 1, 1
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {text}: write part/parts, such as 2/8")
    return int(index), int(count)


def _print_states(found: list[CellState], json: bool) -> None:
    if json:
        print_json([{"name": one.cell.name, "state": one.state} for one in found])
        return
    for one in found:
        print(f"{one.state:<9} {one.cell.name}")
    counts = {state: sum(one.state == state for one in found) for state in ("finished", "failed", "to do", "waiting")}
    say(", ".join(f"{count} {state}" for state, count in counts.items()) + " (waiting: for the times of the others)")


def _print_tables(folder: Path, json: bool) -> None:
    from bpfn_cli.errors import DataError, printable
    from bpfn_cli.files import write_atomic
    from bpfn_cli.reporting import print_console, read_runs, to_csv, to_json, to_markdown
    from bpfn_cli.reporting.comparison import comparison_report

    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such study; `bpfn compare FILE` trains one")
    made = comparison_report(read_runs(folder))
    write_atomic(folder / "compare.md", to_markdown(made).encode())
    for kind, text in to_csv(made).items():
        write_atomic(folder / f"compare_{kind}.csv", text.encode())
    as_json: dict[str, Any] = to_json(made)
    if json:
        print_json(as_json)
    else:
        print_console(made, console())
