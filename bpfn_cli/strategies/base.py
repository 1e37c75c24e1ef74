# SPDX-License-Identifier: MIT
"""The base of all strategies: the optimizer step, and the hooks by which a strategy changes it."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bpfn_cli import choices, distributed
from bpfn_cli.errors import UsageError
from bpfn_cli.losses import Objective
from bpfn_cli.losses.objective import TermCheck
from bpfn_cli.losses.term import NoOptions
from bpfn_cli.models import BiPointFlowNet, Variant
from bpfn_cli.models.fake_quantization import RANGES, get_ranges, set_ranges
from bpfn_cli.ops import matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.rng import keyed_generator
from bpfn_cli.strategies.muon import Muon
from bpfn_cli.strategies.teacher import Teacher
from bpfn_cli.strategies.terms import TermRecord, WeightedTerm, check_finite, gradient_shares, merge_records
from bpfn_cli.structures import BACKWARD_FIELD, ENCODER_FIELDS, FlowBatch, FlowPyramid

# Batches of scenes that are held out from training, shuffled by the given round number.
MetaValBatches = Callable[[int], Iterable[FlowBatch]]

Terms = dict[str, WeightedTerm]
SMALLEST_SCALE, LARGEST_SCALE = 1.0, 2.0**16  # of the loss in float16


@dataclass(frozen=True)
class StrategyCard:
    """What `bpfn losses NAME` prints about a strategy. meaning: a phrase for the legend of reports."""

    does: str
    source: str
    deviations: tuple[str, ...] = ()
    meaning: str = ""


class Strategy:
    """Trains `student` and the adapters of `objective` with Adam, as in the published training, or with Muon.

    Class attributes: card, settings: description and options. needs_teacher: whether it needs a distillation loss.
        needs_truth: whether it needs labels.

    Args:
        teacher: None if the objective has no distillation term. clip_norm: largest norm of the gradient; None: any.
        accumulate: number of parts that a batch is split into to save memory. The gradient is that of the mean over
            all samples, but batch norm sees one part at a time.
        precision: of the large matrix products, forward and backward. options: an instance of `settings`.
        meta_val: batches for strategies whose `needs_meta_val` is true. seed: of the strategy's draws.
        largest: variant up to which the student may grow, for strategies that widen it.
    """

    card: ClassVar[StrategyCard]
    settings: ClassVar[type] = NoOptions
    needs_teacher: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = True
    steps_per_round = 1  # after which every kind of step has been taken once

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
        optimizer: choices.Optimizer = "adam",
        options: Any = None,
        meta_val: MetaValBatches | None = None,
        largest: Variant | None = None,
        seed: int = 0,
    ):
        self.student, self.teacher, self.objective = student, teacher, objective
        self.clip_norm, self.accumulate, self.precision = clip_norm, accumulate, precision
        self.options = self.settings() if options is None else options
        self.meta_val, self.largest, self.seed = meta_val, largest, seed
        self.steps, self.epoch, self.epochs = 0, 0, 1
        self.device = next(student.parameters()).device
        is_half = precision is Precision.float16
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=LARGEST_SCALE, enabled=is_half)
        objective.await_calibration()
        self.set_up()
        self._keep_what_losses_read()
        self.optimizer: torch.optim.Optimizer = (
            Muon(self._trained(), weight_decay=weight_decay)
            if optimizer == "muon"
            else torch.optim.Adam(self._trained(), weight_decay=weight_decay, fused=True)
        )

    def _keep_what_losses_read(self) -> None:
        """Let the networks return the encoder's features, and the teacher its flow back, if a loss uses them."""
        if self.teacher is not None:
            self.teacher.goes_back = BACKWARD_FIELD in self.objective.reads()
        if self.objective.reads().intersection(ENCODER_FIELDS):
            for network in [*self.networks(), *([self.teacher.network] if self.teacher else [])]:
                network.encoder_features = True

    # --- hooks ---

    stateful: tuple[str, ...] = ("student", "objective", "optimizer")  # attributes in `state_dict`

    @classmethod
    def needs_meta_val(cls, options: Any) -> bool:
        """Whether the strategy needs scenes that are held out from training."""
        return False

    def set_up(self) -> None:
        """Build what is trained beside the student. Random numbers come from the strategy's own generators."""

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The parameters that the optimizer trains; the gradient of each group is clipped separately."""
        return [[*self.student.parameters(), *self.objective.adapters()]]

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.parameter_groups() for parameter in group]

    def networks(self) -> list[BiPointFlowNet]:
        """The networks that are trained."""
        return [self.student]

    def modules(self) -> list[nn.Module]:
        """The modules with buffers that a step changes: running statistics, scales of hints."""
        return [*self.networks(), self.objective]

    def terms(self, batch: FlowBatch) -> Terms:
        """The weighted terms of a batch; the training minimizes their sum."""
        return self.student_terms(batch)[1]

    def busiest_epoch(self, epochs: int) -> int:
        """An epoch in which steps are most expensive."""
        return max(0, epochs - 1)

    def after_preparation(self) -> None:
        """Called once the losses have been prepared on the training scenes."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch; `epoch` counts from 0."""
        self.epoch, self.epochs = epoch, epochs
        if self.teacher is not None:
            self.teacher.begin_epoch()
        self.objective.begin_epoch(epoch, epochs)

    @property
    def extra_terms(self) -> tuple[tuple[str, str], ...]:
        """Terms beside those of the objective, for the plan: name and weighting."""
        return ()

    def figures(self) -> dict[str, float]:
        """Other numbers for the log of an epoch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume the training, except the position in the epoch."""
        scale = [self.scaler.get_scale(), self.scaler.state_dict().get("_growth_tracker", 0)]
        parts = {name: getattr(self, name).state_dict() for name in self.stateful}
        ranges = {name: torch.tensor(ends) for name, ends in get_ranges(self.student).items()}
        return {"steps": self.steps, **parts, "loss_scale": scale, **({RANGES: ranges} if ranges else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        for name in self.stateful:
            getattr(self, name).load_state_dict(state[name])
        set_ranges(self.student, state.get(RANGES, {}))
        scale, growth_tracker = state["loss_scale"]
        own = self.scaler.state_dict()  # empty if disabled
        self.scaler.load_state_dict(own and own | {"scale": scale, "_growth_tracker": growth_tracker})

    # --- the step ---

    def step(self, batch: FlowBatch, learning_rate: float, measure_gradients: bool = False) -> dict[str, TermRecord]:
        """Take one optimizer step and return the terms from before it.

        In float16 the step is skipped if the gradients overflow, and the scale of the loss is halved.

        Raises: NonFiniteError: a term or the gradient is NaN or infinite; names it and the samples. Weights and running
            statistics of the networks are unchanged then.
        """
        buffers = [buffer for module in self.modules() for buffer in module.buffers()]
        before, is_applied = [buffer.clone() for buffer in buffers], False
        try:
            with distributed.sharing(batch.share):
                parts, shares = self._compute_gradients(batch, measure_gradients)
                is_applied = self._apply_gradients(batch, learning_rate)
        finally:
            if not is_applied:
                restore_tensors(buffers, before)
        records = merge_records(parts)
        return {name: replace(record, gradient_share=shares.get(name)) for name, record in records.items()}

    def _compute_gradients(
        self, batch: FlowBatch, measure_gradients: bool
    ) -> tuple[list[tuple[Terms, int]], dict[str, float]]:
        """Leave the scaled gradients in the parameters; return the terms of each part with its number of samples, and,
        if asked for, the terms' shares of the gradient of the first part."""
        self.optimizer.zero_grad()
        parts: list[tuple[Terms, int]] = []
        shares: dict[str, float] = {}
        for part in self._split(batch):
            terms = self.terms(part)
            values = {name: term.value for name, term in terms.items()}
            for name, value in values.items():
                check_finite(f"term {name}", value, part)
            if measure_gradients and not parts:
                shares = gradient_shares(values, list(self.student.parameters()))
            share = distributed.share() * len(part.names) / len(batch.names)
            self.scaler.scale(torch.stack(list(values.values())).sum() * share).backward()
            parts.append((terms, len(part.names)))
        self._sum_over_processes()
        return parts, shares

    def _apply_gradients(self, batch: FlowBatch, learning_rate: float) -> bool:
        """Unscale, clip and apply the gradients; False if they overflowed in float16 and the step was skipped. At a
        scale of 1 an overflow is not due to the scale, and an error."""
        is_scaled = self.scaler.get_scale() > SMALLEST_SCALE
        self.scaler.unscale_(self.optimizer)
        limit = torch.inf if self.clip_norm is None else self.clip_norm
        norms = [nn.utils.clip_grad_norm_(group, limit) for group in self.parameter_groups()]
        norm = torch.stack([one.to(batch.pc1.device) for one in norms]).sum()  # without a gradient, it is on the CPU
        try:
            if is_scaled and distributed.any_of(not bool(norm.isfinite())):
                return False
            check_finite("the gradient", norm, batch)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.scaler.step(self.optimizer)
            self.steps += 1
            return True
        finally:
            self.scaler.update()
            self.scaler.update(min(max(self.scaler.get_scale(), SMALLEST_SCALE), LARGEST_SCALE))

    def _split(self, batch: FlowBatch) -> list[FlowBatch]:
        """The parts computed one after another; the same number in all processes that share a batch."""
        count = self.accumulate
        if batch.whole is not None:
            count = min(count, max(1, batch.whole // distributed.size()))
        return [batch] if count == 1 else batch.parts(count)

    def _sum_over_processes(self) -> None:
        """Sum the gradients over the processes that share the batch."""
        trained = self._trained()
        summed = distributed.summed_gradients([parameter.grad for parameter in trained])
        for parameter, gradient in zip(trained, summed, strict=True):
            parameter.grad = gradient

    # --- the trial step ---

    def trial_step(self, batch: FlowBatch, learning_rate: float, epochs: int = 1) -> float:
        """Take a few steps of the busiest epoch and undo them; return the seconds per step, without the first.

        Finds mistakes before hours of training. The teacher cache is not used.

        Raises: UsageError: a term does not depend on the student. Others as `step`.
        """
        with self._undone():
            self.begin_epoch(self.busiest_epoch(epochs), epochs)
            self._check_gradients_reach_student(batch)
            self.step(batch, learning_rate)
            self._synchronize()
            self.objective.assume_calibration()  # so that hints that wait for it are included
            started = time.perf_counter()
            for _ in range(self.steps_per_round):
                if self.teacher is not None:
                    self.teacher.forget()
                self.step(batch, learning_rate)
            self._synchronize()
            return (time.perf_counter() - started) / self.steps_per_round

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Restore the state after the block, and run it without the teacher cache."""
        before = copy.deepcopy(self.state_dict())
        teacher = self.teacher
        cached = None if teacher is None else (teacher.cache, teacher.forwards)
        try:
            if teacher is not None:
                teacher.cache = None
            yield
        finally:
            self.load_state_dict(before)
            self.optimizer.zero_grad()
            if teacher is not None and cached is not None:
                teacher.cache, teacher.forwards = cached
                teacher.forget()

    def _check_gradients_reach_student(self, batch: FlowBatch) -> None:
        output = self.run(self.student, batch)
        teacher_output = self.teacher_output(batch, output)
        measured = self.objective.measure(output, teacher_output, batch, check=self.finite_check(batch))
        weights = list(self.student.parameters())
        for name, term in measured.items():
            gradients: tuple[Tensor, ...] = ()
            if term.value.requires_grad:
                gradients = torch.autograd.grad(term.value, weights, retain_graph=True, allow_unused=True)
            if all(gradient is None for gradient in gradients):
                raise UsageError(f"loss {name} does not depend on the student: none of its weights has a gradient")

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # --- for the hooks ---

    def run(self, network: BiPointFlowNet, batch: FlowBatch, like: FlowPyramid | None = None) -> FlowPyramid:
        """A network's output in training mode, on the point pyramid of another output of the batch if given."""
        network.train()
        with matrix_precision(self.precision):
            return network(batch.pc1, batch.pc2, pyramid=None if like is None else like.pyramid)

    def teacher_output(self, batch: FlowBatch, output: FlowPyramid) -> FlowPyramid | None:
        """The teacher's output; None if no term uses it."""
        return self.teacher(batch, output) if self.teacher and self.objective.needs_teacher else None

    def student_terms(self, batch: FlowBatch) -> tuple[FlowPyramid, Terms]:
        """The student's output on a batch, and the weighted terms of the objective."""
        output = self.run(self.student, batch)
        return output, self.weighted_terms(self.objective, output, self.teacher_output(batch, output), batch)

    def weighted_terms(
        self,
        objective: Objective,
        output: FlowPyramid,
        teacher_output: FlowPyramid | None,
        batch: FlowBatch,
        network: BiPointFlowNet | None = None,
        prefix: str = "",
    ) -> Terms:
        """The weighted terms of an objective, which is calibrated first when it is time.

        Args: network: that gave the output; None: the student. prefix: of the terms' names in errors.
        """
        objective.before_step(output, teacher_output, batch)
        check = self.finite_check(batch, prefix)
        measured = objective.measure(output, teacher_output, batch, check=check)
        if objective.is_due(self.steps):
            objective.calibrate(measured, (network or self.student).parameters(), check, self.steps)
        return {name: WeightedTerm(term, objective.weight(name)) for name, term in measured.items()}

    def finite_check(self, batch: FlowBatch, prefix: str = "") -> TermCheck:
        """A function that checks that the named term is finite; see `check_finite`."""
        return lambda name, value: check_finite(f"term {prefix}{name}", value, batch)

    def own_seed(self, purpose: str) -> int:
        """A seed for weights beside the student's; no student is initialized with such a seed."""
        return int(keyed_generator(purpose, self.seed).integers(2**32, 2**62))


class PlainStrategy(Strategy):
    """One student, a fixed teacher or none: the base strategy as it is."""

    card = StrategyCard("one student, a fixed teacher or none", "the reports")
    needs_truth = False


def restore_tensors(tensors: list[Tensor], before: list[Tensor]) -> None:
    """Copy earlier values back, bit for bit."""
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
