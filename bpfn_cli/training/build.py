# SPDX-License-Identifier: MIT
"""Build what a job trains: student, teacher, losses and strategy."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from bpfn_cli import distributed
from bpfn_cli.config import to_tree
from bpfn_cli.cores import usable_cores
from bpfn_cli.distributed import from_main
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.losses import LOSSES, Objective, build_losses, is_own_loss
from bpfn_cli.losses.features import FIELDS
from bpfn_cli.losses.objective import option_key
from bpfn_cli.models import BiPointFlowNet, build_model, initialize_from, load_checkpoint
from bpfn_cli.models.batch_norms import neutralize_new_norms
from bpfn_cli.models.fake_quantization import add_quantizers
from bpfn_cli.models.reference import ReferenceNetwork
from bpfn_cli.progress import Progress
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.recipes.schedule import validation_epochs
from bpfn_cli.shipped import weights_title
from bpfn_cli.strategies import STRATEGIES, Strategy, Teacher, TeacherCache
from bpfn_cli.strategies.teacher import CONTROLS
from bpfn_cli.strategies.teacher_cache import TOLERANCE, cache_key
from bpfn_cli.training.job import Job
from bpfn_cli.training.loop.batches import epoch_batches
from bpfn_cli.training.teacher import TeacherNetwork, teacher_checkpoint

MEASURED_BATCHES = 16  # at most, to measure the inputs of new batch norms


@dataclass
class Parts:
    """What a job trains, on its device. awaits_teacher: the teacher is an untrained stand-in, to be trained first."""

    student: BiPointFlowNet
    strategy: Strategy
    teacher: TeacherNetwork | None = None
    awaits_teacher: bool = False

    def replace_teacher(self, job: Job, trained: TeacherNetwork) -> None:
        """Load the weights of the trained teacher into its stand-in."""
        assert self.strategy.teacher is not None
        network = self.strategy.teacher.network
        network.load_state_dict(trained.network.state_dict())
        self.strategy.teacher.forget()
        self.strategy.teacher.cache = _teacher_cache(job, trained.sha256, self.strategy.objective)
        self.teacher = TeacherNetwork(network, trained.sha256, trained.path, trained.run)
        self.awaits_teacher = False


def build(job: Job, progress: Progress, *, use_initial: bool = True, reads_scenes: bool = True) -> Parts:
    """Build everything a job trains.

    Args: use_initial: start from its initial weights; not where a checkpoint is restored. reads_scenes: a few, to start
        new batch norms as the identity; not needed for a check.
    Raises: UsageError, CheckpointError, ShapeError: the parts do not fit together.
    """
    _check_code(job)
    teacher, awaits_teacher = None, False
    if job.recipe.distillation_losses():
        is_random = job.recipe.control == "random"
        found = None if is_random else teacher_checkpoint(job)
        teacher = TeacherNetwork.read(found, job.runs) if found else TeacherNetwork.untrained(job.recipe)
        awaits_teacher = found is None and not is_random
        if awaits_teacher and not job.data.train.has_flow:
            problem = f"no teacher {job.recipe.teacher.name} is given, and none can be trained without labels"
            raise UsageError(f"{problem}; give --teacher, such as --teacher baseline")
    torch.manual_seed(job.recipe.seed)  # after the teacher: reading a network draws random numbers
    student = build_model(job.recipe.variant, job.recipe.data.cloud_points)
    if job.initial is not None and use_initial:
        done = initialize_from(student, load_checkpoint(job.initial))
        counts = f"{len(done.copied)} tensors copied, {len(done.sliced)} sliced, {len(done.new)} new"
        progress.line(f"initial weights: {printable(weights_title(job.initial))} ({counts})")
        if reads_scenes:
            _neutralize_new_norms(job, student, progress)
    if job.recipe.train.quantize is not None:
        if distributed.size() > 1:
            raise UsageError("train.quantize int8: ranges belong to one process; leave out --devices and --nodes")
        if isinstance(student, ReferenceNetwork):
            raise UsageError("train.quantize int8: the plain network rounds nothing; leave out BPFN_PLAIN=1")
        add_quantizers(student)
    if teacher is not None:
        teacher.check_fits(student)
        own, other = (sum(each.numel() for each in one.parameters()) for one in (student, teacher.network))
        if own > other:
            progress.line(f"note: the student ({own:,} parameters) is larger than its teacher ({other:,})")
    return Parts(student, _build_strategy(job, student, teacher), teacher, awaits_teacher)


def _neutralize_new_norms(job: Job, student: BiPointFlowNet, progress: Progress) -> None:
    """Let batch norms that the initial weights do not have change nothing at first.

    Every process reads the same batches, since a batch norm in training mode waits for those of the others.
    """
    with contextlib.closing(epoch_batches(job, job.split.learn, 0, in_process=True)) as batches:
        names = neutralize_new_norms(student.to(job.device), islice(batches, MEASURED_BATCHES))
    own = {key: value.cpu() for key, value in student.state_dict().items() if key.rpartition(".")[0] in names}
    state = from_main(lambda: own)
    student.load_state_dict(state, strict=False)
    if state:
        progress.line("batch norms: new; each starts as the identity")


def build_objective(job: Job) -> Objective:
    """The objective of a job, for a teacher of the recipe's variant."""
    recipe, has_truth = job.recipe, job.data.train.has_flow
    teacher = recipe.teacher if recipe.distillation_losses() else None
    return build_losses(recipe.loss, recipe.variant, teacher, recipe.objective, has_truth)


def _build_strategy(job: Job, student: BiPointFlowNet, teacher: TeacherNetwork | None) -> Strategy:
    recipe, options, device = job.recipe, job.recipe.train, job.device
    network = None if teacher is None else teacher.network.to(device)
    other, has_truth = network.variant if network else None, job.data.train.has_flow
    objective = build_losses(recipe.loss, student.variant, other, recipe.objective, has_truth)
    whole = [name for name, term in objective.items() if term.needs_whole_batches]
    if whole and (options.accumulate > 1 or distributed.size() > 1):
        problem = f"loss {whole[0]} with granularity batch needs whole batches"
        raise UsageError(f"{problem}: leave train.accumulate at 1, and use one process")
    meta_val = partial(epoch_batches, job, job.split.meta_val, in_process=True)
    return STRATEGIES[recipe.strategy.kind](
        student.to(device),
        None if teacher is None else _build_teacher(job, teacher, objective),
        objective.to(device),
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        accumulate=options.accumulate,
        precision=options.precision,
        optimizer=options.optimizer,
        options=getattr(recipe.strategy, recipe.strategy.kind, None),
        meta_val=meta_val if job.split.meta_val else None,
        largest=network.variant if network else recipe.teacher,
        seed=recipe.seed,
    )


def _build_teacher(job: Job, teacher: TeacherNetwork, objective: Objective) -> Teacher:
    cache = _teacher_cache(job, teacher.sha256, objective)
    return Teacher(teacher.network, job.recipe.train.teacher_precision, CONTROLS.get(job.recipe.control), cache)


def _teacher_cache(job: Job, teacher_sha256: str, objective: Objective) -> TeacherCache | None:
    """The cache of a teacher's outputs, where the recipe asks for one. Raises: UsageError: its folder is a file."""
    data, options, reads = job.recipe.data, job.recipe.train, objective.reads()
    if options.teacher_cache is None:
        return None
    folder, precision = Path(options.teacher_cache), options.teacher_precision
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"train.teacher_cache {printable(folder)}: is a file; name a folder")
    drawn = {"dataset": job.data.identity.sha256, "points": data.points, "augment": to_tree(data.augment)}
    if data.split != "train":  # scenes of different splits may have the same names
        drawn["split"] = data.split
    if not job.data.train.has_flow:  # crops of the second cloud differ
        drawn["labels"] = False
    key = cache_key(teacher_sha256, {**drawn, "precision": precision.value}, reads)
    return TeacherCache(folder / key, reads, TOLERANCE[precision])


def check_job(job: Job) -> None:
    """Raises: UsageError: an unknown loss or option, or code that is not allowed; hints or truth never get a weight."""
    _check_code(job)
    _check_labels(job)
    build_objective(job).check_length(job.steps, job.recipe.train.epochs)


def _check_labels(job: Job) -> None:
    """Raises: UsageError: the recipe needs labels that the data do not have."""
    recipe = job.recipe
    if job.data.test is None and recipe.train.select_on == "test":
        raise UsageError("train.select_on test: these data have no labels; name a labeled dataset in data.test")
    if job.data.train.has_flow:
        return
    stop, kind = recipe.early_stop.kind, recipe.strategy.kind
    if STRATEGIES[kind].needs_truth:
        raise UsageError(f"strategy.kind {kind}: needs labels, which the training scenes do not have; use plain")
    if stop != "never":
        problem = "without labels, nothing would be left to learn once the teacher stops"
        raise UsageError(f"early_stop.kind {stop}: {problem}; use never")


def _check_code(job: Job) -> None:
    """Raises: UsageError: the recipe names code that the user has not allowed to run."""
    own = [name for name in job.recipe.loss if is_own_loss(name)]
    if own and not job.allow_code:
        problem = "the recipe names code, which could do anything when it is imported"
        raise UsageError(f"loss {printable(own[0])}: {problem}; allow it with --allow-code, or name it with --loss")


def job_notes(job: Job) -> Iterator[str]:
    """Lines about keys of the recipe that have no effect, or not the expected one."""
    recipe, why = job.recipe, "since no --loss needs a teacher"
    yield from job.notes
    if (recipe.data.workers or 0) > usable_cores():
        yield f"data.workers {recipe.data.workers}: more than the {usable_cores()} cores that this process may use"
    yield from _unused_options(recipe)
    if recipe.train.quantize is not None:
        yield "train.quantize int8: the test has float32 activations; `bpfn export --precision int8` measures int8"
    if recipe.data.split == "test" and job.data.test_path is None:
        yield "data.split test: trains on the scenes that it is tested on; its results will be training errors"
    if not job.data.train.has_flow:
        yield from _notes_without_labels(job)
    if recipe.distillation_losses():
        if recipe.control == "random_adapter" and not build_objective(job).reads().intersection(FIELDS.values()):
            yield "control random_adapter: no effect, since no --loss reads the teacher's features"
        yield from _early_stop_notes(job)
        return
    if job.teacher is not None:
        yield f"teacher: {printable(job.teacher)}: not used, {why}"
    if recipe.early_stop.kind != "never":
        yield f"early_stop.kind {recipe.early_stop.kind}: no effect, {why}"
    if recipe.control != "none":
        yield f"control {recipe.control}: no effect, {why}"


def _notes_without_labels(job: Job) -> Iterator[str]:
    yield "labels: none; the student learns without the supervised loss"
    if job.recipe.train.select_on == "held_out":
        by_teacher, by_cloud = "is nearest to the teacher's", "brings the first cloud nearest to the second"
        by = f"whose flow {by_teacher if job.recipe.distillation_losses() else by_cloud}"
        scenes = len(job.split.held_out)
        told = f"the best epoch is the one {by} on {scenes} held-out scenes, not the one with the lowest EPE3D"
        yield f"validation: {told}" if scenes else "validation: none; the last weights are used"


def _unused_options(recipe: Recipe) -> Iterator[str]:
    for name, kind in LOSSES.items():
        key = option_key(name)
        if name not in recipe.loss and getattr(recipe.objective, key) != kind.settings():
            yield f"objective.{key}: no effect, since --loss {name} is not used"
    for name, strategy in STRATEGIES.items():
        own = getattr(recipe.strategy, name, None)
        if own is not None and name != recipe.strategy.kind and own != strategy.settings():
            yield f"strategy.{name}: no effect, since the strategy is {recipe.strategy.kind}"


def _early_stop_notes(job: Job) -> Iterator[str]:
    options, stop, objective = job.recipe.train, job.recipe.early_stop, job.recipe.objective
    if stop.kind == "auto":
        before_end = validation_epochs(options.epochs, options.validation_calendar, options.validate_every) - 1
        if not job.split.held_out and options.select_on == "held_out":
            yield "early stop: auto has no effect without held-out scenes; raise data.holdout"
        elif before_end < stop.checks:
            need = f"{before_end} validations before the last epoch, and {stop.checks} good ones are needed"
            advice = "lower train.validate_every or early_stop.checks"
            yield f"early stop: auto has no effect here: there are {need}; {advice}"
    elif stop.kind != "never":
        taught = sum(EarlyStop(stop).share(epoch, options.epochs) > 0 for epoch in range(options.epochs))
        steps, first = taught * job.steps_per_epoch, objective.calibration_step
        if steps <= first and not build_objective(job).calibrated:
            when = f"after {steps} steps, before hints get their weight at step {first}"
            yield f"early stop: the teacher stops {when}, so they have no effect; lower objective.calibration_step"
