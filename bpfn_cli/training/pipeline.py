# SPDX-License-Identifier: MIT
"""From a job to a finished run folder. Running a job in an existing folder resumes it where it stopped."""

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.data.datasets import describe
from bpfn_cli.distributed import from_main, is_main
from bpfn_cli.errors import BusyError, CheckpointError, NonFiniteError, printable
from bpfn_cli.files import sha256_of
from bpfn_cli.history import DISTILLED, KEY, TRAINED, Step, plain_steps
from bpfn_cli.metrics.evaluation import EVALUATION_SEED, evaluate_checkpoint
from bpfn_cli.metrics.result import TEACHER, EvaluationResult
from bpfn_cli.models import BiPointFlowNet, load_checkpoint
from bpfn_cli.models.fake_quantization import quantizers
from bpfn_cli.models.history import step_of
from bpfn_cli.profiling import count_modules
from bpfn_cli.progress import LoggedProgress, Progress
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.identity import recipe_tree
from bpfn_cli.runs import record
from bpfn_cli.runs.folder import RunFolder, check_run_name
from bpfn_cli.runs.listing import find_runs, is_busy
from bpfn_cli.runs.loggers import Picture, tensorboard, weights_and_biases
from bpfn_cli.shipped import STUDENT, weights_title
from bpfn_cli.training.build import Parts, build, check_job, job_notes
from bpfn_cli.training.job import Job
from bpfn_cli.training.loop.batches import epoch_batches, first_batch
from bpfn_cli.training.loop.checkpointer import Checkpointer, check_space
from bpfn_cli.training.loop.fit import fit
from bpfn_cli.training.loop.out_of_memory import memory_advice
from bpfn_cli.training.loop.picture import picture_of
from bpfn_cli.training.loop.state import Training
from bpfn_cli.training.loop.validate import Validator
from bpfn_cli.training.plan import Plan, plan_training
from bpfn_cli.training.preparation import prepare_losses
from bpfn_cli.training.start import create_run, differences, use_recorded_threads
from bpfn_cli.training.teacher import TeacherNetwork, known_test_metrics


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, and the result of its evaluation on the test split; None: there is none."""

    folder: Path
    result: EvaluationResult | None


def run(job: Job, progress: Progress) -> Outcome:
    """Carry out a job in a new run folder, which records any BpfnError that ends the work."""
    if job.name is not None:
        check_run_name(job.name)
    progress.line(f"data: {describe(job.data.train)}")
    check_job(job)
    for note in job_notes(job):
        progress.line(note)
    with job.stop.listening():
        parts = build(job, progress)
        if parts.awaits_teacher:  # find what cannot work before the hours that its training takes
            with contextlib.suppress(NonFiniteError):  # such a step is skipped in training
                parts.strategy.trial_step(first_batch(job), job.recipe.train.lr, job.recipe.train.epochs)
        folder = create_run(job, "student")
        is_renamed = job.name not in (None, folder.path.name)
        progress.line(f"run: {printable(folder.path)}" + f" ({printable(job.name)} is taken; --resume)" * is_renamed)
        return carry_out(job, parts, folder, progress)


def carry_out(job: Job, parts: Parts, folder: RunFolder, progress: Progress) -> Outcome:
    """Do what is left of a run. Raises: as `run`; BusyError: another process works on it."""
    with job.stop.listening(), folder.locked(), folder.working():
        progress = LoggedProgress(progress, folder.log)
        obtain_teacher(job, parts, folder, progress)
        use_recorded_threads(folder)  # not those of a teacher's training that was resumed
        folder.link_latest()
        with _timed(folder):
            prepare(job, parts, folder, progress)
            plan(job, parts, folder, progress)
            training = restore(job, parts, folder, progress)
            train(job, parts, training, folder, progress)
        weights = deploy(job, parts, training, folder)
        result = evaluate(job, parts, weights, folder, progress)
        progress.line(result.summary() if result else _how_to_test(folder))
        return Outcome(folder.path, result)


def plan_job(job: Job, progress: Progress) -> Plan:
    """The plan of a job, without training. Raises: as `check_job` and `plan_training`."""
    check_job(job)
    return plan_training(job, build(job, progress).strategy)


def train_teacher(job: Job, progress: Progress) -> Path:
    """Train the recipe's teacher, or resume its training; returns its weights. Raises: BusyError: another does."""
    alone, folder, name = job.for_teacher(), None, job.recipe.teacher.name
    started = from_main(lambda: _started_teacher(job))
    if started is None:
        progress.line(f"teacher: no {name} trained with this recipe yet; training it first (it is reused next time)")
    else:
        folder, where = RunFolder.open(started), printable(started)
        use_recorded_threads(folder)
        if changed := "; ".join(differences(folder, alone)):
            progress.line(f"teacher: restarting: {where} was started with different settings: {changed}")
            folder = None
        else:
            progress.line(f"teacher: resuming {where}")
    folder = folder or create_run(alone, "teacher")
    return carry_out(alone, build(alone, progress), folder, progress).folder / STUDENT


def _started_teacher(job: Job) -> Path | None:
    """The newest unfinished teacher of this job, leaving out those that failed with NaN or infinity."""
    for found in reversed(find_runs(job.runs).runs):
        known = found.record
        if known.teacher_key == job.teacher_key and known.role == "teacher" and known.can_resume:
            if is_busy(found.path):
                problem = "another process is training this teacher; repeat the command when it is done"
                raise BusyError(f"{printable(found.path)}: {problem}")
            return found.path
    return None


def obtain_teacher(job: Job, parts: Parts, folder: RunFolder, progress: Progress) -> None:
    """Train the teacher if there is none yet, and record which one is used."""
    if parts.teacher is None:
        return
    if parts.awaits_teacher:
        parts.replace_teacher(job, TeacherNetwork.read(train_teacher(job, progress), job.runs))
    elif parts.teacher.path is None:
        progress.line(f"teacher: {job.recipe.teacher.name} with untrained weights, as a control")
    else:
        found = "" if job.teacher else ", trained earlier with this recipe"
        progress.line(f"teacher: {printable(weights_title(parts.teacher.path))}{found}")
    assert parts.teacher is not None
    folder.update(teacher=parts.teacher.entry(folder.record.teacher))


def prepare(job: Job, parts: Parts, folder: RunFolder, progress: Progress) -> None:
    """Let losses measure the teacher, and record how long that took the first time."""
    started = time.monotonic()
    prepare_losses(job, parts.strategy, parts.teacher, progress)
    if folder.record.prepare_seconds is None:
        folder.update(prepare_seconds=round(time.monotonic() - started, 1))


def plan(job: Job, parts: Parts, folder: RunFolder, progress: Progress) -> None:
    """Print and record what the training will do, once."""
    if folder.record.plan is not None:
        return
    try:
        with memory_advice(parts.strategy, partial(first_batch, job), job.recipe):
            made = plan_training(job, parts.strategy)
    except NonFiniteError as error:  # such a step is skipped in training
        progress.line(f"no plan: {error}")
        return
    for line in made.lines():
        progress.line(line)
    folder.update(plan=made.as_tree())


def restore(job: Job, parts: Parts, folder: RunFolder, progress: Progress) -> Training:
    """The training at its newest checkpoint, or at its start. Raises: CheckpointError: all are damaged. DiskError."""
    early_stop, keep_every = EarlyStop(job.recipe.early_stop), job.recipe.train.keep_every
    training = Training(parts.strategy, job.recipe, early_stop, job.steps_per_epoch, progress.line)
    if keep_every is not None:
        folder.checkpoints.is_kept = lambda number: number % (keep_every * training.steps) == 0
    found = from_main(lambda: folder.checkpoints.newest(progress.line))
    if found is not None:
        training.load_state_dict(found.state, found.weights.state)
        progress.line(training.where())
    elif folder.record.has_checkpoints:
        where = printable(folder.checkpoints.folder)
        raise CheckpointError(f"{where}: the checkpoints are gone; restore them, or start again under another --name")
    elif folder.record.epochs_done:
        progress.line("resuming from the start: the run was stopped before its first checkpoint")
    folder.trim_metrics(training.epoch)
    folder.update(epochs_done=training.epoch, epoch_seconds=tuple(training.epoch_seconds))
    check_space(folder, training)
    return training


def train(job: Job, parts: Parts, training: Training, folder: RunFolder, progress: Progress) -> None:
    """Train to the last epoch; log each epoch and save checkpoints."""
    teacher = parts.strategy.teacher
    validator = Validator.create(job, None if teacher is None else teacher.network)
    if validator is not None:
        training.selected_by = validator.by
    training.early_stop.teacher_epe3d = _teacher_epe3d(parts, validator, folder)
    title = f"training {folder.record.role} {job.recipe.variant.name} ({folder.record.method})"
    with (
        _logging(job, training, folder, progress, picture_of(validator, parts.strategy)),
        progress.bar(title, samples=job.recipe.train.batch_size) as bar,
        memory_advice(parts.strategy, partial(first_batch, job), job.recipe),
    ):
        batches_of = partial(epoch_batches, job, job.split.learn, shared=True)
        fit(training, batches_of, validator, Checkpointer(training, folder, job.stop), bar)
    cache = parts.strategy.teacher.cache if parts.strategy.teacher else None
    if cache is not None and cache.full:
        progress.line(f"teacher cache: stopped writing: {cache.full}")


def deploy(job: Job, parts: Parts, training: Training, folder: RunFolder) -> Path:
    """Write the best weights (without validation: the last) as the file to deploy, and record their size."""
    before = folder.record.history
    step = _step(job, parts, training, folder) if before else None
    number = training.number if training.best is None else training.best
    path = folder.deploy(number, **({KEY: plain_steps((*before, step))} if step else {}))
    if teacher := parts.strategy.teacher:
        found = None
        if cache := teacher.cache:
            found = record.TeacherCacheCounts(found=cache.found, missed=cache.missed, problem=cache.full or None)
        folder.record = folder.record.changed(teacher_forwards=teacher.forwards, teacher_cache=found)
    sha256, complexity = from_main(lambda: (sha256_of(path), _complexity(parts.student, path)))
    trained = step and step.model_copy(update={"sha256": sha256})
    folder.update(weights_sha256=sha256, complexity=complexity, trained=trained)
    return path


def _step(job: Job, parts: Parts, training: Training, folder: RunFolder) -> Step:
    """What this run adds to the history of the network that it started from."""
    known, measured = folder.record, dict[str, Any]()
    if training.best is not None and training.selected_by == "epe3d":
        held_out = f"{len(job.split.held_out)} held-out scenes"
        on = "the test split" if known.selected_on == "test" else held_out
        measured = {"epe3d_m": training.best_value, "on": f"{on}, {known.points} points"}
    what = DISTILLED if known.command == "distill" else TRAINED
    what += " for int8" if quantizers(parts.student) else ""
    return step_of(what, parts.student, PUBLISHED_POINTS, **measured)


def evaluate(job: Job, parts: Parts, weights: Path, folder: RunFolder, progress: Progress) -> EvaluationResult | None:
    """Measure the deployed weights on the test split, and the teacher where its metrics are unknown; record both.

    None: there is no test split.
    """
    if job.data.test is None:
        return None
    teacher = parts.teacher
    known = None if teacher is None else from_main(lambda: known_test_metrics(job, teacher))
    path = None if teacher is None or known else teacher.path
    measure = partial(evaluate_checkpoint, weights, job.data.test, points=job.recipe.data.points, seed=EVALUATION_SEED)
    measure = partial(measure, device=job.device, progress=progress, check=job.stop.check)
    # Read again, since a strategy may have changed the one in memory.
    result = from_main(lambda: measure(teacher=None if path is None else load_checkpoint(path)))
    folder.write_evaluation(result)
    entry, row = folder.record.teacher, known or result.row(TEACHER)
    test = None if row is None else record.TeacherTest(**row.model_dump(exclude={"name"}))
    folder.update(epe3d=result.model.epe3d, teacher=entry and entry.model_copy(update={"test": test}))
    return result


def _teacher_epe3d(parts: Parts, validator: Validator | None, folder: RunFolder) -> float | None:
    """EPE3D of the teacher on the validation scenes, measured once and recorded; None: no teacher or no scenes."""
    entry = folder.record.teacher
    if entry is None or parts.teacher is None:
        return None
    if entry.held_out_epe3d is None and validator is not None and validator.by == "epe3d":
        entry = entry.model_copy(update={"held_out_epe3d": validator.measure(parts.teacher.network)})
        folder.update(teacher=entry)
    return entry.held_out_epe3d


def _how_to_test(folder: RunFolder) -> str:
    where = shlex.quote(str(folder.path))
    return f"not tested: these data have no labels; test it with `bpfn eval --checkpoint {where} --data DATASET`"


@contextlib.contextmanager
def _timed(folder: RunFolder) -> Iterator[None]:
    """Add the duration of the block to `train_seconds`."""
    before, started = folder.record.train_seconds or 0.0, time.monotonic()
    try:
        yield
    finally:
        # In memory only, to be written with the next update: this process alone may have failed.
        folder.record = folder.record.changed(train_seconds=round(before + time.monotonic() - started, 1))


@contextlib.contextmanager
def _logging(
    job: Job, training: Training, folder: RunFolder, progress: Progress, picture: Picture | None
) -> Iterator[None]:
    """Log each epoch of the block to TensorBoard and Weights & Biases, where they are installed and wanted."""
    if is_main():
        folder.loggers = tensorboard(folder.path / "tb", training.epoch, progress.line, picture)
        if job.recipe.train.wandb is not None:
            config = {**recipe_tree(job.recipe), "method": folder.record.method, "command": job.command}
            folder.loggers += weights_and_biases(job.recipe.train.wandb, folder.path, config, progress.line)
    try:
        yield
    finally:
        for logger in folder.loggers:
            logger.close()
        folder.loggers = []


def _complexity(network: BiPointFlowNet, weights: Path) -> record.Complexity:
    counts = count_modules(network.variant, PUBLISHED_POINTS)
    return record.Complexity(
        points=PUBLISHED_POINTS,
        parameters=counts.parameters.total(),
        unused_parameters=counts.unused_parameters,
        module_macs=counts.macs.total(),
        checkpoint_bytes=weights.stat().st_size,
    )
