# SPDX-License-Identifier: MIT
"""One student, a fixed teacher or none. What the other strategies change is this."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from bpfn_cli import distributed
from bpfn_cli.errors import NonFiniteError, UsageError, printable
from bpfn_cli.losses import Measured, Objective
from bpfn_cli.losses.objective import gradient_norm
from bpfn_cli.losses.term import NoOptions
from bpfn_cli.models import BiPointFlowNet, Variant
from bpfn_cli.ops import matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.rng import keyed_generator
from bpfn_cli.strategies.teacher import Teacher
from bpfn_cli.structures import FlowBatch, FlowPyramid

# Batches of scenes that are held back from learning, drawn for a round: for strategies that quiz the student.
QuizBatches = Callable[[int], Iterable[FlowBatch]]


@dataclass(frozen=True)
class Weighed:
    """A term of a step: what was measured, and what it is multiplied by."""

    measured: Measured
    weight: float

    @property
    def value(self) -> Tensor:
        return self.measured.value * self.weight


@dataclass(frozen=True)
class TermRecord:
    """A term of a step as numbers.

    Attributes:
        weighted: raw * weight. active: share of the points that take part; None: all.
        gradient_share: its share of the sum of all terms' gradient norms; None: not measured at this step.
        levels: raw value by level. figures: others.
    """

    weighted: float
    raw: float
    weight: float
    active: float | None
    gradient_share: float | None
    levels: dict[int, float]
    figures: dict[str, float]


STEPS_TO_DOUBLE = 2000


@dataclass
class LossScale:
    """What a loss is multiplied by, so that its gradients are not too small for float16; 1: nothing.

    Halved until the gradients are finite, doubled after so many steps that they were, as torch's `GradScaler` does.
    """

    factor: float
    good: int = 0

    def observe(self, is_finite: bool) -> None:
        if not is_finite:
            self.factor, self.good = max(1.0, self.factor / 2), 0
            return
        self.good += 1
        if self.good == STEPS_TO_DOUBLE:
            self.factor, self.good = min(2.0**16, 2 * self.factor), 0


@dataclass(frozen=True)
class StrategyCard:
    """What `bpfn losses NAME` prints of a strategy."""

    does: str
    source: str
    deviations: tuple[str, ...] = ()


class PlainStrategy:
    """Trains `student` (and the adapters of `objective`) by Adam, as in the published training.

    Class attributes: needs_teacher: whether it makes no sense without a distillation loss.

    Args:
        teacher: None where the objective has no distillation term.
        clip_norm: largest norm of the gradient; None: not clipped.
        accumulate: parts that a batch is computed in, one after another, to save memory; the gradient is that of the
            mean over all samples, but batch norm sees a part at a time.
        precision: of the large matrix products, the backward ones included.
        options: of the strategy, its `settings`. quiz: where `needs_quiz` says so.
        largest: the variant the student may grow to, where the strategy makes use of one. seed: of its own draws.

    """

    card: ClassVar[StrategyCard] = StrategyCard("one student, a fixed teacher or none", "the reports")
    settings: ClassVar[type] = NoOptions
    needs_teacher: ClassVar[bool] = False

    def __init__(
        self,
        student: BiPointFlowNet,
        teacher: Teacher | None,
        objective: Objective,
        *,
        weight_decay: float,
        clip_norm: float | None,
        accumulate: int = 1,
        precision: Precision = Precision.float32,
        options: Any = None,
        quiz: QuizBatches | None = None,
        largest: Variant | None = None,
        seed: int = 0,
    ):
        self.student, self.teacher, self.objective = student, teacher, objective
        self.clip_norm, self.accumulate, self.precision = clip_norm, accumulate, precision
        self.options = self.settings() if options is None else options
        self.quiz, self.largest, self.seed = quiz, largest, seed
        self.steps = 0
        self.epoch, self.epochs = 0, 1
        self.loss_scale = LossScale(2.0**16 if precision is Precision.float16 else 1.0)
        objective.await_calibration()
        self.begin()
        self.optimizer = torch.optim.Adam(
            [parameter for group in self.groups() for parameter in group], weight_decay=weight_decay, fused=True
        )

    # --- what a strategy may change ---

    @classmethod
    def needs_quiz(cls, options: Any) -> bool:
        """Whether scenes are held back from learning, to quiz the student with."""
        return False

    def begin(self) -> None:
        """Make what is trained beside the student. Draws from generators of its own alone."""

    def groups(self) -> list[list[nn.Parameter]]:
        """What the optimizer trains; each list is clipped by itself."""
        return [[*self.student.parameters(), *self.objective.adapters()]]

    def networks(self) -> list[BiPointFlowNet]:
        """The networks that learn."""
        return [self.student]

    def modules(self) -> list[nn.Module]:
        """What has buffers that a step changes: running statistics, scales of hints."""
        return [*self.networks(), self.objective]

    def terms(self, batch: FlowBatch) -> dict[str, Weighed]:
        """The weighed terms of a batch; their sum is what is minimized."""
        output = self.run(self.student, batch)
        return self.weigh(self.objective, output, self.guide(batch, output), batch)

    @property
    def steps_of_a_round(self) -> int:
        """After how many steps everything that a step may do has been done."""
        return 1

    def busiest_epoch(self, epochs: int) -> int:
        """An epoch in which most is done."""
        return max(0, epochs - 1)

    def adopt_preparation(self) -> None:
        """Called once the objective has learned what it must know of the teacher."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch; `epoch` counts from 0."""
        self.epoch, self.epochs = epoch, epochs
        if self.teacher is not None:
            self.teacher.begin_epoch()
        self.objective.begin_epoch(epoch, epochs)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training that goes on later needs, the point of the epoch apart."""
        return {
            "steps": self.steps,
            "student": self.student.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_scale": [self.loss_scale.factor, self.loss_scale.good],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        self.student.load_state_dict(state["student"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_scale.factor, self.loss_scale.good = state["loss_scale"]

    # --- what they share ---

    def step(self, batch: FlowBatch, learning_rate: float, measure_gradients: bool = False) -> dict[str, TermRecord]:
        """One optimizer step; returns the terms as they were before it. In float16 it is left out where the gradients
        overflow, and the scale of the loss is lowered.

        Raises: NonFiniteError: a term or the gradient is NaN or infinite; names it and the samples. No weight
            or running statistic of a network has changed then.
        """
        buffers = [buffer for module in self.modules() for buffer in module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            with distributed.sharing(batch.share):
                found, shares, is_finite = self._backward(batch, measure_gradients)
        except NonFiniteError:
            _put_back(buffers, before)
            raise
        if is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.steps += 1
        else:
            _put_back(buffers, before)
        return _merged([({name: _record(term) for name, term in terms.items()}, size) for terms, size in found], shares)

    def rehearse(self, batch: FlowBatch, learning_rate: float, epochs: int = 1) -> float:
        """Take a few steps of the busiest epoch and undo them; returns the seconds of one, the first not counted.

        So that what cannot work is found before hours of training, and the time of the rest is known. Nothing comes
        from a teacher cache or goes there.
        """
        before = copy.deepcopy(self.state_dict())
        teacher = self.teacher
        known = None if teacher is None else (teacher.cache, teacher.forwards)
        try:
            if teacher is not None:
                teacher.cache = None
            self.begin_epoch(self.busiest_epoch(epochs), epochs)
            self._check_connected(batch)
            self.step(batch, learning_rate)
            _wait_for(batch)
            self.objective.assume_calibration()  # what waits for it takes part
            started = time.perf_counter()
            for _ in range(self.steps_of_a_round):
                if teacher is not None:
                    teacher.forget()
                self.step(batch, learning_rate)
            _wait_for(batch)
            return (time.perf_counter() - started) / self.steps_of_a_round
        finally:
            self.load_state_dict(before)
            self.optimizer.zero_grad(set_to_none=True)
            if teacher is not None and known is not None:
                teacher.cache, teacher.forwards = known
                teacher.forget()

    def _check_connected(self, batch: FlowBatch) -> None:
        """Raises: UsageError: a term's value does not depend on the student, so that it teaches nothing."""
        output = self.run(self.student, batch)
        found = self.objective.measure(output, self.guide(batch, output), batch, check=self.checking(batch))
        parameters = list(self.student.parameters())
        for name, one in found.items():
            gradients = (
                torch.autograd.grad(one.value, parameters, retain_graph=True, allow_unused=True)
                if one.value.requires_grad
                else ()
            )
            if all(gradient is None for gradient in gradients):
                raise UsageError(f"loss {name} does not depend on the student: its gradient reaches no weight of it")

    @property
    def adds(self) -> tuple[tuple[str, str], ...]:
        """Terms beside those of the objective, for the plan: name, and how it is weighted."""
        return ()

    def figures(self) -> dict[str, float]:
        """What else is worth a number in the log of an epoch."""
        return {}

    def run(self, network: BiPointFlowNet, batch: FlowBatch, like: FlowPyramid | None = None) -> FlowPyramid:
        """A network's output in training mode, on the pyramid of another output of the batch if given."""
        network.train()
        with matrix_precision(self.precision):
            return network(batch.pc1, batch.pc2, pyramid=None if like is None else like.pyramid)

    def checking(self, batch: FlowBatch, prefix: str = "") -> Callable[[str, Tensor], None]:
        """A check that raises NonFiniteError, which names a term that is NaN or infinite and the samples."""
        return lambda name, value: _check_finite(f"term {prefix}{name}", value, batch)

    def own_seed(self, purpose: str) -> int:
        """A seed for weights beside the student's, which no training has for its student."""
        return int(keyed_generator(purpose, self.seed).integers(2**32, 2**62))

    def guide(self, batch: FlowBatch, output: FlowPyramid) -> FlowPyramid | None:
        """The teacher's output, where any term looks at it."""
        if self.teacher is None or not self.objective.needs_teacher:
            return None
        return self.teacher(batch, output)

    def weigh(
        self,
        objective: Objective,
        output: FlowPyramid,
        guide: FlowPyramid | None,
        batch: FlowBatch,
        network: BiPointFlowNet | None = None,
        prefix: str = "",
    ) -> dict[str, Weighed]:
        """The terms of an objective, which is calibrated when its time has come.

        Args: network: that gave the output; None: the student. prefix: of the terms' names in errors.
        """
        objective.before_step(output, guide, batch)
        check = self.checking(batch, prefix)
        found = objective.measure(output, guide, batch, check=check)
        if objective.is_due(self.steps):
            objective.calibrate(found, (network or self.student).parameters(), check)
        return {name: Weighed(one, objective.weight(name)) for name, one in found.items()}

    def _backward(
        self, batch: FlowBatch, measure_gradients: bool
    ) -> tuple[list[tuple[dict[str, Weighed], int]], dict[str, float], bool]:
        """The gradients in the parameters; the terms of each part with its samples; if asked for, their shares of the
        gradient of the first part; and whether the gradients are finite, which float16 may leave for a smaller scale.
        """
        self.optimizer.zero_grad(set_to_none=True)
        found: list[tuple[dict[str, Weighed], int]] = []
        shares: dict[str, float] = {}
        for part in self._parts(batch):
            terms = self.terms(part)
            values = {name: term.value for name, term in terms.items()}
            for name, value in values.items():
                _check_finite(f"term {name}", value, part)
            if measure_gradients and not found:
                shares = _gradient_shares(values, list(self.student.parameters()))
            share = self.loss_scale.factor * distributed.share() * len(part.names) / len(batch.names)
            (torch.stack(list(values.values())).sum() * share).backward()
            found.append((terms, len(part.names)))
        self._average_gradients()
        if self.precision is Precision.float16 and not self._unscale_gradients():
            return found, shares, False
        limit = torch.inf if self.clip_norm is None else self.clip_norm
        for group in self.groups():
            _check_finite("the gradient", torch.nn.utils.clip_grad_norm_(group, limit), batch)
        return found, shares, True

    def _unscale_gradients(self) -> bool:
        """Take the scale of the loss out of the gradients; False where they are not finite, which lowers it.

        Once it is 1, gradients that are not finite are no matter of scale any more: they are left for the check.
        """
        gradients = [p.grad for group in self.groups() for p in group if p.grad is not None]
        sums = torch.stack([gradient.sum() for gradient in gradients])
        is_finite = not distributed.any_of(not bool(torch.isfinite(sums).all()))
        factor = self.loss_scale.factor
        self.loss_scale.observe(is_finite)
        if not is_finite:
            return factor == 1
        torch._foreach_div_(gradients, factor)
        return True

    def _parts(self, batch: FlowBatch) -> list[FlowBatch]:
        """What is computed one after another: as many parts in each of the processes that share a batch."""
        count = self.accumulate
        if batch.whole is not None:
            count = min(count, max(1, batch.whole // distributed.size()))
        return [batch] if count == 1 else batch.parts(count)

    def _average_gradients(self) -> None:
        """Where several processes share the batch: from the gradients of its parts to those of the whole."""
        trained = [parameter for group in self.groups() for parameter in group]
        averaged = distributed.summed_gradients([parameter.grad for parameter in trained])
        for parameter, gradient in zip(trained, averaged, strict=True):
            parameter.grad = gradient


def _put_back(buffers: list[Tensor], before: list[Tensor]) -> None:
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)


def _gradient_shares(values: Mapping[str, Tensor], parameters: list[nn.Parameter]) -> dict[str, float]:
    norms = {name: gradient_norm(value, parameters) for name, value in values.items()}
    whole = sum(norms.values())
    return {name: norm / whole if whole > 0 else 0.0 for name, norm in norms.items()}


def _record(term: Weighed) -> TermRecord:
    measured = term.measured
    active = None if measured.active is None else _number(measured.active)
    figures = {name: _number(figure) for name, figure in measured.figures.items()}
    return TermRecord(
        weighted=_number(term.value),
        raw=_number(measured.value),
        weight=term.weight,
        active=active if active is not None and math.isfinite(active) else None,
        gradient_share=None,
        levels={level: _number(part) for level, part in measured.levels.items()},
        figures={name: figure for name, figure in figures.items() if math.isfinite(figure)},
    )


def _merged(parts: list[tuple[dict[str, TermRecord], int]], shares: Mapping[str, float]) -> dict[str, TermRecord]:
    """The terms of a batch from those of its parts: means over samples; the weight is that of the last part."""
    merged = {}
    for name in parts[0][0]:
        records = [(terms[name], size) for terms, size in parts if name in terms]
        active = [(record.active, size) for record, size in records if record.active is not None]
        merged[name] = TermRecord(
            weighted=_mean_of([(record.weighted, size) for record, size in records]),
            raw=_mean_of([(record.raw, size) for record, size in records]),
            weight=records[-1][0].weight,
            active=_mean_of(active) if active else None,
            gradient_share=shares.get(name),
            levels=_means_of([(record.levels, size) for record, size in records]),
            figures=_means_of([(record.figures, size) for record, size in records]),
        )
    return merged


def _mean_of(values: list[tuple[float, int]]) -> float:
    if len(values) == 1:
        return values[0][0]  # to the last bit
    return sum(value * size for value, size in values) / sum(size for _, size in values)


_Key = TypeVar("_Key")


def _means_of(tables: list[tuple[Mapping[_Key, float], int]]) -> dict[_Key, float]:
    keys = dict.fromkeys(key for table, _ in tables for key in table)
    return {key: _mean_of([(table[key], size) for table, size in tables if key in table]) for key in keys}


def _number(value: Tensor | float) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _check_finite(what: str, value: Tensor, batch: FlowBatch) -> None:
    error = None
    if not torch.isfinite(value):
        names = printable(", ".join(batch.names))
        error = NonFiniteError(f"{what} is {value.item()} for the samples {names}; lower train.lr or leave them out")
    distributed.raise_any(error)


def _wait_for(batch: FlowBatch) -> None:
    if batch.pc1.device.type == "cuda":
        torch.cuda.synchronize()


def teacher_passes(
    teacher: Teacher, batches: Callable[[], Iterable[FlowBatch]]
) -> Callable[[], Iterator[tuple[FlowPyramid, FlowBatch]]]:
    """Passes of a teacher over batches, as `Objective.prepare` takes them."""

    def one_pass() -> Iterator[tuple[FlowPyramid, FlowBatch]]:
        for batch in batches():
            yield teacher(batch), batch

    return one_pass
