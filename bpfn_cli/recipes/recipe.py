# SPDX-License-Identifier: MIT
"""A recipe: everything that decides what is trained."""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from bpfn_cli import choices
from bpfn_cli.config import settings
from bpfn_cli.data.augment import AugmentSettings
from bpfn_cli.data.datasets import FORMATS
from bpfn_cli.errors import UsageError
from bpfn_cli.files import expanded
from bpfn_cli.frames import axes_of
from bpfn_cli.losses import NO_DISTILLATION, ObjectiveSettings
from bpfn_cli.losses.registry import needs_teacher
from bpfn_cli.losses.term import NoOptions
from bpfn_cli.models.sizes import AnyVariant
from bpfn_cli.models.variants import VARIANTS
from bpfn_cli.precision import Precision
from bpfn_cli.recipes.early_stop import EarlyStopSettings
from bpfn_cli.strategies import STRATEGIES

SCRATCH = "scratch"
OF_SUPERVISED = ("supervised_norm", "beta", "w_gt")  # of `ObjectiveSettings`, what changes the supervised loss
CONTROL_NAMES = {"random": "random-teacher", "shuffled": "shuffled-teacher", "random_adapter": "random-adapter"}


def _precision(value: Any) -> Any:
    """Accept 32 and 16, which are numbers in YAML."""
    try:
        return Precision(value)
    except ValueError:
        return value


AnyPrecision = Annotated[Precision, BeforeValidator(_precision)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _expanded(text: str) -> str:
    try:
        return str(expanded(text))
    except UsageError as error:  # reported with the other mistakes of the recipe
        raise ValueError(str(error)) from None


PathText = Annotated[str, Field(min_length=1), AfterValidator(_expanded)]


def _known_format(kind: str) -> str:
    known = ["auto", *(name for name, format in FORMATS.items() if "train" in format.splits)]
    if kind not in known:
        raise ValueError(f"unknown dataset format; use one of {', '.join(known)}")
    return kind


def _known_frame(frame: str) -> str:
    try:
        axes_of(frame)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return frame


@settings
class DataSettings:
    """The training scenes and how they are sampled.

    path: dataset folder, if `--data` is not given; null: the dataset in the data folder. test: dataset whose test split
    the network is tested on; null: that of the training data. kind: required format of the dataset (`bpfn data check`
    names it); auto: any. split: split to train on; `test`: the scenes that the network is tested on, so that its
    results are training errors, as in the first compression reports. labels: use the true flow; false: train as if the
    scenes had none. frame: axes of your own clouds (kind `pairs`, which it implies), as `bpfn predict --frame` takes
    them, or where x, y and z point, such as right,forward,up; null: as their ending tells. remove_ground: leave out the
    ground plane of your own clouds. points: points drawn from each cloud. holdout: share of the training scenes held
    out to choose the best checkpoint. holdout_seed: seed that chooses them; null: that of the training. meta_val: share
    of the training scenes held out in addition, for strategies that validate inside the training loop (meta; online
    with target general). views: number of epochs after which draws and augmentations repeat, which bounds the teacher
    cache; null: they never repeat. workers: processes that load scenes; null: chosen for the device. timeout: seconds
    after which a hanging loader process is given up.
    """

    path: PathText | None = None
    test: PathText | None = None
    kind: Annotated[str, AfterValidator(_known_format)] = "auto"
    split: Literal["train", "test"] = "train"
    labels: bool = True
    frame: Annotated[str, AfterValidator(_known_frame)] | None = None
    remove_ground: bool = False
    points: Annotated[int, Field(ge=1024, le=10**6)] = 1024
    holdout: Share = 0.05
    holdout_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    meta_val: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    views: Count | None = None
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    timeout: Annotated[float, Field(gt=0, le=1e6)] = 600.0
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    @property
    def is_unlabeled(self) -> bool:
        """Whether the training scenes have no labels, as far as the recipe tells."""
        return not self.labels or self.kind == "pairs" or self.frame is not None

    @property
    def cloud_points(self) -> int:
        """Points of the densest clouds that samples are taken from: those that the network may see at once."""
        return int(self.points * self.augment.crop)


@settings
class TrainSettings:
    """How a network is optimized.

    epochs: passes over the training scenes. batch_size: scenes of a step, over all processes. lr: the highest learning
    rate. lr_floor: the lowest learning rate, if lr is not lower. schedule: `step`: lr times `decay` every
    `step_epochs`, never below `lr_floor`, as published; `cosine`: from lr, after `warmup_steps`, down to `lr_floor` at
    the end. step_epochs: epochs between decays of lr in the schedule `step`. decay: factor on lr every `step_epochs`,
    in the schedule `step`. warmup_steps: steps in which lr rises in the schedule `cosine`.
    optimizer: `adam`, as published, or `muon`, which orthogonalizes the steps of weight matrices; docs/training.md
    compares them. weight_decay: L2 penalty of Adam.
    clip_norm: largest norm of the gradient; null: no clipping. accumulate: number of parts a batch is computed in, to
    save memory; the gradient is that of the whole batch, but batch norm sees one part at a time.
    validate_every: epochs between validations. validation_calendar: `every`: every `validate_every`-th epoch and
    the last; `fast`: every epoch of the first 1/28 and of the last quarter, every fifth in between, as in report 6.
    select_on: scenes that choose the best checkpoint: held-out training scenes (data.holdout) or, as in the published
    training, the test split.
    gradient_every: epochs between measurements of each term's share of the gradient; 0: never.
    teacher_cache: folder for the teacher's outputs, shared by all losses with this seed; null: no cache.
    checkpoint_minutes: minutes between checkpoints; 0: one after every step. keep_every: epochs between checkpoints
    that are kept; null: only the best and the newest two. most_skipped: steps of an epoch that may be skipped because
    their loss or gradient is not finite. wandb: Weights & Biases project to log to; null: none.
    precision, teacher_precision: precision of the large matrix products: 32, bf16, or 16 with a scaled loss; weights,
    losses and evaluation stay float32.
    quantize: `int8`: the student computes what int8 inference will, with rounded weights and activations; null: no
    quantization.
    """

    epochs: Count = 12
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    lr_floor: Annotated[float, Field(ge=0, le=1)] = 1e-5
    schedule: Literal["step", "cosine"] = "cosine"
    step_epochs: Count = 80
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    warmup_steps: Annotated[int, Field(ge=0, le=10**6)] = 10
    optimizer: choices.Optimizer = "adam"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    validation_calendar: choices.ValidationCalendar = "every"
    validate_every: Count = 4
    gradient_every: Annotated[int, Field(ge=0, le=10**6)] = 1
    teacher_cache: PathText | None = None
    checkpoint_minutes: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    keep_every: Count | None = None
    most_skipped: Annotated[int, Field(ge=0, le=10**9)] = 10
    select_on: choices.Selection = "held_out"
    wandb: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    precision: AnyPrecision = Precision.float32
    teacher_precision: AnyPrecision = Precision.float32
    quantize: choices.Quantize | None = None

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole training."""
        floor = min(self.lr_floor, self.lr)
        if self.schedule == "step":
            return max(self.lr * self.decay ** (step // steps_per_epoch // self.step_epochs), floor)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        total = max(1, self.epochs * steps_per_epoch - self.warmup_steps)
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / total)))
        return floor + (self.lr - floor) * falling


if TYPE_CHECKING:

    class StrategySettings:
        """kind: a name of `STRATEGIES`; and the options of each under its name."""

        kind: str
else:
    _OPTIONS = {name: kind.settings for name, kind in STRATEGIES.items() if kind.settings is not NoOptions}
    _body = {"__annotations__": {"kind": choices.Strategy, **_OPTIONS}, "__module__": __name__}
    _body["__doc__"] = "What is trained besides the student.\n\nkind: a strategy; `bpfn losses` lists them."
    _body |= {"kind": "plain", **{name: field(default_factory=kind) for name, kind in _OPTIONS.items()}}
    StrategySettings = settings(type("StrategySettings", (), _body))


@settings
class Recipe:
    """Everything that decides what is trained.

    loss: losses to sum, as `bpfn losses` lists them; [none]: the ground truth alone. Without labels, the default is
    [basic]. seed: seed of initialization, order of scenes and random draws.
    variant: the student (also for `bpfn train`): a name, a checkpoint with its sizes, a YAML file of sizes, or the
    sizes (docs/extending.md). initial: weights that the student starts from, copied, or sliced from a larger network;
    null: random weights. teacher: the variant, given like the student's, of the teacher that is trained if there is
    none.
    control: makes the teacher useless, for comparison: `random`, untrained weights; `shuffled`, outputs assigned to
    other points; `random_adapter`, features passed through a random linear map.
    """

    variant: AnyVariant = VARIANTS["weightnet48"]
    initial: PathText | None = None
    teacher: AnyVariant = VARIANTS["baseline"]
    loss: Annotated[tuple[str, ...], Field(min_length=1)] = ("bihint",)
    strategy: StrategySettings = field(default_factory=StrategySettings)
    early_stop: EarlyStopSettings = field(default_factory=EarlyStopSettings)
    control: Literal["none", "random", "shuffled", "random_adapter"] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)

    def losses(self) -> list[str]:
        """Names of the losses beside the supervised one."""
        return [name for name in self.loss if name != NO_DISTILLATION]

    def distillation_losses(self) -> list[str]:
        """Names of the losses that need a teacher; empty for training without one."""
        return [name for name in self.losses() if needs_teacher(name)]

    def method(self) -> str:
        """Short name of the training method: `scratch`, `fine-tuned`, `bihint`, `basic+online`, ..."""
        losses, stop, control = self.losses(), self.early_stop.kind, self.control
        parts = [*(["fine-tuned"] if self.initial else []), *losses]
        parts += [self.strategy.kind] if self.strategy.kind != "plain" else []
        parts += [self.train.quantize] if self.train.quantize else []
        parts += ["unlabeled"] if self.data.is_unlabeled else []
        parts += [f"early-stop-{stop}"] if losses and stop != "never" else []
        parts += [CONTROL_NAMES[control]] if losses and control != "none" else []
        return "+".join(parts) or SCRATCH

    def trains_as_teacher(self) -> bool:
        """Whether it trains its variant as `for_teacher` would, so that the network serves as a teacher."""
        objective, usual = self.objective, ObjectiveSettings()
        changes = [key for key in OF_SUPERVISED if getattr(objective, key) != getattr(usual, key)]
        return self.method() == SCRATCH and self.data.views is None and not changes

    def for_teacher(self) -> Recipe:
        """The recipe that trains the teacher: its variant, with the supervised loss alone."""
        data, train = replace(self.data, views=None), replace(self.train, teacher_cache=None, quantize=None)
        return Recipe(
            variant=self.teacher, teacher=self.teacher, loss=("none",), seed=self.seed, data=data, train=train
        )
