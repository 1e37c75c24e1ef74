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
from bpfn_cli.cli.console import print_json, say
from bpfn_cli.cli.places import RUNS, default_dataset, synthetic_first
from bpfn_cli.cli.training.processes import Processes, conclude, progress_of_process
from bpfn_cli.precision import Precision

if TYPE_CHECKING:
    from bpfn_cli.training import Experiment, Recipe

Name = Annotated[str | None, typer.Option("--name", help="Of the run folder.", metavar="NAME")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run of this --name, where there is one.", metavar="")
]
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
    validation_calendar: options.CalendarName = None,
    select_on: options.SelectOn = None,
    precision: options.TrainingPrecision = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    nodes: options.Nodes = 1,
    max_time: options.MaxTime = None,
    runs: options.Runs = RUNS,
    name: Name = None,
    resume: Resume = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train a network without a teacher, by the supervised loss.

    \b
    Examples:
      $ bpfn train --variant baseline                                 # a teacher, with the default recipe
      $ bpfn train -c recipe.yaml --set train.lr=5e-4 --dry-run       # show the plan and the full recipe
      $ bpfn train -c recipe.yaml --name a --resume --max-time 23h    # one job of a chain: start or resume
    """
    from bpfn_cli.errors import UsageError
    from bpfn_cli.recipes.load import load_recipe

    flags = _flags(variant, points, epochs, seed, validation_calendar, select_on, precision)
    recipe = load_recipe(config, changes or [], flags, base={"loss": ["none"]})
    if recipe.distillation_losses():
        raise UsageError(f"loss {', '.join(recipe.loss)} needs a teacher: use `bpfn distill`, or --set loss=[none]")
    _carry_out(
        _Place(data, runs, Processes(device, devices, nodes), name, checkpoint, None, max_time, resume),
        recipe,
        dry_run,
        json,
    )


def distill(
    loss: options.Losses = None,
    strategy: options.StrategyName = None,
    early_stop: options.EarlyStopName = None,
    variant: options.VariantName = None,
    teacher: options.TeacherFile = None,
    data: options.Data = None,
    checkpoint: Initial = None,
    config: options.RecipeFile = None,
    changes: options.Set = None,
    points: options.Points = None,
    epochs: options.Epochs = None,
    validation_calendar: options.CalendarName = None,
    select_on: options.SelectOn = None,
    precision: options.TrainingPrecision = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    nodes: options.Nodes = 1,
    max_time: options.MaxTime = None,
    runs: options.Runs = RUNS,
    name: Name = None,
    resume: Resume = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Distill a large network into a small one.

    Without --teacher, a teacher is trained first and reused by later runs.

    \b
    Examples:
      $ bpfn distill --loss bihint                                    # the default student and teacher
      $ bpfn distill --loss basic --loss hint --teacher t.pth         # the sum of two losses, a given teacher
      $ bpfn distill --loss ail --early-stop auto                     # without the teacher once it is matched
      $ bpfn distill --loss none --strategy online                    # two students that teach each other
      $ bpfn distill --loss my_losses:MyLoss                          # your own loss, see docs/losses.md
    """
    from bpfn_cli.recipes.load import load_recipe

    flags = _flags(variant, points, epochs, seed, validation_calendar, select_on, precision) | (
        {"loss": loss} if loss else {}
    )
    flags |= {"strategy.kind": strategy.value} if strategy else {}
    flags |= {"early_stop.kind": early_stop.value} if early_stop else {}
    recipe = load_recipe(config, changes or [], flags)
    _carry_out(
        _Place(data, runs, Processes(device, devices, nodes), name, checkpoint, teacher, max_time, resume),
        recipe,
        dry_run,
        json,
    )


def _flags(
    variant: str | None,
    points: int | None,
    epochs: int | None,
    seed: int | None,
    calendar: options.Calendar | None,
    selection: options.Selection | None,
    precision: Precision | None,
) -> dict[str, Any]:
    given = {"variant": variant, "seed": seed, "data.points": points, "train.epochs": epochs}
    given["train.validation_calendar"] = None if calendar is None else calendar.value
    given["train.select_on"] = None if selection is None else selection.name
    given["train.precision"] = None if precision is None else precision.value
    return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Place:
    """Where a training reads and writes, as typed."""

    data: Path | None
    runs: Path
    processes: Processes
    name: str | None
    initial: Path | None
    teacher: Path | None
    max_time: str | None
    resume: bool


def _carry_out(place: _Place, recipe: Recipe, dry_run: bool, json: bool) -> None:
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.errors import DataError, UsageError
    from bpfn_cli.training import Experiment, Interruption, parse_duration, run_experiment
    from bpfn_cli.training.resume import run_or_resume

    if place.resume and place.name is None:
        raise UsageError("--resume: which run? give its --name too")
    stop = Interruption(None if place.max_time is None else parse_duration(place.max_time))
    keep_freed_memory()
    named = Path(recipe.data.path) if recipe.data.path else None
    if dry_run or place.processes.adopt():
        data = place.data or named or default_dataset(make=False)
    else:
        data = place.data or named or default_dataset()
    if data is None and not dry_run:
        raise DataError("no data here, and several processes render none: `bpfn synth` first, or give --data")
    if data is None:
        say(f"data: {synthetic_first()}")
        _print_recipe(recipe, {}, json)
        return
    with place.processes.joined(alone=dry_run) as device:
        experiment = Experiment(
            recipe=recipe,
            data=data,
            runs=place.runs,
            device=device,
            command=shlex.join(["bpfn", *sys.argv[1:]]),
            name=place.name,
            teacher=place.teacher,
            initial=place.initial,
            stop=stop,
        )
        if dry_run:
            _print_plan(experiment, json)
            return
        carry_out = run_or_resume if place.resume else run_experiment
        outcome = carry_out(experiment, progress_of_process())
        conclude(outcome, place.runs, json)


def _print_plan(experiment: Experiment, json: bool) -> None:
    """What would be trained on what: a few lines, and the whole recipe on stdout."""
    from bpfn_cli.data.datasets import describe
    from bpfn_cli.training import open_training_data, plan_experiment, teacher_at_hand

    recipe = experiment.recipe
    say(f"data: {describe(open_training_data(experiment))}")
    if recipe.distillation_losses():
        teacher = teacher_at_hand(experiment)
        say(f"teacher: {teacher or recipe.teacher + ', to be trained first'}")
    plan = plan_experiment(experiment)
    say(f"student: {recipe.variant}, {recipe.train.epochs} epochs, {plan.steps} steps on {experiment.device}")
    for line in plan.lines():
        say(line)
    _print_recipe(recipe, {"steps": plan.steps, "plan": plan.as_tree()}, json)


def _print_recipe(recipe: Recipe, figures: dict[str, Any], json: bool) -> None:
    from bpfn_cli.config import to_yaml
    from bpfn_cli.recipes.recipe import recipe_tree

    if json:
        print_json({**figures, "recipe": recipe_tree(recipe)})
    else:
        print(to_yaml(recipe_tree(recipe)), end="")
