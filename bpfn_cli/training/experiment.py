# SPDX-License-Identifier: MIT
"""From a recipe and a dataset to a finished run folder: teacher, training, evaluation, summary."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.config import to_yaml
from bpfn_cli.data.datasets import SceneDataset, data_identity, describe, open_dataset
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.metrics.evaluation import BASELINES, MODEL, TEACHER, relative_gain
from bpfn_cli.models import (
    BiPointFlowNet,
    build_model,
    initialize_from,
    load_checkpoint,
)
from bpfn_cli.profiling import count_modules
from bpfn_cli.strategies import PlainStrategy
from bpfn_cli.training.assembly import build_strategy, check_recipe, prepare_losses, recipe_notes
from bpfn_cli.training.early_stop import EarlyStop
from bpfn_cli.training.fit import count_steps, fit, split_of, validation_epe3d
from bpfn_cli.training.guide import Guide, check_pyramids, known_test_metrics, random_guide
from bpfn_cli.training.job import Experiment, first_batch, open_training_data
from bpfn_cli.training.plan import Plan, make_plan, rehearse
from bpfn_cli.training.progress import Progress
from bpfn_cli.training.recipe import SCRATCH, recipe_tree, teacher_key
from bpfn_cli.training.result import EVALUATION_SEED, evaluate_checkpoint, result_name
from bpfn_cli.training.run_folder import (
    STUDENT,
    RunFolder,
    check_run_name,
    file_identity,
    find_teacher,
    timestamp,
)

COMPLEXITY_POINTS = 8192  # what the published tables count MACs at


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, and the result of its evaluation on the test split."""

    folder: Path
    result: dict[str, Any]


def run_experiment(experiment: Experiment, progress: Progress) -> Outcome:
    """Train what the recipe says, with a teacher if a loss needs one.

    Raises: UsageError, DataError, CheckpointError, DiskError, NonFiniteError; the run folder records the reason.
    """
    recipe = experiment.recipe
    if experiment.name is not None:
        check_run_name(experiment.name)
    dataset = open_training_data(experiment)
    _check_runs_place(experiment.runs, dataset.root)
    progress.line(f"data: {describe(dataset)}")
    check_recipe(recipe, dataset)  # refuse before hours of teacher
    for line in recipe_notes(recipe, dataset):
        progress.line(line)
    if experiment.teacher is not None and not recipe.distillation_losses():
        progress.line(f"teacher: {printable(experiment.teacher)}: not used, since no --loss looks at it")
    guide = None
    if recipe.distillation_losses():
        guide = _find_guide(experiment, dataset, progress)
    return _train(experiment, "student", guide, progress)


def plan_experiment(experiment: Experiment) -> Plan:
    """The plan of a training, without one: by a rehearsal with weights that were never trained.

    Raises: UsageError, ShapeError: it cannot work.
    """
    recipe, dataset = experiment.recipe, open_training_data(experiment)
    student = build_model(recipe.variant, recipe.data.points)
    guide = None
    check_recipe(recipe, dataset)
    if experiment.initial is not None:
        initialize_from(student, load_checkpoint(experiment.initial))
    if recipe.distillation_losses():
        found = None if recipe.control == "random" else teacher_at_hand(experiment)
        guide = random_guide(recipe) if found is None else Guide.read(found, experiment.runs)
        check_pyramids(guide, student)
    strategy = build_strategy(experiment, student, guide, dataset)
    batch = first_batch(experiment, dataset)
    learn = len(split_of(dataset, recipe).learn)
    return make_plan(strategy, recipe, count_steps(dataset, recipe), learn, rehearse(strategy, batch, recipe))


def _check_runs_place(runs: Path, data: Path) -> None:
    if data.resolve() in (runs.resolve(), *runs.resolve().parents):
        raise UsageError(f"--runs {printable(runs)}: lies inside the data; choose a folder outside {printable(data)}")


def train_teacher(experiment: Experiment, progress: Progress) -> Path:
    """Train the recipe's teacher by the supervised loss; return its checkpoint."""
    recipe = experiment.recipe.for_teacher()
    alone = replace(experiment, recipe=recipe, name=None, teacher=None, initial=None, labels={})
    return _train(alone, "teacher", None, progress).folder / STUDENT


def teacher_at_hand(experiment: Experiment) -> Path | None:
    """The given teacher, or one that was trained before with this recipe on this data."""
    if experiment.teacher is not None:
        return experiment.teacher
    return find_teacher(experiment.runs, teacher_key(experiment.recipe, data_identity(experiment.data)))


def _find_guide(experiment: Experiment, dataset: SceneDataset, progress: Progress) -> Guide:
    recipe = experiment.recipe
    if recipe.control == "random":
        progress.line(f"teacher: {recipe.teacher} with weights that were never trained, as a control")
        return random_guide(recipe)
    found = teacher_at_hand(experiment)
    if found is None:
        # What cannot work is found now, with weights that were never trained.
        student = build_model(recipe.variant, recipe.data.points)
        strategy = build_strategy(experiment, student, random_guide(recipe), dataset)
        strategy.rehearse(first_batch(experiment, dataset), recipe.train.lr, recipe.train.epochs)
        del student, strategy
        name = recipe.teacher
        progress.line(f"teacher: none trained with this recipe yet, so {name} is trained first (reused next time)")
        return Guide.read(train_teacher(experiment, progress), experiment.runs)
    how = "" if found == experiment.teacher else ", trained before with this recipe"
    progress.line(f"teacher: {printable(found)}{how}")
    return Guide.read(found, experiment.runs)


def _train(experiment: Experiment, role: str, guide: Guide | None, progress: Progress) -> Outcome:
    recipe, device = experiment.recipe, experiment.device
    torch.manual_seed(recipe.seed)
    student = build_model(recipe.variant, recipe.data.points)
    if experiment.initial is not None:
        _initialize(student, experiment.initial, progress)
    if guide is not None:
        check_pyramids(guide, student)
    dataset = open_training_data(experiment)
    strategy = build_strategy(experiment, student, guide, dataset)
    about = _about(experiment, role, guide)
    run = RunFolder.create(
        experiment.runs,
        experiment.name or f"{role}-{recipe.variant}-{_in_a_name(about['method'])}-{timestamp()}",
        config=to_yaml(recipe_tree(recipe)),
        command=experiment.command,
        about=about,
    )
    with run.working():
        started = time.monotonic()
        prepare_losses(experiment, strategy, guide, dataset, progress)
        prepared = time.monotonic()
        figures = rehearse(strategy, first_batch(experiment, dataset), recipe)
        plan = make_plan(strategy, recipe, count_steps(dataset, recipe), len(split_of(dataset, recipe).learn), figures)
        for line in plan.lines():
            progress.line(line)
        held_out = _teacher_on_held_out(experiment, guide, dataset)
        run.record(plan=plan.as_tree(), **_with_teacher_metrics(run, held_out=held_out))
        early_stop = EarlyStop(recipe.early_stop, held_out)
        with progress.bar(f"training {role} {recipe.variant} ({about['method']})") as bar:
            best = fit(strategy, dataset, recipe, run, bar, device, early_stop)
        seconds = time.monotonic() - started
        if strategy.teacher is not None and strategy.teacher.cache is not None and strategy.teacher.cache.full:
            progress.line(f"teacher cache: stopped writing: {strategy.teacher.cache.full}")
        deployed = run.deploy(best)
        run.record(
            train_seconds=round(seconds, 1),
            prepare_seconds=round(prepared - started, 1),
            weights_sha256=sha256_of(deployed),
            complexity=_complexity(student, deployed),
            teacher_forwards=None if strategy.teacher is None else strategy.teacher.forwards,
            **_cache_figures(strategy),
        )
        known = None if guide is None else known_test_metrics(experiment, guide)
        unknown = None if guide is None or known is not None else guide.path
        result = evaluate_checkpoint(
            deployed,
            open_dataset(experiment.data, "test"),
            points=recipe.data.points,
            seed=EVALUATION_SEED,
            device=device,
            progress=progress,
            teacher=None if unknown is None else load_checkpoint(unknown),  # not moved by a strategy
        )
        run.write_evaluation(result_name(result), result)
        test = known or next((row for row in result["rows"] if row["name"] == TEACHER), None)
        run.record(**_with_teacher_metrics(run, test=test))
    progress.line(summary_line(recipe.variant, result))
    return Outcome(run.path, result)


def _teacher_on_held_out(experiment: Experiment, guide: Guide | None, dataset: SceneDataset) -> float | None:
    """EPE3D of the teacher on the scenes that choose the student's best checkpoint."""
    held_out = split_of(dataset, experiment.recipe).held_out
    if guide is None or not held_out:
        return None
    return validation_epe3d(guide.network, dataset, held_out, experiment.recipe, experiment.device)


def _with_teacher_metrics(run: RunFolder, **metrics: Any) -> dict[str, Any]:
    """The teacher's entry in run.json with its own figures, by the evaluator that measures the student."""
    teacher = run.about.get("teacher")
    if teacher is None:
        return {}
    held_out = metrics.get("held_out", teacher.get("held_out_epe3d"))
    test = metrics.get("test", teacher.get("test"))
    kept = None if test is None else {key: value for key, value in test.items() if key != "name"}
    return {"teacher": {**teacher, "held_out_epe3d": held_out, "test": kept}}


def _cache_figures(strategy: PlainStrategy) -> dict[str, Any]:
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


def _about(experiment: Experiment, role: str, guide: Guide | None) -> dict[str, Any]:
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
        "data": {**data, "held_out_scenes": len(split.held_out) + len(split.quiz)},
        "teacher": None if guide is None else guide.identity(),
        "teacher_key": teacher_key(replace(recipe, teacher=recipe.variant), data) if is_plain_supervised else None,
        "initial": None if initial is None else file_identity(initial),
        "complexity": None,
        **experiment.labels,
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


def summary_line(name: str, result: dict[str, Any]) -> str:
    """EPE3D of a network beside those of the baselines, in one line."""
    epe3d = {row["name"]: row["epe3d"] for row in result["rows"]}
    gain = relative_gain(epe3d)
    others = ", ".join(f"{name.replace('_', ' ')} {epe3d[name]:.4f}" for name in BASELINES)
    side = "below" if gain >= 0 else "above"
    beside = "" if math.isnan(gain) else f", {abs(gain):.0%} {side} the better baseline"
    return f"{name}: EPE3D {epe3d[MODEL]:.4f} m{beside} ({others})"
