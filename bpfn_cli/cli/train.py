# SPDX-License-Identifier: MIT
"""`bpfn train` and `bpfn distill`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json
from bpfn_cli.cli.places import RUNS, default_dataset

Name = Annotated[str | None, typer.Option("--name", help="Of the run folder.", metavar="NAME")]
Initial = Annotated[
    Path | None, typer.Option("--checkpoint", help="Weights to start from, whole or sliced.", metavar="FILE")
]


def train(
    variant: options.VariantName = None,
    data: options.Data = None,
    checkpoint: Initial = None,
    config: options.RecipeFile = None,
    changes: options.Set = None,
    points: options.Points = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    runs: options.Runs = RUNS,
    name: Name = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train a network alone, by the supervised loss.

    Examples: `bpfn train --variant baseline`, `bpfn train -c configs/flyingthings3d_teacher.yaml --data data/ft3d`
    """
    flags = _flags(variant, points, epochs, seed) | {"loss": ["none"]}
    _run(flags, config, changes, data, None, checkpoint, device, runs, name, dry_run, json)


def distill(
    loss: Annotated[
        list[str] | None, typer.Option("--loss", help="none, basic, hint or bihint; repeatable, summed.")
    ] = None,
    variant: options.VariantName = None,
    teacher: options.TeacherFile = None,
    data: options.Data = None,
    checkpoint: Initial = None,
    config: options.RecipeFile = None,
    changes: options.Set = None,
    points: options.Points = None,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    runs: options.Runs = RUNS,
    name: Name = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Teach a small network from a large one. Without --teacher one is trained first, and reused next time.

    Examples: `bpfn distill --loss bihint`, `bpfn distill --loss basic --loss hint --variant half --teacher t.pth`
    """
    flags = _flags(variant, points, epochs, seed) | ({"loss": loss} if loss else {})
    _run(flags, config, changes, data, teacher, checkpoint, device, runs, name, dry_run, json)


def _flags(variant: str | None, points: int | None, epochs: int | None, seed: int | None) -> dict[str, Any]:
    given = {"variant": variant, "seed": seed, "data.points": points, "train.epochs": epochs}
    return {key: value for key, value in given.items() if value is not None}


def _run(
    flags: dict[str, Any],
    config: Path | None,
    changes: list[str] | None,
    data: Path | None,
    teacher: Path | None,
    initial: Path | None,
    device: str,
    runs: Path,
    name: str | None,
    dry_run: bool,
    json: bool,
) -> None:
    from bpfn_cli.training.load import load_recipe

    recipe = load_recipe(config, changes or [], flags)
    from bpfn_cli.config import to_yaml
    from bpfn_cli.training import Experiment, resolve_device, run_experiment

    chosen = resolve_device(device)
    if dry_run:
        print(to_yaml(recipe), end="")
        return
    experiment = Experiment(
        recipe=recipe,
        data=data or default_dataset(),
        runs=runs,
        device=chosen,
        command=shlex.join(["bpfn", *sys.argv[1:]]),
        name=name,
        teacher=teacher,
        initial=initial,
    )
    outcome = run_experiment(experiment, ConsoleProgress())
    if json:
        print_json({"run": str(outcome.folder), "result": outcome.result})
    finish(outcome.folder, "bpfn report" + ("" if runs == RUNS else f" --source {runs}"))
