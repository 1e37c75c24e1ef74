# SPDX-License-Identifier: MIT
"""From a recipe and a dataset to a finished run folder: teacher, training, evaluation, summary."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.config import to_tree, to_yaml
from bpfn_cli.data.datasets import SceneDataset, data_identity, describe, open_dataset, split_identity
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.losses import Objective, build_losses
from bpfn_cli.losses.objective import used_options
from bpfn_cli.metrics.evaluation import BASELINES, MODEL, TEACHER, relative_gain
from bpfn_cli.models import (
    BiPointFlowNet,
    Variant,
    build_from,
    build_model,
    initialize_from,
    load_checkpoint,
    read_checkpoint,
    variant_named,
)
from bpfn_cli.profiling import count_modules
from bpfn_cli.strategies import STRATEGIES, PlainStrategy, Teacher, TeacherCache
from bpfn_cli.strategies.plain import teacher_passes
from bpfn_cli.strategies.teacher import cache_key, shuffle_points
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.early_stop import EarlyStop
from bpfn_cli.training.fit import count_steps, epoch_batches, fit, split_of, validation_epe3d
from bpfn_cli.training.plan import Plan, make_plan, rehearse
from bpfn_cli.training.prepared import Prepared
from bpfn_cli.training.progress import Bar, Progress
from bpfn_cli.training.recipe import SCRATCH, Recipe, recipe_tree, teacher_key
from bpfn_cli.training.result import evaluate_checkpoint, result_name
from bpfn_cli.training.run_folder import (
    STUDENT,
    RunFolder,
    check_run_name,
    file_identity,
    find_teacher,
    timestamp,
)

CONTROL_SEED = 987_654_321  # of the weights of a teacher that was never trained
COMPLEXITY_POINTS = 8192  # what the published tables count MACs at
EVALUATION_SEED = 0  # of the points drawn: the same for every run, so that all rows of a table share them


@dataclass(frozen=True)
class Experiment:
    """Where and how a recipe is carried out.

    Attributes:
        data: a prepared dataset or subset. runs: the folder of run folders.
        teacher: a checkpoint; None: the recipe's teacher is found among the runs, or trained first.
        initial: a checkpoint that the student starts from, whole or sliced; None: fresh.
        command: what the user typed, for the record.
        labels: more for run.json, where the training is part of a study.
    """

    recipe: Recipe
    data: Path
    runs: Path
    device: torch.device
    command: str
    name: str | None = None
    teacher: Path | None = None
    initial: Path | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)


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
    build_objective(recipe).check_length(count_steps(dataset, recipe))  # refuse before hours of teacher
    guide = None
    if recipe.distillation_losses():
        guide = _find_guide(experiment, dataset, progress)
    return _train(experiment, "student", guide, progress)


def build_objective(recipe: Recipe, teacher: Variant | None = None) -> Objective:
    """The objective of a recipe; `teacher` where it is not the recipe's."""
    teacher = teacher or (variant_named(recipe.teacher) if recipe.distillation_losses() else None)
    return build_losses(recipe.loss, variant_named(recipe.variant), teacher, recipe.objective)


def plan_experiment(experiment: Experiment) -> Plan:
    """The plan of a training, without one: by a rehearsal with weights that were never trained.

    Raises: UsageError, ShapeError: it cannot work.
    """
    recipe, dataset = experiment.recipe, open_training_data(experiment)
    student = build_model(recipe.variant, recipe.data.points)
    guide = None
    if recipe.distillation_losses():
        found = teacher_at_hand(experiment)
        guide = _random_guide(recipe) if found is None else _Guide.read(found, experiment.runs)
        _check_pyramids(guide, student)
    strategy = _build_strategy(experiment, student, guide, dataset)
    strategy.objective.check_length(count_steps(dataset, recipe))
    batch = _first_batch(experiment, dataset)
    return make_plan(strategy, recipe, count_steps(dataset, recipe), rehearse(strategy, batch, recipe))


def open_training_data(experiment: Experiment) -> SceneDataset:
    """The training scenes. Raises: as `open_dataset`; UsageError: of another kind than the recipe says."""
    dataset, kind = open_dataset(experiment.data, "train"), experiment.recipe.data.kind
    if kind not in ("auto", dataset.kind):
        raise UsageError(f"data.kind {kind}: {printable(dataset.root)} is {dataset.kind}; change one of them")
    return dataset


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


def _find_guide(experiment: Experiment, dataset: SceneDataset, progress: Progress) -> _Guide:
    recipe = experiment.recipe
    if recipe.control == "random":
        progress.line(f"teacher: {recipe.teacher} with weights that were never trained, as a control")
        return _random_guide(recipe)
    found = teacher_at_hand(experiment)
    if found is None:
        # What cannot work is found now, with weights that were never trained.
        student = build_model(recipe.variant, recipe.data.points)
        strategy = _build_strategy(experiment, student, _random_guide(recipe), dataset)
        strategy.rehearse(_first_batch(experiment, dataset), recipe.train.lr)
        del student, strategy
        name = recipe.teacher
        progress.line(f"teacher: none trained with this recipe yet, so {name} is trained first (reused next time)")
        return _Guide.read(train_teacher(experiment, progress), experiment.runs)
    how = "" if found == experiment.teacher else ", trained before with this recipe"
    progress.line(f"teacher: {printable(found)}{how}")
    return _Guide.read(found, experiment.runs)


@dataclass(frozen=True)
class _Guide:
    """A teacher that was read: its network, its file, and the run it came from (None: from elsewhere)."""

    network: BiPointFlowNet
    sha256: str
    path: Path | None
    run: str | None

    @classmethod
    def read(cls, path: Path, runs: Path) -> _Guide:
        checkpoint = read_checkpoint(path)
        run = checkpoint.metadata.get("run")
        is_known = isinstance(run, str) and (runs / Path(run).name / "run.json").is_file()
        return cls(build_from(checkpoint), sha256_of(path), path, run if is_known else None)

    def identity(self) -> dict[str, Any]:
        path = "random weights" if self.path is None else str(self.path)
        return {"run": self.run, "variant": self.network.variant.name, "path": path, "sha256": self.sha256}


def _random_guide(recipe: Recipe) -> _Guide:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(CONTROL_SEED)
        network = build_model(recipe.teacher, recipe.data.points)
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return _Guide(network, digest.hexdigest(), None, None)


def _check_pyramids(guide: _Guide, student: BiPointFlowNet) -> None:
    if guide.network.pyramid_shape != student.pyramid_shape:
        raise CheckpointError("teacher and student sample different points: they need equal reductions and neighbors")


def _build_strategy(
    experiment: Experiment, student: BiPointFlowNet, guide: _Guide | None, dataset: SceneDataset
) -> PlainStrategy:
    """The recipe's strategy, on the experiment's device."""
    recipe, device = experiment.recipe, experiment.device
    kind = STRATEGIES[recipe.strategy.kind]
    quizzed = split_of(dataset, recipe).quiz
    options = recipe.train
    objective = build_losses(recipe.loss, student.variant, guide.network.variant if guide else None, recipe.objective)

    def quiz(number: int) -> Iterator[FlowBatch]:
        return (batch.to(device) for batch in epoch_batches(dataset, quizzed, recipe, number))

    return kind(
        student.to(device),
        None if guide is None else _build_teacher(experiment, guide, objective),
        objective.to(device),
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        precision=options.precision,
        options=getattr(recipe.strategy, recipe.strategy.kind, None),
        quiz=quiz if quizzed else None,
        largest=variant_named(recipe.teacher),
        seed=recipe.seed,
    )


def _build_teacher(experiment: Experiment, guide: _Guide, objective: Objective) -> Teacher:
    recipe, cache = experiment.recipe, None
    if recipe.train.teacher_cache is not None:
        drawn = {
            "dataset": data_identity(experiment.data)["sha256"],
            "points": recipe.data.points,
            "augment": to_tree(recipe.data.augment),
            "precision": recipe.train.teacher_precision.value,
        }
        key = cache_key(guide.sha256, drawn, objective.reads())
        cache = TeacherCache(Path(recipe.train.teacher_cache) / key, objective.reads())
    return Teacher(
        guide.network.to(experiment.device),
        recipe.train.teacher_precision,
        shuffle_points if recipe.control == "shuffled" else None,
        cache,
    )


def _first_batch(experiment: Experiment, dataset: SceneDataset) -> FlowBatch:
    recipe = experiment.recipe
    without_workers = replace(recipe, data=replace(recipe.data, workers=0))
    batches = epoch_batches(dataset, split_of(dataset, recipe).learn, without_workers, 0)
    return next(iter(batches)).to(experiment.device)


def _train(experiment: Experiment, role: str, guide: _Guide | None, progress: Progress) -> Outcome:
    recipe, device = experiment.recipe, experiment.device
    torch.manual_seed(recipe.seed)
    student = build_model(recipe.variant, recipe.data.points)
    if experiment.initial is not None:
        _initialize(student, experiment.initial, progress)
    if guide is not None:
        _check_pyramids(guide, student)
    about = _about(experiment, role, guide)
    dataset = open_training_data(experiment)
    run = RunFolder.create(
        experiment.runs,
        experiment.name or f"{role}-{recipe.variant}-{_in_a_name(about['method'])}-{timestamp()}",
        config=to_yaml(recipe_tree(recipe)),
        command=experiment.command,
        about=about,
    )
    with run.working():
        strategy = _build_strategy(experiment, student, guide, dataset)
        started = time.monotonic()
        _prepare(experiment, strategy, guide, dataset, progress)
        figures = rehearse(strategy, _first_batch(experiment, dataset), recipe)
        plan = make_plan(strategy, recipe, count_steps(dataset, recipe), figures)
        for line in plan.lines():
            progress.line(line)
        held_out = _teacher_on_held_out(experiment, guide, dataset)
        run.record(plan=plan.as_tree(), **_with_teacher_metrics(run, held_out=held_out))
        early_stop = EarlyStop(recipe.early_stop, held_out)
        with progress.bar(f"training {role} {recipe.variant} ({about['method']})") as bar:
            best = fit(strategy, dataset, recipe, run, bar, device, early_stop)
        seconds = time.monotonic() - started
        deployed = run.deploy(best)
        run.record(
            train_seconds=round(seconds, 1),
            weights_sha256=sha256_of(deployed),
            complexity=_complexity(student, deployed),
            teacher_forwards=None if strategy.teacher is None else strategy.teacher.forwards,
            **_cache_figures(strategy),
        )
        known = None if guide is None else _known_test_metrics(experiment, guide)
        is_measured = guide is not None and guide.path is not None and known is None
        result = evaluate_checkpoint(
            deployed,
            open_dataset(experiment.data, "test"),
            points=recipe.data.points,
            seed=EVALUATION_SEED,
            device=device,
            progress=progress,
            teacher=guide.network if guide is not None and is_measured else None,
        )
        run.write_evaluation(result_name(result), result)
        test = known or next((row for row in result["rows"] if row["name"] == TEACHER), None)
        run.record(**_with_teacher_metrics(run, test=test))
    progress.line(summary_line(recipe.variant, result))
    return Outcome(run.path, result)


def _prepare(
    experiment: Experiment, strategy: PlainStrategy, guide: _Guide | None, dataset: SceneDataset, progress: Progress
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
            "loss": name,
            "options": used_options([name], recipe.objective),
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
                for batch in epoch_batches(dataset, learn, recipe, 0):
                    yield batch.to(experiment.device)
                    done += len(batch.names)
                    bar(done % len(learn) or len(learn), len(learn))

            term.prepare(teacher_passes(teacher, batches))
        prepared.keep(term, before)
    strategy.adopt_preparation()


def _teacher_on_held_out(experiment: Experiment, guide: _Guide | None, dataset: SceneDataset) -> float | None:
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


def _known_test_metrics(experiment: Experiment, guide: _Guide) -> dict[str, Any] | None:
    """What the teacher's own run measured under the protocol of the student's evaluation; None: nothing."""
    if guide.run is None:
        return None
    wanted = {
        "sha256": split_identity(open_dataset(experiment.data, "test")),
        "points": experiment.recipe.data.points,
        "seed": EVALUATION_SEED,
        "weights": guide.sha256,
    }
    for path in sorted((experiment.runs / guide.run / "evaluations").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            result = json.loads(path.read_text(encoding="utf-8"))
            own = {
                "sha256": result["dataset"]["sha256"],
                "points": result["points"],
                "seed": result["seed"],
                "weights": result["checkpoint"]["sha256"],
            }
            if own == wanted:
                return next(row for row in result["rows"] if row["name"] == MODEL)
    return None


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


def _about(experiment: Experiment, role: str, guide: _Guide | None) -> dict[str, Any]:
    """What run.json says of a training before it begins."""
    recipe, initial = experiment.recipe, experiment.initial
    data = data_identity(experiment.data)
    split = split_of(open_dataset(experiment.data, "train"), recipe)
    losses, method = recipe.distillation_losses(), recipe.method()
    is_plain_supervised = method == SCRATCH and initial is None and recipe.objective.w_gt is None
    if initial is not None:
        method = "fine-tuned" if method == SCRATCH else f"fine-tuned+{method}"
    return {
        "command": "distill" if losses else "train",
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
