# SPDX-License-Identifier: MIT
"""From a recipe and a dataset to a finished run folder: teacher, training, evaluation, summary.

A run is made once and carried out as often as it takes: carrying out goes on wherever the folder shows it stopped.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.config import to_yaml
from bpfn_cli.data.datasets import SceneDataset, data_identity, describe, open_dataset
from bpfn_cli.distributed import from_main, is_main
from bpfn_cli.errors import BusyError, CheckpointError, DiskError, NonFiniteError, UsageError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.metrics.evaluation import EVALUATION_SEED, evaluate_checkpoint
from bpfn_cli.metrics.result import TEACHER
from bpfn_cli.models import BiPointFlowNet, build_model, initialize_from, load_checkpoint
from bpfn_cli.profiling import count_modules
from bpfn_cli.progress import Progress, Written
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.recipe import SCRATCH, decisive_tree, recipe_tree, teacher_key
from bpfn_cli.runs.folder import (
    STUDENT,
    RunFolder,
    check_run_name,
    file_identity,
    find_runs,
    find_teacher,
    is_busy,
    timestamp,
)
from bpfn_cli.runs.loggers import tensorboard, weights_and_biases
from bpfn_cli.strategies import Strategy
from bpfn_cli.training.build import build_strategy, check_recipe, prepare_losses, recipe_notes
from bpfn_cli.training.changes import differences, use_threads_of
from bpfn_cli.training.checkpointer import Keeper
from bpfn_cli.training.fit import Examination, batches_per_epoch, count_steps, fit, split_of
from bpfn_cli.training.job import Experiment, first_batch, open_training_data
from bpfn_cli.training.out_of_memory import advising
from bpfn_cli.training.plan import Plan, make_plan, rehearse
from bpfn_cli.training.state import Training
from bpfn_cli.training.teacher import Guide, check_pyramids, known_test_metrics, random_guide

COMPLEXITY_POINTS = 8192  # what the published tables count MACs at
CHECKPOINTS_AT_ONCE = 4  # the newest two, the best, and the one that is being written


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, and the result of its evaluation on the test split."""

    folder: Path
    result: dict[str, Any]


def run_experiment(experiment: Experiment, progress: Progress) -> Outcome:
    """Train what the recipe says, with a teacher if a loss needs one.

    Raises: UsageError, DataError, CheckpointError, DiskError, NonFiniteError, OutOfMemoryError, Interrupted; the run
        folder records the reason.
    """
    recipe = experiment.recipe
    if experiment.name is not None:
        check_run_name(experiment.name)
    dataset = open_training_data(experiment)
    _check_runs_place(experiment.runs, dataset.root)
    progress.line(f"data: {describe(dataset)}")
    check_recipe(recipe, dataset)
    for line in recipe_notes(recipe, dataset):
        progress.line(line)
    if experiment.teacher is not None and not recipe.distillation_losses():
        progress.line(f"teacher: {printable(experiment.teacher)}: not used, since no --loss looks at it")
    with experiment.stop.listening():
        _check_before(experiment, dataset)
        run = create_run(experiment, "student")
        taken = (
            "" if experiment.name in (None, run.path.name) else f" ({printable(experiment.name)} is taken; --resume)"
        )
        progress.line(f"run: {printable(run.path)}{taken}")
        return carry_out(run, experiment, progress)


def _check_before(experiment: Experiment, dataset: SceneDataset) -> None:
    """Find what cannot work before there is a folder, and before hours of teacher."""
    recipe = experiment.recipe
    strategy, lacks_teacher = _untrained(experiment, dataset)
    if lacks_teacher:
        with contextlib.suppress(NonFiniteError):  # a step like that is left out
            strategy.trial_step(first_batch(experiment, dataset), recipe.train.lr, recipe.train.epochs)


def _untrained(experiment: Experiment, dataset: SceneDataset) -> tuple[Strategy, bool]:
    """The strategy as it begins, and whether its teacher is yet to be trained: one that was never trained stands in."""
    recipe = experiment.recipe
    student = build_model(recipe.variant, recipe.data.points)
    if experiment.initial is not None:
        initialize_from(student, load_checkpoint(experiment.initial))
    if not recipe.distillation_losses():
        return build_strategy(experiment, student, None, dataset), False
    found = None if recipe.control == "random" else teacher_at_hand(experiment)
    guide = random_guide(recipe) if found is None else Guide.read(found, experiment.runs)
    check_pyramids(guide, student)
    return build_strategy(experiment, student, guide, dataset), found is None and recipe.control != "random"


def create_run(experiment: Experiment, role: str) -> RunFolder:
    """The folder of a training that has not begun."""
    about = _about(experiment, role)
    return RunFolder.create(
        experiment.runs,
        experiment.name or f"{role}-{experiment.recipe.variant}-{_in_a_name(about['method'])}-{timestamp()}",
        config=to_yaml(recipe_tree(experiment.recipe)),
        command=experiment.command,
        about=about,
        device=experiment.device,
        is_only=experiment.has_own_name,
    )


def plan_experiment(experiment: Experiment) -> Plan:
    """The plan of a training, without one: by a rehearsal with weights that were never trained.

    Raises: UsageError, ShapeError: it cannot work.
    """
    recipe, dataset = experiment.recipe, open_training_data(experiment)
    check_recipe(recipe, dataset)
    strategy, _ = _untrained(experiment, dataset)
    batch = first_batch(experiment, dataset)
    learn = len(split_of(dataset, recipe).learn)
    return make_plan(strategy, recipe, count_steps(dataset, recipe), learn, rehearse(strategy, batch, recipe))


def _check_runs_place(runs: Path, data: Path) -> None:
    if data.resolve() in (runs.resolve(), *runs.resolve().parents):
        raise UsageError(f"--runs {printable(runs)}: lies inside the data; choose a folder outside {printable(data)}")


def train_teacher(experiment: Experiment, progress: Progress) -> Path:
    """Train the recipe's teacher by the supervised loss, or go on with it where that was begun; its checkpoint.

    Raises: BusyError: another process trains it.
    """
    recipe = experiment.recipe.for_teacher()
    alone = replace(experiment, recipe=recipe, name=None, has_own_name=False, teacher=None, initial=None, labels={})
    key = teacher_key(experiment.recipe, data_identity(experiment.data))
    begun = from_main(lambda: _begun_teacher(experiment.runs, key))
    if begun is None:
        name = experiment.recipe.teacher
        progress.line(f"teacher: none trained with this recipe yet, so {name} is trained first (reused next time)")
        return carry_out(create_run(alone, "teacher"), alone, progress).folder / STUDENT
    run = RunFolder.open(begun)
    use_threads_of(run)
    found = differences(run, alone)
    if found:
        progress.line(f"teacher: begun anew, since {printable(begun)} was begun otherwise: {'; '.join(found)}")
        return carry_out(create_run(alone, "teacher"), alone, progress).folder / STUDENT
    progress.line(f"teacher: going on with {printable(begun)}")
    return carry_out(run, alone, progress).folder / STUDENT


def _begun_teacher(runs: Path, key: str) -> Path | None:
    begun = next((folder for folder, about in reversed(find_runs(runs)) if _is_begun(about, key)), None)
    if begun is not None and is_busy(begun):
        raise BusyError(f"{printable(begun)}: another process trains this teacher; repeat the command when it is done")
    return begun


def _is_begun(about: dict[str, Any], key: str) -> bool:
    """Whether a run is a teacher that was stopped before its end by something other than itself."""
    if about.get("teacher_key") != key or about.get("role") != "teacher":
        return False
    return about.get("state") != "finished" and about.get("failed_by") != NonFiniteError.__name__


def teacher_at_hand(experiment: Experiment) -> Path | None:
    """The given teacher, or one that was trained before with this recipe on this data."""
    if experiment.teacher is not None:
        return experiment.teacher
    key = teacher_key(experiment.recipe, data_identity(experiment.data))
    return from_main(lambda: find_teacher(experiment.runs, key))


def _find_guide(experiment: Experiment, progress: Progress) -> Guide:
    recipe = experiment.recipe
    if recipe.control == "random":
        progress.line(f"teacher: {recipe.teacher} with weights that were never trained, as a control")
        return random_guide(recipe)
    found = teacher_at_hand(experiment)
    if found is None:
        return Guide.read(train_teacher(experiment, progress), experiment.runs)
    how = "" if found == experiment.teacher else ", trained before with this recipe"
    progress.line(f"teacher: {printable(found)}{how}")
    return Guide.read(found, experiment.runs)


def carry_out(run: RunFolder, experiment: Experiment, progress: Progress) -> Outcome:
    """Do what is left to do of a run: its teacher, its training from the newest checkpoint on, its evaluation.

    Raises: as `run_experiment`; BusyError: another process works on it.
    """
    with experiment.stop.listening(), run.locked(), run.working():
        if run.about["state"] != "running":
            run.record(state="running", reason=None, finished=None, failed_by=None)
        written = Written(progress, run.note)
        guide = None
        if experiment.recipe.distillation_losses():
            guide = _find_guide(experiment, written)
        run.point_latest()
        return _train(run, experiment, guide, written)


def _train(run: RunFolder, experiment: Experiment, guide: Guide | None, progress: Progress) -> Outcome:
    recipe, device, role = experiment.recipe, experiment.device, run.about["role"]
    torch.manual_seed(recipe.seed)
    student = build_model(recipe.variant, recipe.data.points)
    if experiment.initial is not None and not from_main(run.checkpoints.numbers):
        _initialize(student, experiment.initial, progress)
    if guide is not None:
        check_pyramids(guide, student)
        run.record(teacher={**guide.identity(), **_own_figures(run.about.get("teacher"), guide)})
    dataset = open_training_data(experiment)
    strategy = build_strategy(experiment, student, guide, dataset)
    started = time.monotonic()
    prepare_losses(experiment, strategy, guide, dataset, progress)
    prepared = time.monotonic()
    if run.about.get("plan") is None:
        run.record(prepare_seconds=round(prepared - started, 1))
        _plan(run, experiment, strategy, dataset, progress)
    test = open_dataset(experiment.data, "test")
    examination = Examination.of(dataset, test, recipe, device)
    if guide is not None and examination is not None and run.about["teacher"]["held_out_epe3d"] is None:
        _record_teacher(run, held_out_epe3d=examination.epe3d(guide.network))
    teacher_epe3d = None if guide is None else run.about["teacher"]["held_out_epe3d"]
    training = Training(
        strategy, recipe, EarlyStop(recipe.early_stop, teacher_epe3d), batches_per_epoch(dataset, recipe), progress.line
    )
    go_on(training, run, progress.line)
    _check_space(run, training)
    before = run.about.get("train_seconds") or 0.0
    try:
        with (
            _observed(run, experiment, training, progress.line),
            progress.bar(
                f"training {role} {recipe.variant} ({run.about['method']})", samples=recipe.train.batch_size
            ) as bar,
            advising(strategy, lambda: first_batch(experiment, dataset), recipe),
        ):
            fit(training, dataset, examination, Keeper(training, run, experiment.stop), bar, device)
    finally:
        # Written with what comes next: here, one process alone may have failed.
        run.about["train_seconds"] = round(before + time.monotonic() - started, 1)
    if strategy.teacher is not None and strategy.teacher.cache is not None and strategy.teacher.cache.full:
        progress.line(f"teacher cache: stopped writing: {strategy.teacher.cache.full}")
    deployed = run.deploy(training.number if training.best is None else training.best)
    run.record(
        weights_sha256=from_main(lambda: sha256_of(deployed)),
        complexity=from_main(lambda: _complexity(student, deployed)),
        teacher_forwards=None if strategy.teacher is None else strategy.teacher.forwards,
        **_cache_figures(strategy),
    )
    known = None if guide is None else from_main(lambda: known_test_metrics(experiment, guide))
    unknown = None if guide is None or known is not None else guide.path
    evaluated = from_main(
        lambda: evaluate_checkpoint(
            deployed,
            test,
            points=recipe.data.points,
            seed=EVALUATION_SEED,
            device=device,
            progress=progress,
            teacher=None if unknown is None else load_checkpoint(unknown),  # not moved by a strategy
            check=experiment.stop.check,
        )
    )
    result = evaluated.as_dict()
    run.write_evaluation(evaluated.file_name, result)
    run.record(epe3d=evaluated.model.epe3d)
    row = known or next((row for row in result["rows"] if row["name"] == TEACHER), None)
    if guide is not None:
        _record_teacher(run, test=None if row is None else {key: row[key] for key in row if key != "name"})
    progress.line(evaluated.summary())
    return Outcome(run.path, result)


def _plan(
    run: RunFolder, experiment: Experiment, strategy: Strategy, dataset: SceneDataset, progress: Progress
) -> None:
    """Say what is going to be done, from steps that are taken and undone."""
    recipe = experiment.recipe
    try:
        with advising(strategy, lambda: first_batch(experiment, dataset), recipe):
            figures = rehearse(strategy, first_batch(experiment, dataset), recipe)
    except NonFiniteError as error:  # as in a step, of which some may be left out
        progress.line(f"no plan: {error}")
        return
    plan = make_plan(strategy, recipe, count_steps(dataset, recipe), len(split_of(dataset, recipe).learn), figures)
    for line in plan.lines():
        progress.line(line)
    run.record(plan=plan.as_tree())


def go_on(training: Training, run: RunFolder, say: Callable[[str], None]) -> None:
    """Bring a training to where its run folder's newest checkpoint left it; without one it begins.

    Raises: CheckpointError: all are damaged, or gone.
    """
    keep_every = training.recipe.train.keep_every
    if keep_every is not None:
        run.checkpoints.is_kept = lambda number: number % (keep_every * training.steps) == 0
    found = from_main(lambda: run.checkpoints.newest(say))
    if found is None:
        if run.about.get("has_checkpoints"):
            raise CheckpointError(
                f"{printable(run.checkpoints.folder)}: its checkpoints are gone; restore them, or begin anew under "
                "another --name"
            )
        if run.about["epochs_done"]:
            say("going on: from the beginning, since it was stopped before its first checkpoint")
        run.record(epochs_done=0, epoch_seconds=[])
        run.trim_metrics(0)
        return
    training.load_state_dict(found.state, found.weights.state)
    run.trim_metrics(training.epoch)
    run.record(epochs_done=training.epoch, epoch_seconds=training.epoch_seconds)
    epochs = training.recipe.train.epochs
    if training.is_done:
        say(f"going on: all {epochs} epochs are trained")
    elif training.batch == training.steps:
        say(f"going on: the end of epoch {training.epoch + 1} of {epochs}")
    else:
        say(f"going on: epoch {training.epoch + 1} of {epochs}, batch {training.batch + 1} of {training.steps}")


def _check_space(run: RunFolder, training: Training) -> None:
    """Raises: DiskError: the disk is too full for the checkpoints to come, which take the place of those there are."""
    if training.is_done:
        return
    weights = sum(parameter.numel() for group in training.strategy.parameter_groups() for parameter in group)
    needed = CHECKPOINTS_AT_ONCE * 3 * 4 * weights  # weights and the two moments of Adam, float32

    def check() -> None:
        try:
            found = os.statvfs(run.path)
        except OSError:
            return
        free, owned = found.f_bavail * found.f_frsize, run.checkpoints.size_of_passing(training.best)
        if free + owned < needed:
            raise DiskError(
                f"{printable(run.path)}: checkpoints need {(needed - owned) / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are "
                "free; free some, or choose another --runs"
            )

    from_main(check)


@contextlib.contextmanager
def _observed(run: RunFolder, experiment: Experiment, training: Training, say: Callable[[str], None]) -> Iterator[None]:
    """In the block TensorBoard and Weights & Biases are told of each epoch, where they are installed and wanted."""
    if not is_main():
        yield
        return
    board = tensorboard(run.path / "tb", training.epoch, say)
    run.observers = [] if board is None else [board]
    project = experiment.recipe.train.wandb
    if project is not None:
        about = {**recipe_tree(experiment.recipe), "method": run.about["method"], "command": experiment.command}
        board = weights_and_biases(project, run.path, about, say)
        run.observers += [] if board is None else [board]
    try:
        yield
    finally:
        for observer in run.observers:
            observer.close()
        run.observers = []


def _own_figures(teacher: dict[str, Any] | None, guide: Guide) -> dict[str, Any]:
    """What a run knows already of its teacher's own evaluation; nothing where it has been given another one."""
    known = teacher if teacher is not None and teacher["sha256"] == guide.sha256 else {}
    return {"held_out_epe3d": known.get("held_out_epe3d"), "test": known.get("test")}


def _record_teacher(run: RunFolder, **figures: Any) -> None:
    run.record(teacher={**run.about["teacher"], **figures})


def _cache_figures(strategy: Strategy) -> dict[str, Any]:
    cache = None if strategy.teacher is None else strategy.teacher.cache
    if cache is None:
        return {}
    return {"teacher_cache": {"found": cache.found, "missed": cache.missed, "problem": cache.full or None}}


def _in_a_name(method: str) -> str:
    return re.sub(r"[^\w+.-]", "_", method)


def _initialize(student: BiPointFlowNet, weights: Path, progress: Progress) -> None:
    done = initialize_from(student, load_checkpoint(weights))
    counts = f"{len(done.copied)} tensors copied, {len(done.sliced)} sliced, {len(done.fresh)} fresh"
    progress.line(f"start: {printable(weights)} ({counts})")


def _about(experiment: Experiment, role: str) -> dict[str, Any]:
    """What run.json says of a training before it begins."""
    recipe, initial = experiment.recipe, experiment.initial
    data = data_identity(experiment.data)
    split = split_of(open_dataset(experiment.data, "train"), recipe)
    losses, method = recipe.distillation_losses(), recipe.method()
    is_plain_supervised = method == SCRATCH and initial is None and recipe.objective.w_gt is None
    if initial is not None:
        method = "fine-tuned" if method == SCRATCH else f"fine-tuned+{method}"
    return {
        "command": "distill" if losses or recipe.strategy.kind != "plain" else "train",
        "role": role,
        "variant": recipe.variant,
        "method": method,
        "seed": recipe.seed,
        "points": recipe.data.points,
        "epochs": recipe.train.epochs,
        "epochs_done": 0,
        "train_seconds": None,
        "data": {**data, "held_out_scenes": len(split.held_out) + len(split.meta_val)},
        "teacher": None,  # known when it is found, or trained
        "teacher_key": teacher_key(replace(recipe, teacher=recipe.variant), data) if is_plain_supervised else None,
        "initial": None if initial is None else file_identity(initial),
        "complexity": None,
        "selected_on": recipe.train.select_on,
        "recipe": decisive_tree(recipe),
        "place": place_of(experiment),
        **experiment.labels,
    }


def place_of(experiment: Experiment) -> dict[str, Any]:
    """What a recipe does not say, and going on has to know."""
    return {
        "data": str(experiment.data.resolve()),
        "teacher": None if experiment.teacher is None else str(experiment.teacher.resolve()),
        "initial": None if experiment.initial is None else str(experiment.initial.resolve()),
        "device": str(experiment.device),
    }


def _complexity(network: BiPointFlowNet, deployed: Path) -> dict[str, int]:
    counts = count_modules(network.variant, COMPLEXITY_POINTS)
    return {
        "points": COMPLEXITY_POINTS,
        "parameters": counts.parameters.total(),
        "unused_parameters": counts.unused_parameters,
        "module_macs": counts.macs.total(),
        "checkpoint_bytes": deployed.stat().st_size,
    }
