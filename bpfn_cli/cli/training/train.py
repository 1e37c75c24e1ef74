# SPDX-License-Identifier: MIT
"""`bpfn train` and `bpfn distill`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, echo, print_json, say
from bpfn_cli.cli.places import RUNS, default_dataset, synthetic_first
from bpfn_cli.cli.training.processes import Processes, conclude, process_progress
from bpfn_cli.launch import is_started

if TYPE_CHECKING:
    from bpfn_cli.recipes.recipe import Recipe
    from bpfn_cli.training import Job

RECIPE_KEYS = {
    "variant": "variant",
    "checkpoint": "initial",
    "loss": "loss",
    "strategy": "strategy.kind",
    "early_stop": "early_stop.kind",
    "seed": "seed",
    "points": "data.points",
    "frame": "data.frame",
    "remove_ground": "data.remove_ground",
    "epochs": "train.epochs",
    "validation_calendar": "train.validation_calendar",
    "select_on": "train.select_on",
    "precision": "train.precision",
    "quantize": "train.quantize",
}  # flag -> key


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What both commands take."""

    variant: options.VariantName = None
    data: options.Data = None
    checkpoint: options.InitialFile = None
    config: options.RecipeFile = None
    changes: options.Set = None
    points: options.TrainingPoints = None
    frame: options.CloudFrame = None
    remove_ground: options.RemoveGround = False
    epochs: options.Epochs = None
    validation_calendar: options.CalendarName = None
    select_on: options.SelectOn = None
    precision: options.TrainingPrecision = None
    seed: options.RecipeSeed = None
    device: options.Device = "auto"
    devices: options.Devices = None
    nodes: options.Nodes = 1
    max_time: options.MaxTime = None
    runs: options.Runs = RUNS
    name: options.RunName = None
    resume: options.Resume = False
    allow_code: options.AllowCode = False
    dry_run: options.DryRun = False
    json: options.Json = False

    def recipe(self, base: dict[str, Any]) -> Recipe:
        """The recipe file with the changes that the flags make. base: as of `load_recipe`."""
        from bpfn_cli.recipes.reading import load_recipe

        given = {key: getattr(self, flag, None) for flag, key in RECIPE_KEYS.items()}
        changes = {
            key: value for key, value in given.items() if value is not None and value is not False and value != []
        }
        changes |= {key: str(value) for key, value in changes.items() if isinstance(value, Path)}
        teacher = getattr(self, "teacher", None)
        weights = None if teacher is None or str(teacher) == options.TRAIN else Path(teacher)
        return load_recipe(self.config, self.changes or [], changes, base=base, teacher=weights)


@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """What only `distill` takes."""

    loss: options.Losses = None
    strategy: options.StrategyName = None
    early_stop: options.EarlyStopName = None
    teacher: options.TeacherFile = None
    quantize: options.Quantize = None


@dataclass(frozen=True, kw_only=True)
class DistillFlags(TrainFlags, TeacherFlags):
    """What `distill` takes."""


@options.takes(TrainFlags)
def train(flags: TrainFlags) -> None:
    """Train a network without a teacher, by the supervised loss.

    \b
    Examples:
      $ bpfn train --variant baseline                                 # a teacher, with the default recipe
      $ bpfn train -c recipe.yaml --set train.lr=5e-4 --dry-run       # show the plan
      $ bpfn train -c recipe.yaml --name a --resume --max-time 23h    # one job of a chain: start or resume
    """
    from bpfn_cli.errors import UsageError

    recipe = flags.recipe(base={"loss": ["none"]})
    if recipe.distillation_losses():
        raise UsageError(f"loss {', '.join(recipe.loss)} needs a teacher: use `bpfn distill`, or --set loss=[none]")
    _run(flags, recipe)


@options.takes(DistillFlags)
def distill(flags: DistillFlags) -> None:
    """Distill a large network into a small one.

    Without --teacher, the teacher is the network of `bpfn weights` with the recipe's teacher variant (normally
    `baseline`). If there is none, or with --teacher train, a teacher is trained first with the same recipe and data,
    and reused by later runs.

    \b
    Examples:
      $ bpfn distill --loss bihint                                    # the default student and teacher
      $ bpfn distill --loss bihint --teacher train                    # train the teacher first, on the same data
      $ bpfn distill --loss basic --loss hint --teacher t.pth         # the sum of two losses, a given teacher
      $ bpfn distill --loss ail --early-stop auto                     # drop the teacher once the student matches it
      $ bpfn distill --checkpoint student.safetensors --quantize int8 # prepare a student for int8 inference
      $ bpfn distill --data scans --frame lidar                       # your own clouds, without labels
      $ bpfn distill --loss none --strategy online                    # two students that teach each other
      $ bpfn distill --loss my_losses:MyLoss                          # your own loss, see docs/extending.md
    """
    recipe = flags.recipe(base={})
    _run(flags, recipe, _teacher(flags.teacher, recipe))


def _teacher(given: Path | None, recipe: Recipe) -> Path | None:
    """The teacher's weights; None: it is trained, or not needed."""
    from bpfn_cli.models import VARIANTS
    from bpfn_cli.shipped import shipped_networks

    if given is not None:
        return None if str(given) == options.TRAIN else given
    shipped = shipped_networks().get(recipe.teacher.name)
    if (
        shipped is None
        or recipe.teacher != VARIANTS.get(shipped.name)
        or not recipe.distillation_losses()
        or recipe.control == "random"
    ):
        return None
    say(f"no --teacher given: using {shipped.name}, {shipped.card.title}; --teacher train trains one on your data")
    return shipped.path


def _run(flags: TrainFlags, recipe: Recipe, teacher: Path | None = None) -> None:
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.errors import UsageError
    from bpfn_cli.runs.folder import check_run_name
    from bpfn_cli.stop import Interruption, parse_duration
    from bpfn_cli.training import Job, run, run_or_resume

    if flags.resume and flags.name is None:
        raise UsageError("--resume needs the --name of the run")
    if flags.name is not None:
        check_run_name(flags.name)
    stop = Interruption(None if flags.max_time is None else parse_duration(flags.max_time))
    processes = Processes(flags.device, flags.devices, flags.nodes)
    resolve_device(flags.device)  # before scenes are rendered for it
    keep_freed_memory()
    data = _dataset(flags, recipe)
    if data is None:
        say(f"data: {synthetic_first()}")
        if flags.json:
            _print_json(recipe, {})
        return
    with processes.joined(alone=flags.dry_run) as device:
        job = Job.resolve(
            recipe,
            data,
            flags.runs,
            device,
            command=shlex.join(["bpfn", *sys.argv[1:]]),
            name=flags.name,
            teacher=teacher,
            allow_code=flags.allow_code or set(recipe.loss).issubset(getattr(flags, "loss", None) or ()),
            stop=stop,
        )
        if flags.dry_run:
            _print_plan(job, flags.json)
            return
        outcome = (run_or_resume if flags.resume else run)(job, process_progress())
        conclude(outcome, flags.runs, flags.json)


def _dataset(flags: TrainFlags, recipe: Recipe) -> Path | None:
    """The dataset to train on, rendered if need be; None: a dry run without one."""
    from bpfn_cli.errors import DataError

    named = flags.data or (Path(recipe.data.path) if recipe.data.path else None)
    data = named or default_dataset(make=not (flags.dry_run or is_started()))
    if data is None and not flags.dry_run:
        raise DataError("no data found, and several processes cannot render it: run `bpfn synth`, or give --data")
    return data


def _print_plan(job: Job, json: bool) -> None:
    """What would be trained on what; the plan is the last thing said. json: also the whole recipe."""
    from bpfn_cli.data.datasets import describe
    from bpfn_cli.shipped import weights_title
    from bpfn_cli.training import plan_job, teacher_checkpoint
    from bpfn_cli.training.build import job_notes

    recipe = job.recipe
    say(f"data: {describe(job.data.train)}")
    if recipe.distillation_losses():
        found = teacher_checkpoint(job)
        say(f"teacher: {weights_title(found) if found else recipe.teacher.name + ', trained first'}")
    plan = plan_job(job, ConsoleProgress())
    for note in job_notes(job):
        say(note)
    say(f"student: {recipe.variant.name}, {recipe.train.epochs} epochs, {plan.steps} steps on {job.device}")
    if json:
        _print_json(recipe, {"steps": plan.steps, "plan": plan.as_tree()})
        return
    say("the full recipe: --json, or `bpfn config show`")
    for line in plan.lines():
        echo(line)


def _print_json(recipe: Recipe, figures: dict[str, Any]) -> None:
    from bpfn_cli.recipes.identity import recipe_tree

    print_json({**figures, "recipe": recipe_tree(recipe)})
