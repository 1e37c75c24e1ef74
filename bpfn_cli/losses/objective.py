# SPDX-License-Identifier: MIT
"""The training objective: the supervised loss and any number of distillation losses, with their weights."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bpfn_cli import distributed
from bpfn_cli.config import Tree, build, to_tree
from bpfn_cli.errors import BpfnError, ShapeError, UsageError, means_out_of_memory
from bpfn_cli.losses.registry import LOSSES, NO_DISTILLATION, loss_named
from bpfn_cli.losses.settings import ObjectiveSettings, option_key
from bpfn_cli.losses.supervised import measured_to_truth
from bpfn_cli.losses.term import DistillationLoss, Measured, TeacherPasses, detached
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

SUPERVISED = "supervised"
LARGEST_CHANGE = 4.0  # of kappa when it is set again
GRADIENT_SCALE = 2.0**10  # of values whose gradients are measured

TermCheck = Callable[[str, Tensor], None]


class Objective(nn.Module):
    """Called with (student output, teacher output, batch), returns {term name: weighted scalar}; the loss is their sum.

    The teacher's output gets no gradient.

    Attributes:
        terms: the terms beside the supervised one, in the order of `names`.
        has_truth: whether batches have labels; without them there is no supervised term.
        anchors: the terms that determine the flow, relative to which hints are scaled.
        gamma: the teacher's share; 1 without labels.
        kappas: scale of each hint term, in the order of `hints`; a buffer, 1 until set.
        calibration: 0 until they are set, then 1 + the step at which they were set last.
        needs_kappa: whether hint terms are scaled at all.
        teacher_share: factor on gamma by which a schedule fades the teacher out; at 0 no teacher is needed.
        hints_alone: whether this is an epoch of the first stage.
    """

    kappas: Tensor
    calibration: Tensor

    def __init__(
        self,
        names: Iterable[str],
        options: ObjectiveSettings,
        student: Variant,
        teacher: Variant | None,
        has_truth: bool = True,
    ):
        super().__init__()
        self.options, self.has_truth = options, has_truth
        self.gamma = options.gamma if has_truth else 1.0
        self.names = list(names)
        self.terms = nn.ModuleList()
        for name in self.names:
            kind = loss_named(name)
            if teacher is None and kind.needs_teacher:
                raise UsageError(f"--loss {name} needs a teacher")
            own = _options_of(name, options)
            with _named_in_errors(name):
                self.terms.append(kind(own, student, teacher or student))
        self.anchors = [SUPERVISED] if has_truth else self._anchors_without_truth()
        self.hints = [name for name, term in self.items() if term.kind == "hint" and name not in self.anchors]
        self.teacher_share = 1.0
        self.hints_alone = False
        self._check_hints()
        self.needs_kappa = bool(self.hints) and options.scales_hints and self.gamma > 0
        self.register_buffer("kappas", torch.ones(len(self.hints)))
        self.register_buffer("calibration", torch.tensor(int(not self.needs_kappa)))

    def _anchors_without_truth(self) -> list[str]:
        """Raises: UsageError: a term needs labels, or none determines the flow without them."""
        if self.options.w_gt:
            raise UsageError(f"objective.w_gt {self.options.w_gt:g}: the training scenes have no labels; remove it")
        labeled = [name for name, term in self.items() if term.needs_truth]
        if labeled or not self.names:
            what = f"loss {', '.join(labeled)} needs" if labeled else "the supervised loss (--loss none) needs"
            raise UsageError(f"{what} labels, which the training scenes do not have; use the loss basic or chamfer")
        outputs = [name for name, term in self.items() if term.kind == "output"]
        alone = [name for name, term in self.items() if not term.needs_teacher]
        if not outputs and not alone:
            only = f"loss {', '.join(self.names)} alone does not determine the flow without labels"
            raise UsageError(f"{only}; add the loss basic or chamfer")
        return outputs or alone

    def _check_hints(self) -> None:
        options = self.options
        if options.beta is not None and (options.w_gt, options.w_kd, options.w_hint) != (None, None, None):
            raise UsageError("objective.beta sets all weights; remove objective.w_gt, w_kd and w_hint")
        if options.beta is not None and self.names and not self.hints:
            raise UsageError("objective.beta: none of the losses is a hint; remove it")
        if self.hints and options.scales_hints and not any(self.weight(name) for name in self.anchors):
            cause = ("gamma 1" if options.w_gt is None else "w_gt 0") if self.has_truth else "w_kd 0"
            raise UsageError(f"objective.{cause} leaves nothing to scale hints by; set objective.w_hint too")
        if self.options.stage1_epochs and self.names and not self.hints:
            raise UsageError("objective.stage1_epochs: none of the losses is a hint; set it to 0")

    @property
    def calibrated(self) -> bool:
        """Whether the hint terms have their weights."""
        return bool(self.calibration)

    @calibrated.setter
    def calibrated(self, value: bool) -> None:
        self.calibration.fill_(int(value))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term uses the teacher's output now."""
        return self.teacher_share > 0 and any(term.needs_teacher for _, term in self.items())

    def active(self) -> Iterator[tuple[str, DistillationLoss]]:
        """The terms that are not switched off with the teacher."""
        return ((name, term) for name, term in self.items() if self.teacher_share > 0 or not term.needs_teacher)

    def items(self) -> Iterator[tuple[str, DistillationLoss]]:
        """The distillation terms by name."""
        return zip(self.names, self.terms, strict=True)  # type: ignore[arg-type]

    def reads(self) -> frozenset[str]:
        """The fields of the teacher's output that the terms use."""
        return frozenset().union(*(term.reads() for _, term in self.items()))

    def adapters(self) -> list[nn.Parameter]:
        """The parameters that the student's optimizer trains too."""
        return [parameter for _, term in self.items() for parameter in term.adapters()]

    def prepare(self, passes: TeacherPasses, only: str | None = None) -> None:
        """Before the first step: let the terms, or only the one named, measure the teacher."""
        for name, term in self.items():
            if term.needs_preparation() and only in (None, name):
                with _named_in_errors(name):
                    term.prepare(passes)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch; `epoch` counts from 0."""
        self.hints_alone = bool(self.hints) and epoch < self.options.stage1_epochs
        for name, term in self.items():
            with _named_in_errors(name):
                term.begin_epoch(epoch, epochs)

    def before_step(self, student: FlowPyramid, teacher: FlowPyramid | None, batch: FlowBatch) -> None:
        """Let the terms train parts that have their own optimizer."""
        if self.needs_teacher and teacher is not None:
            student, teacher = detached(student), detached(teacher)
            for name, term in self.active():
                with _named_in_errors(name):
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
        check: TermCheck = lambda name, value: None,
    ) -> dict[str, Measured]:
        """The terms before weighting; without those of the teacher if its share is 0 or there is no output of it.

        Args: through_teacher: compute gradients of the teacher's output too. check: called with the name and value of
            each term before the next is measured.
        Raises: ShapeError: a term is not a scalar, or a hint is missing.
        """
        found: dict[str, Measured] = {}
        if self.has_truth:
            found[SUPERVISED] = measured_to_truth(student, batch, self.options.supervised_norm)
            check(SUPERVISED, found[SUPERVISED].value)
        if self.needs_teacher and teacher is None:
            raise UsageError(f"--loss {', '.join(self.names)} needs a teacher's output")
        if teacher is not None and not through_teacher:
            teacher = detached(teacher)
        for name, term in self.active():
            with _named_in_errors(name):
                value = term(student, teacher, batch)
            found[name] = _checked_scalar(name, value)
            check(name, found[name].value)
        return found

    def weigh(self, found: Mapping[str, Measured]) -> dict[str, Tensor]:
        """The weighted scalars of measured terms."""
        return {name: one.value * self.weight(name) for name, one in found.items()}

    def weight(self, name: str) -> float:
        """The current weight of a term."""
        options, share = self.options, self._share(name)
        if self.hints_alone and self._active_hints():
            return 1.0 / len(self.hints) if name in self.hints else 0.0
        gamma, output_terms = self.gamma * share, len(self.names) - len(self.hints)
        of_hints = 0.0 if options.beta is None else (1 - options.beta) * share
        if name == SUPERVISED:
            own = (1 - gamma if output_terms else 1.0) * (1 - of_hints)
            return own if options.w_gt is None else options.w_gt
        if name in self.hints and options.beta is not None:
            return of_hints / len(self.hints)
        if name in self.hints:
            kappa = float(self.kappas[self.hints.index(name)])
            return kappa * (gamma if options.w_hint is None else options.w_hint * share)
        return gamma / output_terms * (1 - of_hints) if options.w_kd is None else options.w_kd * share

    def _share(self, name: str) -> float:
        """The teacher's share, or 1 for a term that needs none."""
        return self.teacher_share if name == SUPERVISED or self._term(name).needs_teacher else 1.0

    def _term(self, name: str) -> DistillationLoss:
        return self.terms[self.names.index(name)]  # type: ignore[return-value]

    def _active_hints(self) -> list[str]:
        return [name for name, _ in self.active() if name in self.hints]

    def check_length(self, steps: int, epochs: int | None = None) -> None:
        """Raises: UsageError: a training of this length would end before hints, or the truth, get a weight."""
        stage1, step = self.options.stage1_epochs, self.options.calibration_step
        if epochs is not None and self.names and stage1 >= epochs:
            problem = f"all {epochs} epochs would train on hints only, without the truth"
            raise UsageError(f"objective.stage1_epochs {stage1}: {problem}; lower it")
        if not self.calibrated and steps <= step:
            problem = f"the training ends after {steps} steps, before hints get their weight at step {step}"
            raise UsageError(f"{problem}: lower objective.calibration_step, or train longer")

    def scales(self) -> dict[str, float]:
        """kappa of each hint term, by name."""
        return {f"kappa_{name}": float(kappa) for name, kappa in zip(self.hints, self.kappas, strict=True)}

    def await_calibration(self) -> None:
        """Set kappa to 0 until `calibrate` sets it; without this call it is 1 until then."""
        if not self.calibrated:
            self.kappas.zero_()

    def assume_calibration(self) -> None:
        """Set kappa to 1 if it is not set yet, for a trial step."""
        if not self.calibrated:
            self.kappas.fill_(1)
            self.calibrated = True

    def is_due(self, step: int) -> bool:
        """Whether kappa must be set, or set again, at this step."""
        if self.hints_alone or not self._active_hints() or not self.needs_kappa:
            return False
        if not self.calibrated:
            return step >= self.options.calibration_step
        every = self.options.recalibrate_every
        return every > 0 and step + 1 - int(self.calibration) >= every

    def calibrate(
        self,
        found: Mapping[str, Measured],
        parameters: Iterable[nn.Parameter],
        check: TermCheck = lambda name, value: None,
        step: int = 0,
    ) -> None:
        """Set kappa from the gradients of the raw terms with respect to the student's parameters.

        A term without gradient (the student already equals its teacher) gets kappa 0, or keeps the one it has. After
        the first time, kappa changes by at most a factor of `LARGEST_CHANGE`, since one odd batch could make it huge.
        `check` is called with a name for each gradient and its norm before anything is set.
        """
        used = [p for p in parameters if p.requires_grad]
        anchors = [name for name in self.anchors if name in found]
        target = sum(self.options.rho * self.weight(name) * gradient_norm(found[name].value, used) for name in anchors)
        scale, hints = self.gamma * len(self.hints), self._active_hints()
        norms = {name: gradient_norm(found[name].value, used) * scale for name in hints}
        for name, norm in {"+".join(anchors): target, **norms}.items():
            check(f"{name}, its gradient,", torch.tensor(norm))
        for name, norm in norms.items():
            index = self.hints.index(name)
            before = float(self.kappas[index]) if self.calibrated else 0.0
            self.kappas[index] = limited_change(before, target / norm if norm > 0 else before)
        self.calibration.fill_(step + 1)


def limited_change(before: float, wanted: float) -> float:
    """A new scale that differs from the one before, unless that is 0, by at most a factor of `LARGEST_CHANGE`."""
    if before == 0:
        return wanted
    return min(max(wanted, before / LARGEST_CHANGE), before * LARGEST_CHANGE)


def build_losses(
    names: Iterable[str],
    student: Variant,
    teacher: Variant | None = None,
    options: ObjectiveSettings | Mapping[str, Any] | None = None,
    has_truth: bool = True,
) -> Objective:
    """Build an objective from names of `LOSSES` (`none` for the supervised loss alone) or module:Class.

    Args: options: an `ObjectiveSettings` or its fields as plain values. has_truth: whether batches have labels.
    Raises: UsageError: an unknown name or option; a term without a teacher, or without the labels that it needs.
    """
    wanted = list(dict.fromkeys(name for name in names if name != NO_DISTILLATION))
    for name in wanted:
        loss_named(name)
    if not isinstance(options, ObjectiveSettings):
        tree = {option_key(key): value for key, value in (options or {}).items()}
        options = build(ObjectiveSettings, Tree(tree, {}, "loss options"))
    with torch.random.fork_rng(devices=[]):  # adapters must not change later draws
        return Objective(wanted, options, student, teacher, has_truth)


def used_options(names: Iterable[str], options: ObjectiveSettings) -> dict[str, Any]:
    """The settings as plain values, without the options of unused losses."""
    tree = to_tree(options)
    unused = {option_key(name) for name in LOSSES} - {option_key(name) for name in names}
    return {key: value for key, value in tree.items() if key not in unused and (key != "own" or value)}


def _checked_scalar(name: str, value: object) -> Measured:
    measured = value if isinstance(value, Measured) else Measured(value)  # type: ignore[arg-type]
    is_tensor = isinstance(measured.value, Tensor)
    if not is_tensor or measured.value.dim() != 0:
        shape = tuple(measured.value.shape) if is_tensor else type(value).__name__
        raise ShapeError(f"loss {name} returned {shape}, not a scalar tensor")
    return measured


def gradient_norm(value: Tensor, parameters: list[nn.Parameter]) -> float:
    """The norm of the gradient of a scalar over all processes that share a batch; the graph is kept.

    The value is scaled for the backward pass, so that products in float16 do not round small gradients to zero; if they
    overflow, it is measured again without. As the scale is a power of two, norms in float32 are the same.
    """
    if not value.requires_grad:
        return 0.0
    for scale in (GRADIENT_SCALE, 1.0):
        scaled = value * (scale * distributed.share())
        own = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
        gradients = distributed.summed_gradients(own)
        squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
        norm = float(torch.stack(squares).sum().sqrt()) / scale if squares else 0.0
        if math.isfinite(norm):  # equal in all processes
            break
    return norm


@contextlib.contextmanager
def _named_in_errors(name: str) -> Iterator[None]:
    """Report any exception in a user's loss as one line that names the loss and the place."""
    try:
        yield
    except BpfnError:
        raise
    except Exception as error:
        if name in LOSSES or means_out_of_memory(str(error)):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"({frame.filename}, line {frame.lineno})"
        raise UsageError(f"loss {name} failed: {type(error).__name__}: {error} {where}") from error


def _options_of(name: str, options: ObjectiveSettings) -> Any:
    if name in LOSSES:
        return getattr(options, option_key(name))
    return build(loss_named(name).settings, Tree(dict(options.own.get(name, {})), {}, f"objective.own.{name}"))
