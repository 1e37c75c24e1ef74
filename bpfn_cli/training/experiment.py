# SPDX-License-Identifier: MIT
"""From a recipe and a dataset to a finished run folder: teacher, training, evaluation, summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.config import to_yaml
from bpfn_cli.data.datasets import data_identity, describe, open_dataset
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.files import write_json
from bpfn_cli.losses import build_losses
from bpfn_cli.losses.objective import NO_DISTILLATION
from bpfn_cli.metrics.evaluation import MODEL, relative_gain
from bpfn_cli.models import BiPointFlowNet, build_model, initialize_from, load_checkpoint, variant_named
from bpfn_cli.profiling import count_modules
from bpfn_cli.strategies import PlainStrategy
from bpfn_cli.training.fit import fit
from bpfn_cli.training.progress import Progress
from bpfn_cli.training.recipe import Recipe, teacher_key
from bpfn_cli.training.result import evaluate_checkpoint
from bpfn_cli.training.run_folder import RunFolder, file_identity, find_teacher, timestamp

COMPLEXITY_POINTS = 8192  # what the published tables count MACs at


@dataclass(frozen=True)
class Experiment:
    """Where and how a recipe is carried out.

    Attributes:
        data: a prepared dataset or subset. runs: the folder of run folders.
        teacher: a checkpoint; None: the recipe's teacher is found among the runs, or trained first.
        initial: a checkpoint that the student starts from, whole or sliced; None: fresh.
        command: what the user typed, for the record.
        evaluate: whether the deployed weights are measured on the test split at the end.
    """

    recipe: Recipe
    data: Path
    runs: Path
    device: torch.device
    command: str
    name: str | None = None
    teacher: Path | None = None
    initial: Path | None = None
    evaluate: bool = True


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, and the result of its evaluation (None where it was not asked for)."""

    folder: Path
    result: dict[str, Any] | None


def run_experiment(experiment: Experiment, progress: Progress) -> Outcome:
    """Train what the recipe says, with a teacher if a loss needs one.

    Raises: UsageError, DataError, CheckpointError, DiskError, NonFiniteError; the run folder records the reason.
    """
    recipe = experiment.recipe
    student = variant_named(recipe.variant)
    dataset = open_dataset(experiment.data, "train")
    progress.line(f"data: {describe(dataset)}")
    wanted = [name for name in recipe.loss if name != NO_DISTILLATION]
    build_losses(wanted, student, variant_named(recipe.teacher), recipe.objective)  # refuse before hours of teacher
    teacher = _teacher(experiment, progress) if wanted else None
    return _train(experiment, "student", teacher, progress)


def train_teacher(experiment: Experiment, progress: Progress) -> Path:
    """Train the recipe's teacher by the supervised loss; return its checkpoint."""
    recipe = experiment.recipe.for_teacher()
    alone = replace(experiment, recipe=recipe, name=None, teacher=None, initial=None)
    return _train(alone, "teacher", None, progress).folder / "student.safetensors"


def _teacher(experiment: Experiment, progress: Progress) -> Path:
    if experiment.teacher is not None:
        progress.line(f"teacher: {printable(experiment.teacher)}")
        return experiment.teacher
    name = experiment.recipe.teacher
    found = find_teacher(experiment.runs, teacher_key(experiment.recipe, data_identity(experiment.data)))
    if found is not None:
        progress.line(f"teacher: {name}, trained before with this recipe ({printable(found)})")
        return found
    progress.line(f"teacher: none trained with this recipe yet, so {name} is trained first (reused next time)")
    return train_teacher(experiment, progress)


def _train(experiment: Experiment, role: str, teacher: Path | None, progress: Progress) -> Outcome:
    recipe, data = experiment.recipe, data_identity(experiment.data)
    method = "+".join(name for name in recipe.loss if name != NO_DISTILLATION) or "scratch"
    torch.manual_seed(recipe.seed)
    student = build_model(recipe.variant, recipe.data.points)
    if experiment.initial is not None:
        initialize_from(student, load_checkpoint(experiment.initial))
    guide = load_checkpoint(teacher) if teacher is not None else None
    _check_pair(student, guide)
    counts = count_modules(student.variant, COMPLEXITY_POINTS)
    about: dict[str, Any] = {
        "command": "train" if teacher is None else "distill",
        "role": role,
        "variant": student.variant.name,
        "method": method,
        "seed": recipe.seed,
        "points": recipe.data.points,
        "epochs": recipe.train.epochs,
        "epochs_done": 0,
        "train_seconds": None,
        "data": data,
        "teacher": _teacher_identity(teacher, guide),
        "teacher_key": teacher_key(recipe, data) if role == "teacher" else None,
        "complexity": None,
    }
    default_name = f"{role}-{student.variant.name}-{method}-{timestamp()}"
    run = RunFolder.create(
        experiment.runs,
        experiment.name or default_name,
        config=to_yaml(recipe),
        command=experiment.command,
        about=about,
    )
    with run.working():
        strategy = PlainStrategy(
            student.to(experiment.device),
            None if guide is None else guide.to(experiment.device),
            build_losses(recipe.loss, student.variant, guide.variant if guide else None, recipe.objective).to(
                experiment.device
            ),
            weight_decay=recipe.train.weight_decay,
            clip_norm=recipe.train.clip_norm,
        )
        dataset = open_dataset(experiment.data, "train")
        started = time.monotonic()
        with progress.bar(f"training {role} {student.variant.name} ({method})") as bar:
            best = fit(strategy, dataset, recipe, run, bar, experiment.device)
        deployed = run.deploy(best)
        run.record(
            train_seconds=round(time.monotonic() - started, 1),
            complexity={
                "points": COMPLEXITY_POINTS,
                "parameters": counts.parameters.total(),
                "unused_parameters": counts.unused_parameters,
                "module_macs": counts.macs.total(),
                "checkpoint_bytes": deployed.stat().st_size,
            },
        )
        result = None
        if experiment.evaluate:
            test = open_dataset(experiment.data, "test")
            result = evaluate_checkpoint(
                deployed, test, points=recipe.data.points, seed=0, device=experiment.device, progress=progress
            )
            run.write_evaluation(f"{test.kind}-test", result)
        write_json(run.path / "summary.json", {**run.about, "state": "finished", "result": result})
    if result is not None:
        progress.line(summary_line(student.variant.name, result))
    return Outcome(run.path, result)


def summary_line(name: str, result: dict[str, Any]) -> str:
    """EPE3D of a network beside those of the baselines, in one line."""
    epe3d = {row["name"]: row["epe3d"] for row in result["rows"]}
    gain = relative_gain(epe3d)
    others = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in epe3d.items() if key != MODEL)
    side = "below" if gain >= 0 else "above"
    return f"{name}: EPE3D {epe3d[MODEL]:.4f} m, {abs(gain):.0%} {side} the better baseline ({others})"


def _check_pair(student: BiPointFlowNet, teacher: BiPointFlowNet | None) -> None:
    if teacher is not None and teacher.pyramid_shape != student.pyramid_shape:
        raise CheckpointError("teacher and student sample different points: they need equal reductions and neighbors")


def _teacher_identity(path: Path | None, teacher: BiPointFlowNet | None) -> dict[str, Any] | None:
    if path is None or teacher is None:
        return None
    run = path.parent.name if (path.parent / "run.json").is_file() else None
    return {"run": run, "variant": teacher.variant.name, **file_identity(path)}


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises: UsageError: asked for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {printable(name)}: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {printable(name)}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    return device
