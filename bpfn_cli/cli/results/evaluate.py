# SPDX-License-Identifier: MIT
"""`bpfn eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, print_json, say
from bpfn_cli.cli.places import RUNS, default_dataset
from bpfn_cli.precision import Precision


def evaluate(
    checkpoint: options.CheckpointFile = None,
    data: options.Data = None,
    split: Annotated[str, typer.Option("--split", help="test, or all (KITTI: also the other 58 scenes).")] = "test",
    points: options.Points = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.PrecisionName = Precision.float32,
    runs: options.Runs = RUNS,
    out: options.Out = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure a network, and the zero-flow and nearest-neighbor baselines, on a dataset.

    Without --checkpoint: the newest student below `runs/`. With --precision bf16: a row more, of the same weights in
    bf16. A result goes beside the checkpoint's run, for `report`.

    Examples: `bpfn eval`, `bpfn eval --checkpoint student.pth --data data/kitti --points 8192`
    """
    from bpfn_cli.data.datasets import describe, open_dataset
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.files import claim_output, make_folder, write_json
    from bpfn_cli.metrics.checkpoint_result import evaluate_checkpoint, result_name
    from bpfn_cli.models import read_checkpoint
    from bpfn_cli.training import summary_line

    if out is not None:
        claim_output(out, force=force, inputs=[checkpoint])
    path = checkpoint or newest_checkpoint(runs)
    chosen = resolve_device(device)
    keep_freed_memory()
    read = read_checkpoint(path)
    for note in read.notes:
        say(f"{path}: {note}")
    dataset = open_dataset(data or default_dataset(), split)
    say(f"data: {describe(dataset)}; weights: {path}")
    result = evaluate_checkpoint(
        path,
        dataset,
        points=points or read.num_points,
        seed=seed or 0,
        device=chosen,
        progress=ConsoleProgress(),
        precision=precision,
    )
    target = out or _beside_run(path, result_name(result))
    if target is not None:
        make_folder(target.parent)
        write_json(target, result)
    if json:
        print_json(result)
    else:
        _print_rows(result)
        print(summary_line(read.variant.name, result))
    if target is not None:
        say(f"written: {target}")
    say("next: bpfn report")


def newest_checkpoint(runs: Path) -> Path:
    """The newest student's weights. Raises: CheckpointError: there is none."""
    from bpfn_cli.errors import CheckpointError
    from bpfn_cli.runs.folder import latest_checkpoint

    path = latest_checkpoint(runs)
    if path is None:
        raise CheckpointError(f"{runs}: no finished run; give --checkpoint FILE, or `bpfn distill --loss bihint` first")
    return path


def _beside_run(checkpoint: Path, name: str) -> Path | None:
    folders = [folder for folder in checkpoint.resolve().parents[:2] if (folder / "run.json").is_file()]
    return folders[0] / "evaluations" / name if folders else None


def _print_rows(result: dict[str, Any]) -> None:
    from rich.table import Table

    dataset = result["dataset"]
    title = f"{dataset['kind']}, {dataset['split']} split, {dataset['scenes']} scenes, {result['points']} points"
    table = Table(title=title)
    headings = ("", "EPE3D [m]", "Acc3DS", "Acc3DR", "Outliers3D", "EPE2D [px]", "Acc2D")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in result["rows"]:
        name, *values = row.values()
        digits = (4, 4, 4, 4, 3, 4)
        cells = ["-" if v is None else f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)]
        table.add_row(name.replace("_", " "), *cells)
    console().print(table)
