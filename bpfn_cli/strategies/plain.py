# SPDX-License-Identifier: MIT
"""One student, a fixed teacher or none."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfn_cli.errors import NonFiniteError, printable
from bpfn_cli.losses import Objective
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.ops import matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.structures import FlowBatch


class PlainStrategy:
    """Trains `student` (and the adapters of `objective`) by Adam, as in the published training.

    Args:
        teacher: None where the objective has no distillation term. It stays in evaluation mode, without gradients.
        clip_norm: largest norm of the gradient; None: not clipped.
        precision, teacher_precision: of the large matrix products, the backward ones included.
    """

    def __init__(
        self,
        student: BiPointFlowNet,
        teacher: BiPointFlowNet | None,
        objective: Objective,
        *,
        weight_decay: float,
        clip_norm: float | None,
        precision: Precision = Precision.float32,
        teacher_precision: Precision = Precision.float32,
    ):
        self.student, self.teacher, self.objective = student, teacher, objective
        self.clip_norm = clip_norm
        self.precision, self.teacher_precision = precision, teacher_precision
        self.steps = 0
        self.parameters = [*student.parameters(), *objective.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, weight_decay=weight_decay, fused=True)
        if teacher is not None:
            teacher.eval().requires_grad_(False)

    def step(self, batch: FlowBatch, learning_rate: float) -> dict[str, float]:
        """One optimizer step; returns the weighted terms.

        Raises: NonFiniteError: a term or the gradient is NaN or infinite; names it and the samples. No weight
            or running statistic has changed then.
        """
        statistics = [buffer.clone() for buffer in self.student.buffers()]
        try:
            terms = self._backward(batch)
        except NonFiniteError:
            for buffer, before in zip(self.student.buffers(), statistics, strict=True):
                buffer.copy_(before)
            raise
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.steps += 1
        return {name: float(value.detach()) for name, value in terms.items()}

    def _backward(self, batch: FlowBatch) -> dict[str, Tensor]:
        """The weighted terms, their gradients in the parameters."""
        terms = self._terms(batch)
        for name, value in terms.items():
            self._check_finite(f"term {name}", value, batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        limit = torch.inf if self.clip_norm is None else self.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        self._check_finite("the gradient", norm, batch)
        return terms

    def _terms(self, batch: FlowBatch) -> dict[str, Tensor]:
        self.student.train()
        with matrix_precision(self.precision):
            output = self.student(batch.pc1, batch.pc2)
        guide = None
        if self.teacher is not None:
            with torch.no_grad(), matrix_precision(self.teacher_precision):
                guide = self.teacher(batch.pc1, batch.pc2, pyramid=output.pyramid)
        if not self.objective.calibrated and self.steps >= self.objective.options.calibration_step:
            raw = self.objective.raw_terms(output, guide, batch)
            self.objective.calibrate(raw, self.student.parameters())
        return self.objective(output, guide, batch)

    @staticmethod
    def _check_finite(what: str, value: Tensor, batch: FlowBatch) -> None:
        if not torch.isfinite(value):
            names = printable(", ".join(batch.names))
            raise NonFiniteError(f"{what} is {value.item()} for the samples {names}; lower train.lr or leave them out")
