# SPDX-License-Identifier: MIT
"""A recipe: everything that decides what is trained. Its defaults are the embedded one for synthetic scenes."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

import bpfn_cli
from bpfn_cli.config import settings, to_tree
from bpfn_cli.data.loader import AugmentSettings
from bpfn_cli.losses import NO_DISTILLATION, ObjectiveSettings
from bpfn_cli.losses.objective import used_options
from bpfn_cli.losses.term import NoOptions
from bpfn_cli.precision import Precision
from bpfn_cli.recipes.early_stop import EarlyStopSettings
from bpfn_cli.strategies import STRATEGIES

SCRATCH = "scratch"


def _precision(value: Any) -> Any:
    """32 and 16 are numbers in YAML."""
    try:
        return Precision(value)
    except ValueError:
        return value


AnyPrecision = Annotated[Precision, BeforeValidator(_precision)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, lt=1)]


@settings
class DataSettings:
    """Which scenes, and how they are drawn from.

    path: of the dataset, where `--data` does not say; null: what lies in the data folder. kind: what it must be
    (`bpfn data check` tells); auto: any. points: drawn from each cloud. holdout: share of the training scenes that
    chooses the best checkpoint instead. meta_val: share that is also held out if a strategy (meta, online with
    target general) needs it. views: after so many epochs each scene is drawn and augmented as before, so that a teacher
    cache has an end; null: never the same. workers: processes that load scenes; null: as many as keep the device busy.
    timeout: seconds after which one that hangs is given up.
    """

    path: str | None = None
    kind: Literal["auto", "flyingthings3d", "synthetic", "flyingthings3d_occluded", "kitti"] = "auto"
    points: Annotated[int, Field(ge=1024, le=10**6)] = 1024
    holdout: Share = 0.05
    meta_val: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    views: Count | None = None
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    timeout: Annotated[float, Field(gt=0, le=1e6)] = 600.0
    augment: AugmentSettings = field(default_factory=AugmentSettings)


@settings
class TrainSettings:
    """How one network is optimized.

    schedule `step`: lr times `decay` every `step_epochs`, never below `lr_floor`, as published. `cosine`: from lr
    after `warmup_steps` to `lr_floor` at the end.
    clip_norm: largest norm of the gradient; null: not clipped. accumulate: parts that a batch is computed in, one after
    another, to save memory; the gradient is that of the whole batch, but batch norm sees a part at a time.
    validation_calendar `every`: each `validate_every`-th epoch and the last; `fast`: each of the first 1/28 and of the
    last quarter, every fifth between, as in report 6. select_on: what chooses the best checkpoint: the scenes held out
    of the training ones (data.holdout), or, as the published training does, the test split.
    gradient_every: epochs between measurements of each term's share of the gradient, at the first step; 0: never.
    teacher_cache: folder for the teacher's outputs, found again by other losses with this seed; null: none.
    checkpoint_minutes: between checkpoints; 0: after every step. keep_every: epochs between checkpoints that are kept
    for good; null: none but the best and the newest two. most_skipped: steps of an epoch that may be left out because
    their loss or gradient is not finite. wandb: project of Weights & Biases that follows; null: none.
    precision, teacher_precision: of the large matrix products: 32; bf16, or 16 with a scaled loss, where the device is
    fast at it; weights, losses and evaluation stay float32.
    """

    epochs: Count = 12
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    lr_floor: Annotated[float, Field(ge=0, le=1)] = 1e-5
    schedule: Literal["step", "cosine"] = "cosine"
    step_epochs: Count = 80
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    warmup_steps: Annotated[int, Field(ge=0, le=10**6)] = 10
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    validation_calendar: Literal["every", "fast"] = "every"
    validate_every: Count = 4
    gradient_every: Annotated[int, Field(ge=0, le=10**6)] = 1
    teacher_cache: str | None = None
    checkpoint_minutes: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    keep_every: Count | None = None
    most_skipped: Annotated[int, Field(ge=0, le=10**9)] = 10
    select_on: Literal["held_out", "test"] = "held_out"
    wandb: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    precision: AnyPrecision = Precision.float32
    teacher_precision: AnyPrecision = Precision.float32


if TYPE_CHECKING:

    class StrategySettings:
        """kind: a name of `STRATEGIES`; and the options of each under its name."""

        kind: str
else:
    _OPTIONS = {name: kind.settings for name, kind in STRATEGIES.items() if kind.settings is not NoOptions}
    _body = {"__annotations__": {"kind": Literal[tuple(STRATEGIES)], **_OPTIONS}, "__module__": __name__}
    _body |= {"kind": "plain", **{name: field(default_factory=kind) for name, kind in _OPTIONS.items()}}
    StrategySettings = settings(type("StrategySettings", (), _body))


@settings
class Recipe:
    """variant: the student (of `train` too). teacher: what is trained as teacher where no file is given.

    control: what is done to the teacher so that it cannot help: `random`, weights that were never trained; `shuffled`,
    its outputs dealt to other points.
    """

    variant: str = "weightnet48"
    teacher: str = "baseline"
    loss: Annotated[tuple[str, ...], Field(min_length=1)] = ("bihint",)
    strategy: StrategySettings = field(default_factory=StrategySettings)
    early_stop: EarlyStopSettings = field(default_factory=EarlyStopSettings)
    control: Literal["none", "random", "shuffled"] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)

    def distillation_losses(self) -> list[str]:
        """Names of the losses that need a teacher; empty for training alone."""
        return [name for name in self.loss if name != NO_DISTILLATION]

    def method(self) -> str:
        """What sets this training apart from others, in a word: `scratch`, `bihint`, `basic+online`, ..."""
        parts = self.distillation_losses()
        parts += [self.strategy.kind] if self.strategy.kind != "plain" else []
        has_teacher = bool(self.distillation_losses())
        parts += [f"early-stop-{self.early_stop.kind}"] if has_teacher and self.early_stop.kind != "never" else []
        parts += [f"{self.control}-teacher"] if has_teacher and self.control != "none" else []
        return "+".join(parts) or SCRATCH

    def for_teacher(self) -> Recipe:
        """The same recipe for the teacher: its variant, by the supervised loss alone."""
        return Recipe(
            variant=self.teacher,
            teacher=self.teacher,
            loss=("none",),
            seed=self.seed,
            data=replace(self.data, views=None),
            train=replace(self.train, teacher_cache=None),
        )


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without the options of losses and strategies that it does not use."""
    tree = to_tree(recipe)
    tree["objective"] = used_options(recipe.loss, recipe.objective)
    tree["strategy"] = {key: value for key, value in tree["strategy"].items() if key in ("kind", recipe.strategy.kind)}
    return tree


def learning_rate(options: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole training."""
    if options.schedule == "step":
        decayed = options.lr * options.decay ** (step // steps_per_epoch // options.step_epochs)
        return max(decayed, options.lr_floor)
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    total = max(1, options.epochs * steps_per_epoch - options.warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - options.warmup_steps) / total)))
    return options.lr_floor + (options.lr - options.lr_floor) * falling


# Keys that change no number of a training: where things lie, how fast it goes, what is written beside.
WITHOUT_EFFECT = {
    "data": ("path", "kind", "workers", "timeout"),  # the identity of the data tells the scenes, wherever they lie
    "train": ("gradient_every", "teacher_cache", "checkpoint_minutes", "keep_every", "wandb"),
}


def decisive_tree(recipe: Recipe) -> dict[str, Any]:
    """What a training by this recipe depends on, as plain values: equal trees and data, equal weights."""
    tree = recipe_tree(recipe)
    for part, keys in WITHOUT_EFFECT.items():
        tree[part] = {key: value for key, value in tree[part].items() if key not in keys}
    return tree


def teacher_key(recipe: Recipe, data: dict[str, Any]) -> str:
    """Identifies the teacher that `recipe` would train on `data`: equal keys, equal teachers."""
    tree = decisive_tree(recipe)
    decisive = {key: tree[key] for key in ("teacher", "seed", "data", "train")}
    decisive["train"].pop("teacher_precision")  # of the teacher as a teacher
    for key in ("meta_val", "views"):  # they have no effect on a network that is trained alone
        decisive["data"].pop(key)
    decisive |= {"dataset": data["sha256"], "bpfn": bpfn_cli.__version__}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
