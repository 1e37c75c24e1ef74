# SPDX-License-Identifier: MIT
"""`bpfn train` and `bpfn distill`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json, say
from bpfn_cli.cli.places import RUNS, default_dataset, synthetic_first

if TYPE_CHECKING:
    from bpfn_cli.training import Experiment, Recipe

Name = Annotated[str | None, typer.Option("--name", help="Of the run folder.", metavar="NAME")]
Initial = Annotated[
    Path | None,
    typer.Option("--checkpoint", readable=False, help="Weights to start from, whole or sliced.", metavar="FILE"),
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
    from bpfn_cli.errors import UsageError
    from bpfn_cli.training.load import load_recipe

    flags = _flags(variant, points, epochs, seed)
    recipe = load_recipe(config, changes or [], flags, base={"loss": ["none"]})
    if recipe.distillation_losses():
        raise UsageError(f"loss {', '.join(recipe.loss)} needs a teacher: use `bpfn distill`, or --set loss=[none]")
    _carry_out(_Place(data, runs, device, name, initial=checkpoint), recipe, dry_run, json)


def distill(
    loss: Annotated[
        list[str] | None,
        typer.Option("--loss", help="none, basic, hint or bihint; repeatable, summed.", metavar="NAME"),
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
    from bpfn_cli.training.load import load_recipe

    flags = _flags(variant, points, epochs, seed) | ({"loss": loss} if loss else {})
    recipe = load_recipe(config, changes or [], flags)
    _carry_out(_Place(data, runs, device, name, checkpoint, teacher), recipe, dry_run, json)


def _flags(variant: str | None, points: int | None, epochs: int | None, seed: int | None) -> dict[str, Any]:
    given = {"variant": variant, "seed": seed, "data.points": points, "train.epochs": epochs}
    return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Place:
    """Where a training reads and writes, as typed."""

    data: Path | None
    runs: Path
    device: str
    name: str | None
    initial: Path | None = None
    teacher: Path | None = None


def _carry_out(place: _Place, recipe: Recipe, dry_run: bool, json: bool) -> None:
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.training import Experiment, run_experiment

    device = resolve_device(place.device)
    keep_freed_memory()
    named = Path(recipe.data.path) if recipe.data.path else None
    data = place.data or named or default_dataset(make=not dry_run)
    if data is None:
        say(f"data: {synthetic_first()}")
        _print_recipe(recipe, {}, json)
        return
    experiment = Experiment(
        recipe=recipe,
        data=data,
        runs=place.runs,
        device=device,
        command=shlex.join(["bpfn", *sys.argv[1:]]),
        name=place.name,
        teacher=place.teacher,
        initial=place.initial,
    )
    if dry_run:
        _print_plan(experiment, json)
        return
    outcome = run_experiment(experiment, ConsoleProgress())
    if json:
        print_json({"run": str(outcome.folder), "result": outcome.result})
    finish(outcome.folder, "bpfn report" + ("" if place.runs == RUNS else f" --source {place.runs}"))


def _print_plan(experiment: Experiment, json: bool) -> None:
    """What would be trained on what: a few lines, and the whole recipe on stdout."""
    from bpfn_cli.data.datasets import describe
    from bpfn_cli.training import open_training_data, teacher_at_hand
    from bpfn_cli.training.fit import count_steps

    recipe = experiment.recipe
    dataset = open_training_data(experiment)
    steps = count_steps(dataset, recipe)
    say(f"data: {describe(dataset)}")
    if recipe.distillation_losses():
        teacher = teacher_at_hand(experiment)
        say(f"teacher: {teacher or recipe.teacher + ', to be trained first'}")
    say(f"student: {recipe.variant}, {recipe.train.epochs} epochs, {steps} steps on {experiment.device}")
    _print_recipe(recipe, {"steps": steps}, json)


def _print_recipe(recipe: Recipe, figures: dict[str, Any], json: bool) -> None:
    from bpfn_cli.config import to_tree, to_yaml

    if json:
        print_json({**figures, "recipe": to_tree(recipe)})
    else:
        print(to_yaml(recipe), end="")
