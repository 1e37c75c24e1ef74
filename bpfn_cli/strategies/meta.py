# SPDX-License-Identifier: MIT
"""Meta distillation: the teacher is updated so that what the student learns from it helps on held-out scenes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli import distributed
from bpfn_cli.config import settings
from bpfn_cli.errors import UsageError
from bpfn_cli.losses import supervised_loss
from bpfn_cli.losses.term import option
from bpfn_cli.strategies.base import Strategy, StrategyCard, restore_tensors
from bpfn_cli.strategies.teacher import Teacher
from bpfn_cli.strategies.terms import TermRecord
from bpfn_cli.structures import FlowBatch


@settings
class MetaSettings:
    every: Annotated[int, Field(ge=1)] = option(4, "steps between two updates of the teacher")
    trial: Annotated[float, Field(gt=0)] = option(0.1, "eta of the student's virtual step, in learning rates")
    teacher_lr: Annotated[float, Field(ge=0, le=1)] = option(1e-5, "learning rate of the teacher (Adam); 0: fixed")
    epsilon: Annotated[float, Field(gt=0)] = option(0.01, "length of the finite difference, divided by |v|")


Loss = Callable[[], Tensor]


@contextmanager
def moved(parameters: Sequence[Tensor], along: Sequence[Tensor], by: float) -> Iterator[None]:
    """In the block, add `by` times `along` to the parameters; afterwards they are restored bit for bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, direction in zip(parameters, along, strict=True):
            parameter.add_(direction, alpha=by)
    try:
        yield
    finally:
        restore_tensors(list(parameters), before)


def meta_gradient(
    student: Sequence[Tensor], teacher: Sequence[Tensor], train_loss: Loss, val_loss: Loss, eta: float, epsilon: float
) -> list[Tensor] | None:
    """d val_loss(theta - eta d train_loss / d theta) / d phi, by a finite difference of first derivatives.

    v = d val_loss at theta'; the gradient is -eta [d train_loss(theta + eps v) - d train_loss(theta - eps v)] / (2 eps)
    in phi. No second derivative is taken: point operations that detach would silently make it wrong.

    Args: student, teacher: parameters theta, phi; both with gradients enabled. train_loss: the student's loss, a
        function of both. val_loss: its loss on other scenes, of theta alone. epsilon: divided by the norm of v.
    Returns: one gradient per parameter of the teacher; None if an intermediate value is not finite.
    Source: MetaDistil, Zhou, Xu & McAuley, ACL 2022; the difference of DARTS, Liu et al., ICLR 2019, eq. 8.
    """
    inner = _gradients(train_loss(), student)
    if not _all_finite(inner):
        return None
    with moved(student, inner, -eta):
        v = _gradients(val_loss(), student)
    length = torch.stack([part.square().sum() for part in v]).sum().sqrt()
    if not torch.isfinite(length):
        return None
    if length == 0:
        return [torch.zeros_like(parameter) for parameter in teacher]
    step = epsilon / float(length)
    sides = []
    for sign in (1.0, -1.0):
        with moved(student, v, sign * step):
            sides.append(_gradients(train_loss(), teacher))
    found = [-eta * (plus - minus) / (2 * step) for plus, minus in zip(*sides, strict=True)]
    return found if _all_finite(found) else None


class MetaStrategy(Strategy):
    """Plain training with a teacher that is updated every few steps so that it teaches better."""

    card = StrategyCard(
        "the teacher learns to teach: it is updated so that the student does better on held-out scenes",
        "MetaDistil, Zhou, Xu & McAuley, ACL 2022 [checked against the authors' code]",
        (
            "finite differences instead of second derivatives, which point operations that detach would make wrong",
            "every fourth step; virtual step of 0.1 learning rates, teacher by Adam with 1e-5",
            "running statistics do not change in the virtual step and on the held-out scenes",
        ),
        "the teacher learns to teach",
    )
    settings = MetaSettings
    needs_teacher = True
    stateful = (*Strategy.stateful, "teacher_optimizer")

    teacher: Teacher
    _val_losses: list[float]

    @classmethod
    def needs_meta_val(cls, options: MetaSettings) -> bool:
        return True

    @property
    def extra_terms(self) -> tuple[tuple[str, str], ...]:
        options = self.options
        return (("teacher", f"updated every {options.every} steps by Adam, learning rate {options.teacher_lr:g}"),)

    def figures(self) -> dict[str, float]:
        count = len(self._val_losses)
        return {"meta_updates": count} | ({"meta_val_loss": sum(self._val_losses) / count} if count else {})

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        super().begin_epoch(epoch, epochs)
        self._val_losses = []

    def set_up(self) -> None:
        if self.teacher is None:
            raise UsageError("strategy meta updates a teacher: give a --loss that has one, such as basic")
        if self.teacher.cache is not None or self.teacher.control is not None:
            raise UsageError("strategy meta updates its teacher, so it excludes train.teacher_cache and control")
        if self.accumulate > 1:
            raise UsageError("strategy meta cannot split a batch: leave train.accumulate at 1")
        if self.meta_val is None:
            raise UsageError("strategy meta needs held-out scenes: raise data.meta_val")
        self.teacher_optimizer = torch.optim.Adam(self.teacher.network.parameters(), lr=self.options.teacher_lr)
        self.steps_per_round = min(self.options.every, 8)
        self._round, self._val_losses = 0, []

    def step(self, batch: FlowBatch, learning_rate: float, measure_gradients: bool = False) -> dict[str, TermRecord]:
        is_due = self.steps % self.options.every == 0 and self.options.teacher_lr > 0
        if is_due and self.objective.calibrated and self.objective.needs_teacher:
            with distributed.sharing(batch.share):
                self.update_teacher(batch, learning_rate)
        return super().step(batch, learning_rate, measure_gradients)

    def update_teacher(self, batch: FlowBatch, learning_rate: float) -> None:
        """Take one step of the teacher; the student, its optimizer and its running statistics do not change."""
        buffers = list(self.student.buffers())
        before = [buffer.clone() for buffer in buffers]
        held_out = self._next_meta_val()
        student = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        teacher = list(self.teacher.network.parameters())
        losses = partial(self._train_loss, batch), partial(self._val_loss, held_out)
        eta = self.options.trial * learning_rate
        try:
            with self.teacher.trainable():
                gradients = meta_gradient(student, teacher, *losses, eta, self.options.epsilon)
                if gradients is not None:  # otherwise the student's own step reports the samples
                    self._apply_to_teacher(gradients)
        finally:
            restore_tensors(buffers, before)

    def _train_loss(self, batch: FlowBatch) -> Tensor:
        output = self.run(self.student, batch)
        with torch.enable_grad():
            target = self.teacher.compute(batch, output)
        check = self.finite_check(batch)
        measured = self.objective.measure(output, target, batch, through_teacher=True, check=check)
        return torch.stack(list(self.objective.weigh(measured).values())).sum()

    def _val_loss(self, batch: FlowBatch) -> Tensor:
        value = supervised_loss(self.run(self.student, batch), batch, self.objective.options.supervised_norm)
        if math.isfinite(found := float(value.detach())):  # other ones are not applied
            self._val_losses.append(found)
        return value

    def _apply_to_teacher(self, gradients: list[Tensor]) -> None:
        if self._round == 1 and not any(bool(gradient.any()) for gradient in gradients):
            problem = f"no term of --loss {', '.join(self.objective.names)} is differentiable in the teacher"
            advice = "choose one that compares flows or features, such as basic or hint"
            raise UsageError(f"strategy meta: {problem}, so it cannot be updated; {advice}")
        for parameter, gradient in zip(self.teacher.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.teacher_optimizer.step()
        self.teacher_optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        own = {"meta_val_round": self._round, "meta_val_losses": list(self._val_losses)}
        return {**super().state_dict(), "teacher": self.teacher.network.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with self.teacher.trainable():
            self.teacher.network.load_state_dict(state["teacher"])
        self._round = state["meta_val_round"]
        self._val_losses = list(state["meta_val_losses"])

    def _next_meta_val(self) -> FlowBatch:
        """The next batch of held-out scenes; its number determines it."""
        assert self.meta_val is not None
        batch = next(iter(self.meta_val(self._round)), None)
        self._round += 1
        if batch is None:
            raise UsageError("strategy meta: no scene is held out; raise data.meta_val")
        return batch.to(self.device)


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    own = torch.autograd.grad(value * distributed.share(), list(parameters), allow_unused=True)
    pairs = zip(parameters, distributed.summed_gradients(own), strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for parameter, gradient in pairs]
