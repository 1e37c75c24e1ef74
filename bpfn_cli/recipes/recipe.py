# SPDX-License-Identifier: MIT
"""A recipe: everything that decides what is trained, from a file, `--set` assignments and flags."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

import bpfn_cli
from bpfn_cli import choices
from bpfn_cli.config import Tree, build, json_hash, merge, override, read_yaml, settings, to_tree
from bpfn_cli.data.augment import AugmentSettings
from bpfn_cli.data.datasets import FORMATS
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.files import expanded
from bpfn_cli.frames import axes_of
from bpfn_cli.losses import NO_DISTILLATION, ObjectiveSettings, check_loss_name
from bpfn_cli.losses.objective import used_options
from bpfn_cli.losses.registry import needs_teacher
from bpfn_cli.losses.term import NoOptions
from bpfn_cli.models.sizes import AnyVariant, find_variant, sizes_identity
from bpfn_cli.models.variants import VARIANTS
from bpfn_cli.precision import Precision
from bpfn_cli.recipes.early_stop import EarlyStopSettings
from bpfn_cli.shipped import find_weights
from bpfn_cli.strategies import STRATEGIES

SCRATCH = "scratch"
OF_SUPERVISED = ("supervised_norm", "beta", "w_gt")  # of `ObjectiveSettings`, what changes the supervised loss
CONFIDENCE_M = 0.1  # the default of `basic.confidence_m` without labels
QUANTIZING = ("plain", "self")  # strategies that train one student, by gradients of rounded layers
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
    out to choose the best checkpoint. holdout_seed: seed that chooses them; null: that of the training. meta_val: share of the training scenes held out in addition, for strategies that
    validate inside the training loop (meta; online with target general). views: number of epochs after which draws and
    augmentations repeat, which bounds the teacher cache; null: they never repeat. workers: processes that load scenes;
    null: chosen for the device. timeout: seconds after which a hanging loader process is given up.
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
    rate. lr_floor: the lowest learning rate. schedule: `step`: lr times `decay` every `step_epochs`, never below
    `lr_floor`, as published; `cosine`: from lr, after `warmup_steps`, down to `lr_floor` at the end. step_epochs:
    epochs between decays of lr in the schedule `step`. decay: factor on lr every `step_epochs`, in the schedule
    `step`. warmup_steps: steps in which lr rises in the schedule `cosine`.
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
        if self.schedule == "step":
            return max(self.lr * self.decay ** (step // steps_per_epoch // self.step_epochs), self.lr_floor)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        total = max(1, self.epochs * steps_per_epoch - self.warmup_steps)
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / total)))
        return self.lr_floor + (self.lr - self.lr_floor) * falling


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


def load_recipe(
    path: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    teacher: Path | None = None,
) -> Recipe:
    """Read a recipe file (without one: the defaults) and apply assignments (`dotted.key=value`) and flags.

    Args: base: top-level defaults that differ from those of `Recipe`. flags: dotted key -> value. teacher: weights of
        the teacher that will be used; None: that of the recipe.
    Raises: UsageError: all mistakes in one line; an unknown variant or loss.
    """
    tree = read_yaml(path) if path is not None else Tree({}, {}, "recipe")
    unset = {key: value for key, value in (base or {}).items() if key not in tree.values}
    return checked_recipe(_of_initial_weights(merge(override(merge(tree, unset), assignments), flags), teacher))


def _of_initial_weights(tree: Tree, teacher: Path | None) -> Tree:
    """Without a variant, initial weights decide what is trained; but those of the teacher are sliced."""
    initial, loss = tree.values.get("initial"), tree.values.get("loss", Recipe.loss)
    if "variant" in tree.values or not isinstance(initial, str):
        return tree
    try:
        weights = find_weights(Path(initial))
        variant = find_variant(str(weights)) if weights.is_file() else None
        given = tree.values.get("teacher", Recipe.teacher.name) if teacher is None else str(teacher)
        of_teacher = TypeAdapter(AnyVariant).validate_python(given)
    except (UsageError, CheckpointError, ValidationError):  # reported where they are read
        return tree
    names = loss if isinstance(loss, list | tuple) else ()
    distills = any(name != NO_DISTILLATION and needs_teacher(str(name)) for name in names)
    return tree if variant is None or (distills and variant == of_teacher) else merge(tree, {"variant": str(weights)})


def _for_unlabeled(tree: Tree) -> Tree:
    """Without labels, the student follows the teacher's flow (`basic`), weighted by the teacher's confidence."""
    data, objective = (tree.values.get(part, {}) for part in ("data", "objective"))
    if not isinstance(data, dict) or not isinstance(objective, dict):
        return tree
    if data.get("labels", True) and data.get("kind") != "pairs" and data.get("frame") is None:
        return tree
    tree = tree if "loss" in tree.values else merge(tree, {"loss": ["basic"]})
    loss, basic = tree.values["loss"], objective.get("basic", {})
    follows = isinstance(loss, list) and "basic" in loss
    if not follows or not isinstance(basic, dict) or "confidence_m" in basic:
        return tree
    return merge(tree, {"objective.basic.confidence_m": CONFIDENCE_M})


def checked_recipe(tree: Tree) -> Recipe:
    """Build the recipe of a parsed file. Raises: UsageError: as `load_recipe`."""
    recipe = build(Recipe, _for_unlabeled(tree))
    if NO_DISTILLATION in recipe.loss and len(recipe.loss) > 1:
        raise UsageError("--loss none means no distillation; it cannot be combined with other losses")
    for name in recipe.losses():
        check_loss_name(name)
    _check_quantize(recipe)
    unused = sorted(set(recipe.objective.own) - set(recipe.loss))
    if unused:
        raise UsageError(f"objective.own.{printable(unused[0])}: this recipe has no such --loss")
    return recipe


def _check_quantize(recipe: Recipe) -> None:
    """Raises: UsageError: the recipe combines int8 with what works only in float."""
    if recipe.train.quantize is None:
        return
    kind, prefix = recipe.strategy.kind, f"train.quantize {recipe.train.quantize}"
    if kind not in QUANTIZING:
        raise UsageError(f"{prefix}: does not work with strategy {kind}; use {' or '.join(QUANTIZING)}")
    if recipe.train.precision is not Precision.float32:
        raise UsageError(f"{prefix}: leave train.precision at 32, not {recipe.train.precision.value}")


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without the options of unused losses and strategies."""
    tree = to_tree(recipe)
    tree["objective"] = used_options(recipe.loss, recipe.objective)
    tree["strategy"] = {key: value for key, value in tree["strategy"].items() if key in ("kind", recipe.strategy.kind)}
    return tree


# Keys that do not change the numbers of a training: locations, speed, logging.
WITHOUT_EFFECT = {
    "data": ("path", "test", "kind", "workers", "timeout"),  # the data identity covers the scenes
    "train": ("gradient_every", "teacher_cache", "checkpoint_minutes", "keep_every", "wandb"),
}


# Part, key and usual value.
NEW_KEYS = (
    ("train", "optimizer", "adam"),
    ("train", "quantize", None),
    ("data", "split", "train"),
    ("data", "holdout_seed", None),
    ("data", "labels", True),
    ("data", "frame", None),
    ("data", "remove_ground", False),
)


def decisive_tree(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide the weights, as plain values: equal trees, data and initial weights give equal weights."""
    tree = recipe_tree(recipe)
    del tree["initial"]  # a place; the weights are identified by their sha256
    tree |= {"variant": sizes_identity(recipe.variant), "teacher": sizes_identity(recipe.teacher)}
    for part, keys in WITHOUT_EFFECT.items():
        tree[part] = {key: value for key, value in tree[part].items() if key not in keys}
    for part, key, usual in NEW_KEYS:
        if tree[part][key] == usual:  # runs of earlier versions do not have these keys
            del tree[part][key]
    if tree["objective"].get("basic", {}).get("confidence_m", 0) is None:
        del tree["objective"]["basic"]["confidence_m"]
    return tree


def teacher_key(recipe: Recipe, dataset_sha256: str) -> str:
    """Identifies the teacher that `recipe` would train on a dataset: equal keys, equal teachers."""
    tree = decisive_tree(recipe.for_teacher())
    decisive = {key: part for key, part in tree.items() if key in ("teacher", "seed", "data", "train")}
    # Keys that do not affect a network that is trained alone.
    for part, key in (("train", "teacher_precision"), ("data", "meta_val"), ("data", "views")):
        decisive[part].pop(key)
    return json_hash({**decisive, "dataset": dataset_sha256, "bpfn": bpfn_cli.__version__})
