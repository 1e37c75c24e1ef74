# SPDX-License-Identifier: MIT
"""How large the gradient of a loss stays while a student improves, and how much of it comes from the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import cycle, repeat
from typing import Any

import torch
from torch import Tensor

from bpfn_cli.losses import Objective, build_losses
from bpfn_cli.losses.objective import SUPERVISED
from bpfn_cli.losses.response.localization import coarse_flows
from bpfn_cli.losses.supervised import at_levels
from bpfn_cli.losses.term import DistillationLoss, detached
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.rng import keyed_generator
from bpfn_cli.strategies.teacher import shuffle_points
from bpfn_cli.structures import VALUE_FIELDS, FlowBatch, FlowPyramid

ERRORS_M = (0.6, 0.2, 0.06, 0.03)  # mean errors of the student's flow
TEACHER_ERROR_M = 0.03
SINCE_CALIBRATION = 1.25  # factor by which the error was larger when kappa was set last
FIRST_STEPS, STEPS = 400, 50  # that train adapters and critics at the first error, and at each other
ADAPTER_RATE = 1e-2  # learning rate of adapters, Adam
DRAWS = 5  # of the student's errors, for these steps
SCENES = 80  # in a pass of the teacher


@dataclass(frozen=True)
class Course:
    """A loss in the course of a training.

    Attributes: aim: of the shares. shares: at each of `ERRORS_M`, the norm of the loss's weighted gradient by the
        student's parameters, relative to that of the supervised loss. cosines: between the gradients of the loss with
        a good teacher and with one whose outputs belong to other points; 1 if there is no gradient.
    """

    aim: float
    shares: list[float]
    cosines: list[float]


class States:
    """Outputs of a good teacher, and of a student at several errors, on a random scene.

    The values are made up, so that untrained networks can be checked; the gradients pass the student's network. Flows
    are the truth with random errors, which have heavy tails, as those of trained networks do, and are independent for
    each point, which those are not: an error that a whole scene shares points the same way for any teacher, which
    raises `Course.cosines`. Features are random functions of the point, its flow and its residual flow, so those of the
    student approach the teacher's as its flow does.

    Attributes: batch: of one scene. parameters: of the student. teacher: its output. supervised: the gradient of the
        supervised loss at each of `ERRORS_M`.
    """

    def __init__(self, student: BiPointFlowNet, teacher: BiPointFlowNet, batch: FlowBatch):
        self.batch, self.variants = batch, (student.variant, teacher.variant)
        self.parameters = list(student.parameters())
        self._students: dict[tuple[float, int], FlowPyramid] = {}
        with torch.enable_grad():
            self._own = student(batch.pc1, batch.pc2)
        with torch.no_grad():
            other = teacher(batch.pc1, batch.pc2, pyramid=self._own.pyramid)
        self.teacher = self._state(other, TEACHER_ERROR_M, "teacher")
        alone = build_losses([], student.variant)
        outputs = (self.student(error) for error in ERRORS_M)
        self.supervised = [self.gradient(alone.measure(output, None, batch)[SUPERVISED].value) for output in outputs]

    def student(self, error_m: float, draw: int = 0) -> FlowPyramid:
        """The student's output at a mean error of its flow, for one of any number of draws of the errors."""
        if (error_m, draw) not in self._students:
            self._students[error_m, draw] = self._state(self._own, error_m, f"student{draw}")
        return self._students[error_m, draw]

    def _state(self, output: FlowPyramid, error_m: float, who: str) -> FlowPyramid:
        return _with_flows(output, self.batch, self.flows(output, error_m, who))

    def flows(self, output: FlowPyramid, error_m: float, who: str) -> list[Tensor]:
        """The flows of a state by level, (B, N_l, 3) metres. who: whose they are; each has errors of its own."""
        truths = at_levels(output, self.batch.truth)
        return [truth + error_m * _errors(truth, who, level) for level, truth in enumerate(truths)]

    def gradient(self, value: Tensor) -> Tensor:
        """The gradient of a scalar by all parameters of the student, as a vector."""
        found = torch.autograd.grad(value, self.parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])


def course_of(name: str, states: States, options: Mapping[str, Any] | None = None) -> Course:
    """Follow a loss while the student's error falls. options: of the objective, as plain values."""
    objective, batch = build_losses([name], *states.variants, options), states.batch
    teacher, shuffled = states.teacher, shuffle_points(states.teacher)
    objective.prepare(lambda: repeat((teacher, batch), SCENES))
    other = objective
    if _has_critic(objective):  # which must know the shuffled teacher
        other = build_losses([name], *states.variants, options)
        other.load_state_dict(objective.state_dict())
    objective.await_calibration()
    weights, step = objective.options, objective.options.calibration_step
    shares: list[float] = []
    cosines: list[float] = []
    for error, supervised in zip(ERRORS_M, states.supervised, strict=True):
        larger, steps = error * SINCE_CALIBRATION, STEPS if shares else FIRST_STEPS
        _train_adapters(objective, states, larger, teacher, steps)
        if other is not objective:
            _train_adapters(other, states, larger, shuffled, steps)
        if objective.is_due(step):
            measured = objective.measure(states.student(larger), teacher, batch)
            objective.calibrate(measured, states.parameters, step=step)
        step += weights.recalibrate_every
        own = states.student(error)
        gradient = states.gradient(objective.measure(own, teacher, batch)[name].value)
        elsewhere = states.gradient(other.measure(own, shuffled, batch)[name].value)
        weight = objective.weight(name) / objective.weight(SUPERVISED)
        shares.append(weight * float(gradient.norm() / supervised.norm()))
        is_zero = not bool(gradient.any()) and not bool(elsewhere.any())
        cosines.append(1.0 if is_zero else float(torch.cosine_similarity(gradient, elsewhere, dim=0)))
    return Course(weights.rho if objective.hints else weights.gamma / (1 - weights.gamma), shares, cosines)


def _has_critic(objective: Objective) -> bool:
    """Whether the loss trains a part by itself."""
    ((_, term),) = objective.items()
    return type(term).before_step is not DistillationLoss.before_step


def _train_adapters(objective: Objective, states: States, error_m: float, teacher: FlowPyramid, steps: int) -> None:
    """Train adapters and critics, while the student stays as it is."""
    (name,), adapters, batch = objective.names, objective.adapters(), states.batch
    if not adapters and not _has_critic(objective):
        return
    outputs = [detached(states.student(error_m, 1 + draw)) for draw in range(DRAWS)]
    optimizer = torch.optim.Adam(adapters, lr=ADAPTER_RATE) if adapters else None
    for _, own in zip(range(steps), cycle(outputs)):
        objective.before_step(own, teacher, batch)
        if optimizer is not None:
            value = objective.measure(own, teacher, batch)[name].value
            gradients = torch.autograd.grad(value, adapters, allow_unused=True)
            for parameter, gradient in zip(adapters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()


def _with_flows(output: FlowPyramid, batch: FlowBatch, flows: list[Tensor]) -> FlowPyramid:
    """These flows and made-up features, with the gradients of an output."""
    values: dict[str, list[Tensor]] = {"flows": flows}
    inputs = zip(at_levels(output, batch.pc1), flows, coarse_flows(replace(output, flows=flows), batch), strict=True)
    known = [torch.cat([points, flow, flow - coarse], dim=-1) for points, flow, coarse in inputs]
    for field in VALUE_FIELDS[1:]:
        own = getattr(output, field)
        values[field] = [_features(x, f"{field}{i}", own[i].shape[-1]) for i, x in enumerate(known[: len(own)])]
    changed: dict[str, Any] = {
        field: [value + (own - own.detach()) for value, own in zip(values[field], getattr(output, field), strict=True)]
        for field in VALUE_FIELDS
    }
    return replace(output, **changed)


def _errors(like: Tensor, who: str, level: int) -> Tensor:
    """(B, N, 3) in random directions, of log-normal lengths with mean 1."""
    generator = keyed_generator("errors", who, level)
    directions = torch.from_numpy(generator.standard_normal(like.shape)).to(like)
    lengths = torch.from_numpy(generator.lognormal(-0.5, 1.0, like.shape[:2])).to(like)
    return lengths[..., None] * directions / directions.norm(dim=-1, keepdim=True)


def _features(known: Tensor, key: str, width: int) -> Tensor:
    """(B, N, 9) to (B, N, width): sines of random linear maps; a narrower network has the first of them."""
    weights = torch.from_numpy(keyed_generator("features", key).standard_normal((width, known.shape[-1])))
    return torch.sin(known @ weights.to(known).T)
