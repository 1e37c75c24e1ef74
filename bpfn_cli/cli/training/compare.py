# SPDX-License-Identifier: MIT
"""`bpfn compare`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.choices import PartitionName
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, echo, finish, print_json, say
from bpfn_cli.cli.places import RUNS, default_dataset, report_command, synthetic_first
from bpfn_cli.parallel import Shard

if TYPE_CHECKING:
    from bpfn_cli.studies.runner import CellState, StudyRunner
    from bpfn_cli.studies.study import Study


BY = typer.Option("--by", help="Also compare over each class of points, such as moving and static ones.")


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """What `compare` takes."""

    study: Annotated[Path, options.path_argument(help="Study (YAML).", metavar="FILE")]
    data: options.Data = None
    device: options.Device = "auto"
    runs: options.Runs = RUNS
    name: Annotated[str | None, typer.Option(help="Name of its folder; default: the file's.", metavar="NAME")] = None
    shard: Annotated[str, typer.Option(help="Part I of N of the trainings, for job arrays.", metavar="I/N")] = "1/1"
    table: Annotated[bool, options.switch("--table", "Only print tables of finished trainings.")] = False
    by: Annotated[PartitionName | None, BY] = None
    plot: Annotated[bool, options.switch("--plot", "Draw EPE3D over epochs and the differences (PNG and SVG).")] = False
    max_time: options.MaxTime = None
    retry: Annotated[bool, options.switch("--retry", "Repeat trainings that failed with NaN.")] = False
    allow_code: options.AllowCode = False
    dry_run: options.DryRun = False
    json: options.Json = False


@options.takes(CompareFlags)
def compare(flags: CompareFlags) -> None:
    """Train all methods of a study, and compare each with scratch.

    A method is a variant with a loss; it is trained with each seed, and compared with training from scratch, seed by
    seed. Repeat the command to resume an interrupted study, even in the middle of a training. Tables are written to
    compare.md and to CSV files in the folder of the study, and with --plot figures of EPE3D over epochs and of the
    differences, as PNG and SVG. With --by, methods are also compared over the points of each class alone: by motion,
    speed, range or, if the test data has categories, three-way or category.

    \b
    Examples:
      $ bpfn compare configs/studies/synthetic.yaml --dry-run    # list the trainings
      $ bpfn compare configs/studies/synthetic.yaml              # run them, or resume
      $ bpfn compare study.yaml --shard 3/8                      # the third of eight jobs
      $ bpfn compare study.yaml --table --plot                   # tables and plots of what is finished
      $ bpfn compare study.yaml --table --by motion              # does a method help moving points, or static ones?
    """
    from bpfn_cli.errors import UsageError
    from bpfn_cli.runs.folder import check_run_name
    from bpfn_cli.studies.runner import untrained
    from bpfn_cli.studies.study import read_study

    name = flags.name or flags.study.stem
    check_run_name(name)
    folder = flags.runs / name
    if flags.plot:
        from bpfn_cli.viewing.libraries import need_viz

        need_viz("matplotlib")  # before hours of training
    if flags.table:
        if flags.dry_run or flags.retry:
            raise UsageError(f"--table and {'--dry-run' if flags.dry_run else '--retry'}: use only one of them")
        _print_tables(folder, flags)
        return
    study = read_study(flags.study)
    named = flags.data or (None if study.data.path is None else Path(study.data.path))
    data = named or default_dataset(make=not flags.dry_run)
    if data is None:
        _print_states(untrained(study, Shard.parse(flags.shard)), flags.json)
        say(f"data: {synthetic_first()}; only with data are finished trainings listed as such")
        return
    runner = _runner(flags, study, data, folder)
    if flags.dry_run:
        _print_states(runner.planned(), flags.json)
    else:
        _run(runner, flags)


def _runner(flags: CompareFlags, study: Study, data: Path, folder: Path) -> StudyRunner:
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.stop import Interruption, parse_duration
    from bpfn_cli.studies.runner import StudyRunner
    from bpfn_cli.training import OpenedDataset
    from bpfn_cli.training.trainer import Trainer

    stop = Interruption(None if flags.max_time is None else parse_duration(flags.max_time))
    part, device = Shard.parse(flags.shard), resolve_device(flags.device)
    keep_freed_memory()
    command = shlex.join(["bpfn", *sys.argv[1:]])
    opened = OpenedDataset.open(data, study.test_path, study.split, study.data)
    trainer = Trainer(opened, folder, device, command, stop, ConsoleProgress(), flags.allow_code)
    return StudyRunner(study, folder, trainer, part)


def _run(runner: StudyRunner, flags: CompareFlags) -> None:
    from bpfn_cli.errors import Interrupted, NonFiniteError

    try:
        states = runner.run(ConsoleProgress(), flags.retry)
    except Interrupted as error:
        raise error.resumed_by("the same command") from None
    left = [one for one in states if one.state != "finished"]
    if left:
        names = ", ".join(one.cell.name for one in left[:5])
        say(f"{len(left)} of {len(states)} trainings are not finished: {names}")
    _print_tables(runner.folder, flags)
    finish(runner.folder / "compare.md", *report_command(runner.folder))
    failed = [one.cell.name for one in left if one.state == "failed"]
    if failed:
        raise NonFiniteError(f"{', '.join(failed)}: failed with NaN or infinity; see their run.json, or use --retry")


def _print_states(found: list[CellState], json: bool) -> None:
    if json:
        print_json([{"name": one.cell.name, "state": one.state} for one in found])
        return
    for one in found:
        echo(f"{one.state:<9} {one.cell.name}")
    states = [one.state for one in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "failed", "to do", "waiting"))
    say(f"{counts} (waiting: for the times of other trainings)")


def _print_tables(folder: Path, flags: CompareFlags) -> None:
    from bpfn_cli.errors import DataError, DiskError, printable
    from bpfn_cli.reporting import print_console, read_runs, to_json, write_tables
    from bpfn_cli.reporting.comparison import comparison_report

    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such study; `bpfn compare FILE` trains one")
    results = read_runs(folder)
    report = comparison_report(results, flags.by)
    if flags.json:
        print_json(to_json(report))
    else:
        print_console(report, console())
    try:
        write_tables(report, folder, "compare", csv_prefix="compare_")
    except DiskError as error:
        if not flags.table:
            raise
        say(f"note: the tables are not written: {error}")
    if flags.plot:
        from bpfn_cli.reporting.drawings import study_drawings, write_drawings

        for path in write_drawings(list(study_drawings(results)), folder):
            say(f"written: {path}")
