# SPDX-License-Identifier: MIT
"""From a recipe and a dataset to a finished run folder: teacher, training, evaluation, summary."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.config import to_yaml
from bpfn_cli.data.datasets import SceneDataset, data_identity, describe, open_dataset
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.losses import build_losses
from bpfn_cli.metrics.evaluation import BASELINES, MODEL, relative_gain
from bpfn_cli.models import (
    BiPointFlowNet,
    build_from,
    build_model,
    initialize_from,
    load_checkpoint,
    read_checkpoint,
    variant_named,
)
from bpfn_cli.profiling import count_modules
from bpfn_cli.strategies import PlainStrategy
from bpfn_cli.training.fit import count_steps, fit, split_holdout
from bpfn_cli.training.progress import Progress
from bpfn_cli.training.recipe import Recipe, teacher_key
from bpfn_cli.training.result import evaluate_checkpoint, result_name
from bpfn_cli.training.run_folder import (
    STUDENT,
    RunFolder,
    check_run_name,
    file_identity,
    find_teacher,
    timestamp,
)

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
    """

    recipe: Recipe
    data: Path
    runs: Path
    device: torch.device
    command: str
    name: str | None = None
    teacher: Path | None = None
    initial: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, and the result of its evaluation on the test split."""

    folder: Path
    result: dict[str, Any]


def run_experiment(experiment: Experiment, progress: Progress) -> Outcome:
    """Train what the recipe says, with a teacher if a loss needs one.

    Raises: UsageError, DataError, CheckpointError, DiskError, NonFiniteError; the run folder records the reason.
    """
    recipe, wanted = experiment.recipe, experiment.recipe.distillation_losses()
    if experiment.name is not None:
        check_run_name(experiment.name)
    dataset = open_training_data(experiment)
    _check_runs_place(experiment.runs, dataset.root)
    progress.line(f"data: {describe(dataset)}")
    objective = build_losses(wanted, variant_named(recipe.variant), variant_named(recipe.teacher), recipe.objective)
    objective.check_length(count_steps(dataset, recipe))  # refuse before hours of teacher
    teacher = _teacher(experiment, progress) if wanted else None
    return _train(experiment, "student", teacher, progress)


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
    alone = replace(experiment, recipe=recipe, name=None, teacher=None, initial=None)
    return _train(alone, "teacher", None, progress).folder / STUDENT


def teacher_at_hand(experiment: Experiment) -> Path | None:
    """The given teacher, or one that was trained before with this recipe on this data."""
    if experiment.teacher is not None:
        return experiment.teacher
    return find_teacher(experiment.runs, teacher_key(experiment.recipe, data_identity(experiment.data)))


def _teacher(experiment: Experiment, progress: Progress) -> Path:
    found = teacher_at_hand(experiment)
    if found is None:
        name = experiment.recipe.teacher
        progress.line(f"teacher: none trained with this recipe yet, so {name} is trained first (reused next time)")
        return train_teacher(experiment, progress)
    how = "" if found == experiment.teacher else ", trained before with this recipe"
    progress.line(f"teacher: {printable(found)}{how}")
    return found


@dataclass(frozen=True)
class _Guide:
    """A teacher that was read: its file, its network, and the run it came from (None: from elsewhere)."""

    path: Path
    network: BiPointFlowNet
    run: str | None

    @classmethod
    def read(cls, path: Path, runs: Path) -> _Guide:
        checkpoint = read_checkpoint(path)
        run = checkpoint.metadata.get("run")
        is_known = isinstance(run, str) and (runs / Path(run).name / "run.json").is_file()
        return cls(path, build_from(checkpoint), run if is_known else None)

    def identity(self) -> dict[str, Any]:
        return {"run": self.run, "variant": self.network.variant.name, **file_identity(self.path)}


def _train(experiment: Experiment, role: str, teacher: Path | None, progress: Progress) -> Outcome:
    recipe, device = experiment.recipe, experiment.device
    torch.manual_seed(recipe.seed)
    student = build_model(recipe.variant, recipe.data.points)
    if experiment.initial is not None:
        _initialize(student, experiment.initial, progress)
    guide = None if teacher is None else _Guide.read(teacher, experiment.runs)
    if guide is not None and guide.network.pyramid_shape != student.pyramid_shape:
        raise CheckpointError("teacher and student sample different points: they need equal reductions and neighbors")
    about = _about(experiment, role, guide)
    run = RunFolder.create(
        experiment.runs,
        experiment.name or f"{role}-{recipe.variant}-{about['method']}-{timestamp()}",
        config=to_yaml(recipe),
        command=experiment.command,
        about=about,
    )
    with run.working():
        strategy = PlainStrategy(
            student.to(device),
            None if guide is None else guide.network.to(device),
            build_losses(recipe.loss, student.variant, guide.network.variant if guide else None, recipe.objective).to(
                device
            ),
            weight_decay=recipe.train.weight_decay,
            clip_norm=recipe.train.clip_norm,
            precision=recipe.train.precision,
            teacher_precision=recipe.train.teacher_precision,
        )
        started = time.monotonic()
        with progress.bar(f"training {role} {recipe.variant} ({about['method']})") as bar:
            best = fit(strategy, open_training_data(experiment), recipe, run, bar, device)
        seconds = time.monotonic() - started
        deployed = run.deploy(best)
        run.record(
            train_seconds=round(seconds, 1),
            weights_sha256=sha256_of(deployed),
            complexity=_complexity(student, deployed),
        )
        result = evaluate_checkpoint(
            deployed,
            open_dataset(experiment.data, "test"),
            points=recipe.data.points,
            seed=EVALUATION_SEED,
            device=device,
            progress=progress,
            teacher=teacher if guide is not None and guide.run is None else None,
        )
        run.write_evaluation(result_name(result), result)
    progress.line(summary_line(recipe.variant, result))
    return Outcome(run.path, result)


def _initialize(student: BiPointFlowNet, weights: Path, progress: Progress) -> None:
    done = initialize_from(student, load_checkpoint(weights))
    counts = f"{len(done.copied)} tensors copied, {len(done.sliced)} sliced, {len(done.fresh)} fresh"
    progress.line(f"start: {printable(weights)} ({counts})")


def _about(experiment: Experiment, role: str, guide: _Guide | None) -> dict[str, Any]:
    """What run.json says of a training before it begins."""
    recipe, initial = experiment.recipe, experiment.initial
    data = data_identity(experiment.data)
    split = split_holdout(open_dataset(experiment.data, "train"), recipe.data.holdout, recipe.seed)
    losses = recipe.distillation_losses()
    is_plain_supervised = not losses and initial is None and recipe.objective.w_gt is None
    return {
        "command": "distill" if losses else "train",
        "role": role,
        "variant": recipe.variant,
        "method": "+".join(["fine-tuned"] * (initial is not None) + losses) or "scratch",
        "seed": recipe.seed,
        "points": recipe.data.points,
        "epochs": recipe.train.epochs,
        "epochs_done": 0,
        "train_seconds": None,
        "data": {**data, "held_out_scenes": len(split.held_out)},
        "teacher": None if guide is None else guide.identity(),
        "teacher_key": teacher_key(replace(recipe, teacher=recipe.variant), data) if is_plain_supervised else None,
        "initial": None if initial is None else file_identity(initial),
        "complexity": None,
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
