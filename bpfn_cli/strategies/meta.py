# SPDX-License-Identifier: MIT
"""Meta distillation: the teacher moves so that what the student learns from it helps on scenes it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli import distributed
from bpfn_cli.config import settings
from bpfn_cli.errors import UsageError
from bpfn_cli.losses import supervised_loss
from bpfn_cli.losses.term import option
from bpfn_cli.strategies.plain import PlainStrategy, StrategyCard, TermRecord
from bpfn_cli.structures import FlowBatch


@settings
class MetaSettings:
    every: Annotated[int, Field(ge=1)] = option(4, "steps from one move of the teacher to the next")
    trial: Annotated[float, Field(gt=0)] = option(0.1, "eta of the student's trial step, in learning rates")
    teacher_lr: Annotated[float, Field(ge=0, le=1)] = option(1e-5, "learning rate of the teacher (Adam); 0: it stays")
    epsilon: Annotated[float, Field(gt=0)] = option(0.01, "length of the finite difference, over |v|")


@contextmanager
def moved(parameters: Sequence[Tensor], along: Sequence[Tensor], by: float) -> Iterator[None]:
    """In the block, parameters are moved by `by` times `along`; afterwards they are what they were, bit for bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, direction in zip(parameters, along, strict=True):
            parameter.add_(direction, alpha=by)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def meta_gradient(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    lesson: Callable[[], Tensor],
    quiz: Callable[[], Tensor],
    eta: float,
    epsilon: float,
) -> list[Tensor] | None:
    """d quiz(theta - eta d lesson / d theta) / d phi, by a finite difference of first derivatives.

    v = d quiz at theta'; the gradient is -eta [d lesson(theta + eps v) - d lesson(theta - eps v)] / (2 eps) in phi.
    No second derivative is taken: point operations that detach would make those wrong without a word.

    Args:
        student, teacher: parameters theta, phi; both with gradients enabled.
        lesson: the student's loss, a function of both. quiz: its loss on other scenes, of theta alone.
        epsilon: over the norm of v.
    Returns: one a parameter of the teacher; None where a number on the way is not finite.
    Source: MetaDistil, Zhou, Xu & McAuley, ACL 2022; the difference of DARTS, Liu et al., ICLR 2019, eq. 8.
    """
    inner = _gradients(lesson(), student)
    if not _all_finite(inner):
        return None
    with moved(student, inner, -eta):
        v = _gradients(quiz(), student)
    length = torch.stack([part.square().sum() for part in v]).sum().sqrt()
    if not torch.isfinite(length):
        return None
    if length == 0:
        return [torch.zeros_like(parameter) for parameter in teacher]
    step = epsilon / float(length)
    sides = []
    for sign in (1.0, -1.0):
        with moved(student, v, sign * step):
            sides.append(_gradients(lesson(), teacher))
    found = [-eta * (plus - minus) / (2 * step) for plus, minus in zip(*sides, strict=True)]
    return found if _all_finite(found) else None


class MetaStrategy(PlainStrategy):
    """`plain`, with a teacher that every few steps moves to where its lessons help the student more."""

    card = StrategyCard(
        "the teacher learns to teach: it moves so that the student does better on held-back scenes",
        "MetaDistil, Zhou, Xu & McAuley, ACL 2022 [read in the authors' code]",
        (
            "finite differences instead of second derivatives, which point operations that detach would falsify",
            "every fourth step; trial step 0.1 learning rates, teacher by Adam with 1e-5",
            "running statistics stay as they are during trial and quiz",
        ),
    )
    settings = MetaSettings
    needs_teacher = True
    _quiz_losses: list[float]

    @classmethod
    def needs_quiz(cls, options: MetaSettings) -> bool:
        return True

    @property
    def adds(self) -> tuple[tuple[str, str], ...]:
        return (("teacher", f"moves every {self.options.every} steps by Adam, rate {self.options.teacher_lr:g}"),)

    def figures(self) -> dict[str, float]:
        if not self._quiz_losses:
            return {"meta_moves": 0}
        mean = sum(self._quiz_losses) / len(self._quiz_losses)
        return {"meta_moves": len(self._quiz_losses), "meta_quiz_loss": mean}

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        super().begin_epoch(epoch, epochs)
        self._quiz_losses = []

    @property
    def steps_of_a_round(self) -> int:
        return min(self.options.every, 8)

    def begin(self) -> None:
        if self.teacher is None:
            raise UsageError("strategy meta moves a teacher: give a --loss that has one, such as basic")
        if self.teacher.cache is not None or self.teacher.control is not None:
            raise UsageError("strategy meta moves its teacher, so its outputs can be neither cached nor controlled")
        if self.accumulate > 1:
            raise UsageError("strategy meta takes a batch whole: leave train.accumulate at 1")
        if self.quiz is None:
            raise UsageError("strategy meta needs scenes to quiz its student with")
        self.teacher_optimizer = torch.optim.Adam(self.teacher.network.parameters(), lr=self.options.teacher_lr)
        self._round = 0
        self._quiz_losses = []

    def step(self, batch: FlowBatch, learning_rate: float, measure_gradients: bool = False) -> dict[str, TermRecord]:
        is_due = self.steps % self.options.every == 0 and self.options.teacher_lr > 0
        if is_due and self.objective.calibrated and self.objective.needs_teacher:
            with distributed.sharing(batch.share):
                self.move_teacher(batch, learning_rate)
        return super().step(batch, learning_rate, measure_gradients)

    def move_teacher(self, batch: FlowBatch, learning_rate: float) -> None:
        """One step of the teacher; the student, its optimizer and its running statistics stay as they are."""
        assert self.teacher is not None
        teacher, quiz = self.teacher, self._next_quiz().to(batch.pc1.device)
        statistics = [(buffer, buffer.clone()) for buffer in self.student.buffers()]

        def lesson() -> Tensor:
            output = self.run(self.student, batch)
            with torch.enable_grad():
                guide = teacher.compute(batch, output)
            found = self.objective.measure(output, guide, batch, through_teacher=True, check=self.checking(batch))
            return torch.stack(list(self.objective.weigh(found).values())).sum()

        def quiz_loss() -> Tensor:
            value = supervised_loss(self.run(self.student, quiz), quiz)
            self._quiz_losses.append(float(value.detach()))
            return value

        own = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        try:
            with teacher.trainable():
                other = list(teacher.network.parameters())
                gradients = meta_gradient(
                    own, other, lesson, quiz_loss, self.options.trial * learning_rate, self.options.epsilon
                )
                if gradients is not None and self._round == 1 and not any(bool(part.any()) for part in gradients):
                    names = ", ".join(self.objective.names)
                    raise UsageError(
                        f"strategy meta: nothing in --loss {names} depends smoothly on the teacher, so it cannot move; "
                        "choose one that compares flows or features, such as basic or hint"
                    )
                if gradients is not None:  # else the student's own step says what is wrong with these samples
                    for parameter, gradient in zip(other, gradients, strict=True):
                        parameter.grad = gradient
                    self.teacher_optimizer.step()
                self.teacher_optimizer.zero_grad(set_to_none=True)
        finally:
            for buffer, before in statistics:
                buffer.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        assert self.teacher is not None
        return {
            **super().state_dict(),
            "teacher": self.teacher.network.state_dict(),
            "teacher_optimizer": self.teacher_optimizer.state_dict(),
            "quiz_round": self._round,
            "quiz_losses": list(self._quiz_losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self.teacher is not None
        super().load_state_dict(state)
        with self.teacher.trainable():
            self.teacher.network.load_state_dict(state["teacher"])
        self.teacher_optimizer.load_state_dict(state["teacher_optimizer"])
        self._round = state["quiz_round"]
        self._quiz_losses = list(state["quiz_losses"])

    def _next_quiz(self) -> FlowBatch:
        """The next batch of held-back scenes: one a move, in an order that its number decides."""
        assert self.quiz is not None
        batch = next(iter(self.quiz(self._round)), None)
        self._round += 1
        if batch is None:
            raise UsageError("strategy meta: no scene is left to quiz its student with")
        return batch


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    own = torch.autograd.grad(value * distributed.share(), list(parameters), allow_unused=True)
    found = distributed.summed_gradients(own)
    pairs = zip(parameters, found, strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for parameter, gradient in pairs]
