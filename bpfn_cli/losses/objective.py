# SPDX-License-Identifier: MIT
"""What a student minimizes: the supervised loss and any number of distillation terms, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bpfn_cli.config import Tree, build, settings
from bpfn_cli.errors import UsageError
from bpfn_cli.losses.basic import BasicLoss, BasicSettings
from bpfn_cli.losses.bihint import BihintLoss, BihintSettings
from bpfn_cli.losses.hint import HintLoss, HintSettings
from bpfn_cli.losses.supervised import supervised_loss
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

SUPERVISED = "supervised"
NO_DISTILLATION = "none"


@dataclass(frozen=True)
class LossKind:
    """A term's module, its options, and one line on what it compares."""

    module: Callable[[Any, Variant, Variant], nn.Module]
    options: type
    compares: str


LOSSES: dict[str, LossKind] = {
    "basic": LossKind(BasicLoss, BasicSettings, "flows of student and teacher"),
    "hint": LossKind(HintLoss, HintSettings, "features of the source points"),
    "bihint": LossKind(BihintLoss, BihintSettings, "features of source and target points"),
}

Weight = Annotated[float, Field(ge=0, le=1e6)]


@settings
class ObjectiveSettings:
    """How terms are weighted.

    gamma: share of the teacher. Output terms give (1 - gamma) L_gt + gamma L_kd, hint terms
        L_gt + gamma kappa L_hint.
    rho: kappa is set once so that |grad gamma kappa L_hint| = rho |grad w_gt L_gt|, then kept; several hint terms
        share rho equally.
    calibration_step: the step at which kappa is set; until then hint terms have no weight.
    w_gt, w_kd, w_hint: the weights themselves, where those from gamma are not wanted (w_hint is then not scaled).
    """

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.3
    rho: Annotated[float, Field(gt=0, le=10)] = 0.3
    calibration_step: Annotated[int, Field(ge=0, le=10**6)] = 20
    w_gt: Weight | None = None
    w_kd: Weight | None = None
    w_hint: Weight | None = None
    basic: BasicSettings = field(default_factory=BasicSettings)
    hint: HintSettings = field(default_factory=HintSettings)
    bihint: BihintSettings = field(default_factory=BihintSettings)


class Objective(nn.Module):
    """Called with (student output, teacher output, batch), returns {term name: weighted scalar}; the loss is their sum.

    Attributes:
        terms: distillation terms by name; empty for training without a teacher.
        kappas: scale of each hint term, in the order of `hints`; a buffer.
    """

    kappas: Tensor

    def __init__(self, names: Iterable[str], options: ObjectiveSettings, student: Variant, teacher: Variant | None):
        super().__init__()
        self.options = options
        self.terms = nn.ModuleDict()
        for name in names:
            if teacher is None:
                raise UsageError(f"--loss {name} needs a teacher")
            self.terms[name] = LOSSES[name].module(getattr(options, name), student, teacher)
        scaled = options.w_hint is None
        self.hints = [name for name, term in self.terms.items() if term.kind == "hint"]
        if scaled and self.hints and self.weight(SUPERVISED) == 0:
            cause = "gamma 1" if options.w_gt is None else "w_gt 0"
            raise UsageError(f"objective.{cause} leaves nothing to scale hints by; give objective.w_hint too")
        self.register_buffer("kappas", torch.full((len(self.hints),), 0.0 if scaled else 1.0))
        self.calibrated = not (self.hints and scaled and options.gamma > 0)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid | None, batch: FlowBatch) -> dict[str, Tensor]:
        raw = self.raw_terms(student, teacher, batch)
        return {name: value * self.weight(name) for name, value in raw.items()}

    def raw_terms(self, student: FlowPyramid, teacher: FlowPyramid | None, batch: FlowBatch) -> dict[str, Tensor]:
        """The terms before weighting."""
        raw = {SUPERVISED: supervised_loss(student, batch)}
        for name, term in self.terms.items():
            raw[name] = term(student, teacher, batch)
        return raw

    def weight(self, name: str) -> float:
        """The present weight of a term."""
        options = self.options
        has_output_terms = len(self.hints) < len(self.terms)
        if name == SUPERVISED:
            if options.w_gt is not None:
                return options.w_gt
            return 1 - options.gamma if has_output_terms else 1.0
        if name in self.hints:
            kappa = float(self.kappas[self.hints.index(name)])
            return kappa * (options.gamma if options.w_hint is None else options.w_hint)
        return options.gamma if options.w_kd is None else options.w_kd

    def check_length(self, steps: int) -> None:
        """Raises: UsageError: a training of `steps` steps would end before hints get a weight."""
        if not self.calibrated and steps <= self.options.calibration_step:
            raise UsageError(
                f"{steps} steps of training end before hints get their weight at step "
                f"{self.options.calibration_step}: lower objective.calibration_step, or train longer"
            )

    def scales(self) -> dict[str, float]:
        """kappa of each hint term, by name."""
        return {f"kappa_{name}": float(kappa) for name, kappa in zip(self.hints, self.kappas, strict=True)}

    def calibrate(self, raw: Mapping[str, Tensor], parameters: Iterable[nn.Parameter]) -> None:
        """Set kappa from the gradients of the raw terms with respect to the student's parameters, once.

        Several hint terms share rho equally. A term without gradient (the student already equals its teacher)
        gets kappa 0.
        """
        used = [p for p in parameters if p.requires_grad]
        push = self.options.rho * self.weight(SUPERVISED) * _gradient_norm(raw[SUPERVISED], used)
        for index, name in enumerate(self.hints):
            norm = _gradient_norm(raw[name], used) * self.options.gamma * len(self.hints)
            self.kappas[index] = push / norm if norm > 0 else 0.0
        self.calibrated = True


def build_losses(
    names: Iterable[str],
    student: Variant,
    teacher: Variant | None = None,
    options: ObjectiveSettings | Mapping[str, Any] | None = None,
) -> Objective:
    """Build an objective from names of `LOSSES` (`none` for the supervised loss alone).

    Args:
        options: an `ObjectiveSettings` or its fields as plain values.
    Raises: UsageError: an unknown name or option; a term without a teacher.
    """
    wanted = list(dict.fromkeys(name for name in names if name != NO_DISTILLATION))
    for name in wanted:
        if name not in LOSSES:
            raise UsageError(f"unknown loss {name!r}: choose from {', '.join([NO_DISTILLATION, *LOSSES])}")
    if not isinstance(options, ObjectiveSettings):
        options = build(ObjectiveSettings, Tree(dict(options or {}), {}, "loss options"))
    with torch.random.fork_rng(devices=[]):  # adapters must not change the draws that follow
        return Objective(wanted, options, student, teacher)


def _gradient_norm(value: Tensor, parameters: list[nn.Parameter]) -> float:
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
