# SPDX-License-Identifier: MIT
"""What a student minimizes: the supervised loss and any number of distillation terms, with their weights."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bpfn_cli import distributed
from bpfn_cli.config import Tree, build, settings, to_tree
from bpfn_cli.errors import BpfnError, ShapeError, UsageError, means_out_of_memory
from bpfn_cli.losses.registry import LOSSES, NO_DISTILLATION, loss_named
from bpfn_cli.losses.supervised import measured_to_truth
from bpfn_cli.losses.term import DistillationLoss, Measured, TeacherPasses, detached
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

SUPERVISED = "supervised"

Weight = Annotated[float, Field(ge=0, le=1e6)]


@settings
class WeightSettings:
    """How terms are weighted.

    gamma: share of the teacher. Output terms give (1 - gamma) L_gt + gamma L_kd (several share gamma equally), hint
        terms L_gt + gamma kappa L_hint.
    rho: kappa is set once so that |grad gamma kappa L_hint| = rho |grad w_gt L_gt|, then kept; several hint terms
        share rho equally.
    calibration_step: the step at which kappa is set; until then hint terms have no weight.
    stage1_epochs: epochs at the beginning that are trained by hint terms alone; 0: all terms from the start.
    w_gt, w_kd, w_hint: the weights themselves, where those from gamma are not wanted (w_hint is then not scaled).
    own: options of losses of one's own, by their module:attribute.
    """

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.3
    rho: Annotated[float, Field(gt=0, le=10)] = 0.3
    calibration_step: Annotated[int, Field(ge=0, le=10**6)] = 20
    stage1_epochs: Annotated[int, Field(ge=0, le=10**6)] = 0
    w_gt: Weight | None = None
    w_kd: Weight | None = None
    w_hint: Weight | None = None
    own: dict[str, dict[str, Any]] = field(default_factory=dict)


def option_key(name: str) -> str:
    """The key in `ObjectiveSettings` of a loss's options: `gan_compression` for gan-compression."""
    return name.replace("-", "_")


if TYPE_CHECKING:

    class ObjectiveSettings(WeightSettings):
        """`WeightSettings`, and the options of every loss of `LOSSES` under its name."""
else:
    _SETTINGS = {option_key(name): kind.settings for name, kind in LOSSES.items()}
    _body = {"__annotations__": _SETTINGS, "__module__": __name__, "__doc__": "Weights, and the options of every loss."}
    _body |= {key: field(default_factory=kind) for key, kind in _SETTINGS.items()}
    ObjectiveSettings = settings(type("ObjectiveSettings", (WeightSettings,), _body))


class Objective(nn.Module):
    """Called with (student output, teacher output, batch), returns {term name: weighted scalar}; the loss is their sum.

    No gradient reaches the teacher's output.

    Attributes:
        terms: distillation terms; `names` are theirs, in the same order. Empty for training without a teacher.
        kappas: scale of each hint term, in the order of `hints`; a buffer, 1 until set.
        calibrated: whether the kappas are set; a buffer.
        teacher_share: factor on gamma, by which a schedule takes the teacher away; at 0 no teacher is needed.
    """

    kappas: Tensor
    calibration: Tensor

    def __init__(self, names: Iterable[str], options: ObjectiveSettings, student: Variant, teacher: Variant | None):
        super().__init__()
        self.options = options
        self.names = list(names)
        self.terms = nn.ModuleList()
        for name in self.names:
            if teacher is None:
                raise UsageError(f"--loss {name} needs a teacher")
            kind, own = loss_named(name), _options_of(name, options)
            with _blaming(name):
                self.terms.append(kind(own, student, teacher))
        scaled = options.w_hint is None
        self.hints = [name for name, term in self.items() if term.kind == "hint"]
        self.teacher_share = 1.0
        self.hints_alone = False
        if scaled and self.hints and self.weight(SUPERVISED) == 0:
            cause = "gamma 1" if options.w_gt is None else "w_gt 0"
            raise UsageError(f"objective.{cause} leaves nothing to scale hints by; give objective.w_hint too")
        if options.stage1_epochs and self.names and not self.hints:
            raise UsageError("objective.stage1_epochs: none of the losses is a hint; leave it at 0")
        self.register_buffer("kappas", torch.ones(len(self.hints)))
        self.register_buffer("calibration", torch.tensor(not (self.hints and scaled and options.gamma > 0)))

    @property
    def calibrated(self) -> bool:
        return bool(self.calibration)

    @calibrated.setter
    def calibrated(self, value: bool) -> None:
        self.calibration.fill_(value)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's output is looked at."""
        return bool(self.names) and self.teacher_share > 0

    def items(self) -> Iterator[tuple[str, DistillationLoss]]:
        """The distillation terms by name."""
        return zip(self.names, self.terms, strict=True)  # type: ignore[arg-type]

    def reads(self) -> frozenset[str]:
        """The fields of the teacher's output that the terms look at."""
        return frozenset().union(*(term.reads() for _, term in self.items()))

    def adapters(self) -> list[nn.Parameter]:
        """What is trained together with the student."""
        return [parameter for _, term in self.items() for parameter in term.adapters()]

    def prepare(self, passes: TeacherPasses, only: str | None = None) -> None:
        """Let the terms (or the one named) learn what they must know of the teacher before the first step."""
        for name, term in self.items():
            if term.needs_preparation() and only in (None, name):
                with _blaming(name):
                    term.prepare(passes)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Tell the terms where the training stands; `epoch` counts from 0."""
        self.hints_alone = bool(self.hints) and epoch < self.options.stage1_epochs
        for name, term in self.items():
            with _blaming(name):
                term.begin_epoch(epoch, epochs)

    def before_step(self, student: FlowPyramid, teacher: FlowPyramid | None, batch: FlowBatch) -> None:
        """Let terms train what has an optimizer of its own."""
        if self.needs_teacher and teacher is not None:
            student, teacher = detached(student), detached(teacher)
            for name, term in self.items():
                with _blaming(name):
                    term.before_step(student, teacher, batch)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid | None, batch: FlowBatch) -> dict[str, Tensor]:
        return self.weigh(self.measure(student, teacher, batch))

    def measure(
        self,
        student: FlowPyramid,
        teacher: FlowPyramid | None,
        batch: FlowBatch,
        *,
        through_teacher: bool = False,
        check: Callable[[str, Tensor], None] | None = None,
    ) -> dict[str, Measured]:
        """The terms before weighting; without the teacher's where its share is 0.

        Args: through_teacher: let gradients reach the teacher's output. check: called with the name and value of each
            term before the next is measured.
        Raises: ShapeError: a term is not a scalar, or a hint is missing.
        """
        found = {SUPERVISED: measured_to_truth(student, batch)}
        if check is not None:
            check(SUPERVISED, found[SUPERVISED].value)
        if not self.needs_teacher:
            return found
        if teacher is None:
            raise UsageError(f"--loss {', '.join(self.names)} needs a teacher's output")
        guide = teacher if through_teacher else detached(teacher)
        for name, term in self.items():
            with _blaming(name):
                value = term(student, guide, batch)
            one = value if isinstance(value, Measured) else Measured(value)
            if not isinstance(one.value, Tensor) or one.value.dim() != 0:
                shape = tuple(one.value.shape) if isinstance(one.value, Tensor) else type(value).__name__
                raise ShapeError(f"loss {name} returned {shape}, not a scalar tensor")
            found[name] = one
            if check is not None:
                check(name, one.value)
        return found

    def weigh(self, found: Mapping[str, Measured]) -> dict[str, Tensor]:
        """The weighted scalars of measured terms."""
        return {name: one.value * self.weight(name) for name, one in found.items()}

    def weight(self, name: str) -> float:
        """The present weight of a term."""
        options = self.options
        if self.hints_alone and self.needs_teacher:
            return 1.0 / len(self.hints) if name in self.hints else 0.0
        gamma = options.gamma * self.teacher_share
        output_terms = len(self.names) - len(self.hints)
        if name == SUPERVISED:
            if options.w_gt is not None:
                return options.w_gt
            return 1 - gamma if output_terms else 1.0
        if name in self.hints:
            kappa = float(self.kappas[self.hints.index(name)])
            return kappa * (gamma if options.w_hint is None else options.w_hint * self.teacher_share)
        return gamma / output_terms if options.w_kd is None else options.w_kd * self.teacher_share

    def check_length(self, steps: int, epochs: int | None = None) -> None:
        """Raises: UsageError: a training so long would end before hints, or the truth, get a weight."""
        if epochs is not None and self.names and self.options.stage1_epochs >= epochs:
            raise UsageError(
                f"objective.stage1_epochs {self.options.stage1_epochs}: all {epochs} epochs would be of hints alone, "
                "without the truth; lower it"
            )
        if not self.calibrated and steps <= self.options.calibration_step:
            raise UsageError(
                f"{steps} steps of training end before hints get their weight at step "
                f"{self.options.calibration_step}: lower objective.calibration_step, or train longer"
            )

    def scales(self) -> dict[str, float]:
        """kappa of each hint term, by name."""
        return {f"kappa_{name}": float(kappa) for name, kappa in zip(self.hints, self.kappas, strict=True)}

    def await_calibration(self) -> None:
        """Give hints no weight until `calibrate` sets their kappa, as in a training; without this call it is 1."""
        if not self.calibrated:
            self.kappas.zero_()

    def assume_calibration(self) -> None:
        """Give hints that wait for their kappa one of 1: for a rehearsal."""
        if not self.calibrated:
            self.kappas.fill_(1)
            self.calibrated = True

    def is_due(self, step: int) -> bool:
        """Whether kappa is to be set at this step."""
        waits = self.calibrated or self.hints_alone or not self.needs_teacher
        return not waits and step >= self.options.calibration_step

    def calibrate(
        self,
        found: Mapping[str, Measured],
        parameters: Iterable[nn.Parameter],
        check: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        """Set kappa from the gradients of the raw terms with respect to the student's parameters, once.

        Several hint terms share rho equally. A term without gradient (the student already equals its teacher)
        gets kappa 0.

        Args: check: is given the norm of each gradient, with a name for it, before anything is set.
        """
        used = [p for p in parameters if p.requires_grad]
        push = self.options.rho * self.weight(SUPERVISED) * gradient_norm(found[SUPERVISED].value, used)
        norms = [gradient_norm(found[name].value, used) * self.options.gamma * len(self.hints) for name in self.hints]
        if check is not None:
            for name, norm in zip((SUPERVISED, *self.hints), (push, *norms), strict=True):
                check(f"{name}, its gradient,", torch.tensor(norm))
        for index, norm in enumerate(norms):
            self.kappas[index] = push / norm if norm > 0 else 0.0
        self.calibrated = True


def build_losses(
    names: Iterable[str],
    student: Variant,
    teacher: Variant | None = None,
    options: ObjectiveSettings | Mapping[str, Any] | None = None,
) -> Objective:
    """Build an objective from names of `LOSSES` (`none` for the supervised loss alone) or module:attribute.

    Args:
        options: an `ObjectiveSettings` or its fields as plain values.
    Raises: UsageError: an unknown name or option; a term without a teacher.
    """
    wanted = list(dict.fromkeys(name for name in names if name != NO_DISTILLATION))
    for name in wanted:
        loss_named(name)
    if not isinstance(options, ObjectiveSettings):
        tree = {option_key(key): value for key, value in (options or {}).items()}
        options = build(ObjectiveSettings, Tree(tree, {}, "loss options"))
    with torch.random.fork_rng(devices=[]):  # adapters must not change the draws that follow
        return Objective(wanted, options, student, teacher)


def used_options(names: Iterable[str], options: ObjectiveSettings) -> dict[str, Any]:
    """The settings as plain values, without the options of losses that are not used."""
    tree = to_tree(options)
    unused = {option_key(name) for name in LOSSES} - {option_key(name) for name in names}
    return {key: value for key, value in tree.items() if key not in unused and (key != "own" or value)}


def gradient_norm(value: Tensor, parameters: list[nn.Parameter]) -> float:
    """The norm of the gradient of a scalar, over all processes that share a batch; the graph is kept."""
    if not value.requires_grad:
        return 0.0
    own = torch.autograd.grad(value * distributed.share(), parameters, retain_graph=True, allow_unused=True)
    gradients = distributed.summed_gradients(own)
    squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """What goes wrong in a loss of the user's own is the user's to mend, in one line."""
    try:
        yield
    except BpfnError:
        raise
    except Exception as error:
        if name in LOSSES or means_out_of_memory(str(error)):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}, line {frame.lineno}"
        raise UsageError(f"loss {name} failed: {type(error).__name__}: {error} ({where})") from error


def _options_of(name: str, options: ObjectiveSettings) -> Any:
    if name in LOSSES:
        return getattr(options, option_key(name))
    return build(loss_named(name).settings, Tree(dict(options.own.get(name, {})), {}, f"objective.own.{name}"))
