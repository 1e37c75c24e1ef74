# SPDX-License-Identifier: MIT
"""`bpfn eval`, and the checkpoint that `bpfn eval` and `bpfn predict` work with."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfn_cli.choices import Region
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, echo, finish, print_json, say
from bpfn_cli.cli.places import RUNS, default_dataset, report_command
from bpfn_cli.precision import Precision


def read_weights(checkpoint: Path | None, runs: Path | None = None) -> tuple[Path, Any]:
    """Path and content of `checkpoint`, or of the newest student in `runs`, or else of the default network.

    Notes about it are printed. Raises: CheckpointError: it cannot be read.
    """
    from bpfn_cli.models import read_checkpoint
    from bpfn_cli.runs.listing import latest_checkpoint
    from bpfn_cli.shipped import DEFAULT, shipped_network

    path = checkpoint or (latest_checkpoint(runs) if runs else None) or shipped_network(DEFAULT).path
    read = read_checkpoint(path)
    for note in read.notes:
        say(f"{path}: {note}")
    return path, read


PARTS = typer.Option(
    "--parts", min=1, max=10**6, metavar="N", help="Points of each cloud that the network sees at a time."
)


REGION = typer.Option("--region", help="For LiDAR logs: radius (default), within 35 m; or square, 70 x 70 m.")


def evaluate(
    checkpoint: options.CheckpointFile = None,
    data: options.Data = None,
    split: Annotated[str, typer.Option("--split", help="test, or all (KITTI: also the other 58 scenes).")] = "test",
    points: options.EvaluatedPoints = None,
    parts: Annotated[int | None, PARTS] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.PrecisionName = Precision.float32,
    region: Annotated[Region | None, REGION] = None,
    detail: Annotated[bool, options.switch("--detail", "Print tables of the error by class of points.")] = False,
    runs: options.Runs = RUNS,
    out: Annotated[
        Path | None, options.out("the errors, as JSON; default: evaluations/ in the run folder, or in --runs")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Evaluate a network and three baselines on a dataset.

    With --parts, the points are split at random into parts of that size, as `bpfn predict` does with large clouds.

    The baselines are zero flow, nearest neighbor and rigid ICP, which moves the whole cloud. The default checkpoint is
    the newest student in `runs/`, or else the `weightnet4` that comes with bpfn. With --precision bf16, a second row is
    added for the same weights in bf16. The result is saved in the folder of the checkpoint's run, or for other weights
    in `runs/evaluations/`, where `bpfn report` finds it. Published results of the same variant are printed beside it.

    With --detail, the error is also printed by class of points: moving and static, by speed, by distance and, if the
    data has categories, by category and three-way.

    \b
    Examples:
      $ bpfn eval                               # the newest student
      $ bpfn eval --data data/kitti             # on other data
      $ bpfn eval --checkpoint baseline         # a network that comes with bpfn
      $ bpfn eval --checkpoint student.pth      # published weights
      $ bpfn eval --data data/logs --region square --detail  # LiDAR logs, as the leaderboard of Argoverse 2
      $ bpfn eval --points 8192 --parts 2048    # the network sees a quarter of the points at a time
    """
    from bpfn_cli.data.datasets import describe, open_dataset
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.errors import DataError, UsageError
    from bpfn_cli.files import claim_output, made_folder, make_folder, write_json
    from bpfn_cli.metrics.evaluation import evaluate_checkpoint
    from bpfn_cli.metrics.result import EvaluationResult
    from bpfn_cli.reporting.accuracy import evaluation_table
    from bpfn_cli.reporting.classes import class_summary, class_tables, missing_categories
    from bpfn_cli.reporting.published import protocol_notes, published_beside
    from bpfn_cli.reporting.terminal import print_table
    from bpfn_cli.runs.record import EVALUATIONS, read_schema
    from bpfn_cli.shipped import weights_title

    if parts is not None and precision is not Precision.float32:
        raise UsageError("--parts and --precision: use only one of them")
    path, read = read_weights(checkpoint, runs)
    run = _run_of(path)
    folder = out.parent if out else (run or runs) / EVALUATIONS
    with made_folder(folder):  # before hours of work
        if out is not None:
            claim_output(out, force=force, inputs=[checkpoint])
        chosen = resolve_device(device)
        keep_freed_memory()
        dataset = open_dataset(data or default_dataset(), split, region)
        say(f"data: {describe(dataset)}; weights: {weights_title(path)}")
        points = points or read.num_points
        how: dict[str, Any] = {"points": points, "parts": parts, "seed": seed, "precision": precision}
        result = evaluate_checkpoint(path, dataset, device=chosen, progress=ConsoleProgress(), **how)
        target = out or folder / result.file_name
        if target.is_file():  # the end of the training may have measured the teacher too
            with contextlib.suppress(DataError):
                result = result.with_teacher_of(read_schema(target, EvaluationResult, ""))
        make_folder(target.parent)  # another command that failed meanwhile may have removed it
        write_json(target, result.as_dict())
    if json:
        print_json(result.as_dict())
    else:
        tables = (evaluation_table(result), *published_beside(result), *(class_tables(result) if detail else ()))
        for number, table in enumerate(tables):
            if number:
                echo("")
            print_table(table, console())
        echo(result.summary())
        echo(f"{class_summary(result)}{'' if detail else '; --detail prints more'}")
    for note in (*protocol_notes(result), *missing_categories(result)):
        say(f"note: {note}")
    if out is None:
        finish(target, *report_command(run.parent if run else runs))
    else:
        advice = "`bpfn report` reads only results in `runs/`, so leave out --out to have it listed there"
        say(f"written: {target}; {advice}")


def _run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint belongs to, if any."""
    from bpfn_cli.runs.record import RECORD_FILE

    return next((folder for folder in checkpoint.resolve().parents[:2] if (folder / RECORD_FILE).is_file()), None)
