# SPDX-License-Identifier: MIT
"""From a recipe to the strategy that carries it out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import torch

from bpfn_cli.config import to_tree
from bpfn_cli.data.datasets import SceneDataset, data_identity
from bpfn_cli.distributed import is_main
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.losses import LOSSES, DistillationLoss, Objective, build_losses
from bpfn_cli.losses.objective import option_key
from bpfn_cli.models import BiPointFlowNet, variant_named
from bpfn_cli.progress import Bar, Progress
from bpfn_cli.recipes.calendar import validation_epochs
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import STRATEGIES, Strategy, Teacher, TeacherCache
from bpfn_cli.strategies.teacher import shuffle_points
from bpfn_cli.strategies.teacher_cache import TOLERANCE, cache_key
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.fit import count_steps, epoch_batches, split_of
from bpfn_cli.training.job import Experiment, without_workers
from bpfn_cli.training.prepared import Prepared
from bpfn_cli.training.teacher import Guide


def build_objective(recipe: Recipe) -> Objective:
    """The objective of a recipe, with a teacher of the recipe's variant."""
    teacher = variant_named(recipe.teacher) if recipe.distillation_losses() else None
    return build_losses(recipe.loss, variant_named(recipe.variant), teacher, recipe.objective)


def check_recipe(recipe: Recipe, dataset: SceneDataset) -> None:
    """Refuse what would train something else than it says.

    Raises: UsageError: an unknown loss or option; hints, or the truth, would never get a weight.
    """
    steps, epochs = count_steps(dataset, recipe), recipe.train.epochs
    objective = build_objective(recipe)
    objective.check_length(steps, epochs)


def recipe_notes(recipe: Recipe, dataset: SceneDataset) -> Iterator[str]:
    """Lines that say which keys of a recipe have no effect, or not the one that one may think."""
    yield from _unused_options(recipe)
    if not recipe.distillation_losses():
        if recipe.early_stop.kind != "never":
            yield f"early_stop.kind {recipe.early_stop.kind}: no effect, since no --loss has a teacher"
        if recipe.control != "none":
            yield f"control {recipe.control}: no effect, since no --loss has a teacher"
        return
    yield from _early_stop_notes(recipe, dataset)


def _unused_options(recipe: Recipe) -> Iterator[str]:
    names = {name: option_key(name) for name in LOSSES if name not in recipe.loss}
    for name, key in names.items():
        if getattr(recipe.objective, key) != LOSSES[name].settings():
            yield f"objective.{key}: no effect, since {name} is not among the losses"
    for name, strategy in STRATEGIES.items():
        own = getattr(recipe.strategy, name, None)
        if own is not None and name != recipe.strategy.kind and own != strategy.settings():
            yield f"strategy.{name}: no effect, since the strategy is {recipe.strategy.kind}"


def _early_stop_notes(recipe: Recipe, dataset: SceneDataset) -> Iterator[str]:
    options, stop = recipe.train, recipe.early_stop
    if stop.kind == "never":
        return
    if stop.kind == "auto":
        before_end = validation_epochs(options.epochs, options.validation_calendar, options.validate_every) - 1
        if not split_of(dataset, recipe).held_out:
            yield "early stop: auto stops nothing without held-out scenes; raise data.holdout"
        elif before_end < stop.checks:
            yield (
                f"early stop: auto stops nothing here: {before_end} validations before the last epoch, and it takes "
                f"{stop.checks} good ones; lower train.validate_every or early_stop.checks"
            )
        return
    schedule = EarlyStop(stop)
    taught = sum(schedule.share(epoch, options.epochs) > 0 for epoch in range(options.epochs))
    steps = taught * (count_steps(dataset, recipe) // options.epochs)
    if steps <= recipe.objective.calibration_step and not build_objective(recipe).calibrated:
        yield (
            f"early stop: the teacher goes after {steps} steps, before hints get their weight at step "
            f"{recipe.objective.calibration_step}: they teach nothing; lower objective.calibration_step"
        )


def build_strategy(
    experiment: Experiment, student: BiPointFlowNet, guide: Guide | None, dataset: SceneDataset
) -> Strategy:
    """The recipe's strategy, on the experiment's device."""
    recipe, device = experiment.recipe, experiment.device
    kind = STRATEGIES[recipe.strategy.kind]
    meta_val_scenes = split_of(dataset, recipe).meta_val
    options = recipe.train
    objective = build_losses(recipe.loss, student.variant, guide.network.variant if guide else None, recipe.objective)

    def meta_val(number: int) -> Iterator[FlowBatch]:
        # Without workers: processes would be started for each single batch.
        return epoch_batches(dataset, meta_val_scenes, without_workers(recipe), number, device)

    return kind(
        student.to(device),
        None if guide is None else _build_teacher(experiment, guide, objective),
        objective.to(device),
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        accumulate=options.accumulate,
        precision=options.precision,
        options=getattr(recipe.strategy, recipe.strategy.kind, None),
        meta_val=meta_val if meta_val_scenes else None,
        largest=variant_named(recipe.teacher) if guide is None else guide.network.variant,
        seed=recipe.seed,
    )


def _build_teacher(experiment: Experiment, guide: Guide, objective: Objective) -> Teacher:
    recipe, cache = experiment.recipe, None
    if recipe.train.teacher_cache is not None:
        drawn = {
            "dataset": data_identity(experiment.data)["sha256"],
            "points": recipe.data.points,
            "augment": to_tree(recipe.data.augment),
            "precision": recipe.train.teacher_precision.value,
        }
        key = cache_key(guide.sha256, drawn, objective.reads())
        place = Path(recipe.train.teacher_cache)
        if place.exists() and not place.is_dir():
            raise UsageError(f"train.teacher_cache {printable(place)}: is a file; name a folder")
        tolerance = TOLERANCE[recipe.train.teacher_precision]
        cache = TeacherCache(Path(recipe.train.teacher_cache) / key, objective.reads(), tolerance)
    return Teacher(
        guide.network.to(experiment.device),
        recipe.train.teacher_precision,
        shuffle_points if recipe.control == "shuffled" else None,
        cache,
    )


def prepare_losses(
    experiment: Experiment, strategy: Strategy, guide: Guide | None, dataset: SceneDataset, progress: Progress
) -> None:
    """Let losses look at the teacher on all training scenes, or read what they found when they did so before."""
    recipe, teacher = experiment.recipe, strategy.teacher
    if guide is None or teacher is None:
        return
    learn = split_of(dataset, recipe).learn
    tree, data = to_tree(recipe), data_identity(experiment.data)["sha256"]
    for name, term in strategy.objective.items():
        if not term.needs_preparation():
            continue
        decisive = {
            "teacher": guide.sha256,
            "control": recipe.control,
            "dataset": data,
            "names": [dataset.names[index] for index in learn],
            "recipe": [tree["seed"], tree["data"]["points"], tree["data"]["augment"], tree["train"]["batch_size"]],
            "precision": recipe.train.teacher_precision.value,
            "loss": name,
            "options": to_tree(term.options),
            "code": _code_of(term),
        }
        prepared = Prepared(experiment.runs, decisive)
        if prepared.restore(term):
            progress.line(f"{name}: what it knows of the teacher was found by an earlier run")
            continue
        before = {key: tensor.clone() for key, tensor in term.state_dict().items() if isinstance(tensor, torch.Tensor)}
        with progress.bar(f"{name}: looking at the teacher") as bar:
            done = 0

            def batches(bar: Bar = bar) -> Iterator[FlowBatch]:
                nonlocal done
                for batch in epoch_batches(dataset, learn, recipe, 0, experiment.device):
                    yield batch
                    done += len(batch.names)
                    bar(done % len(learn) or len(learn), len(learn))

            strategy.objective.prepare(teacher.passes(batches), only=name)
        if is_main():
            prepared.keep(term, before)
    strategy.after_preparation()


def _code_of(term: DistillationLoss) -> str:
    """What a loss of the user's own is written as, so that an edited one is prepared anew; empty for ours."""
    if type(term) in LOSSES.values():
        return ""
    try:
        return inspect.getsource(inspect.getmodule(term) or type(term))
    except (OSError, TypeError):
        return ""
