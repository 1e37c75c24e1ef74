# SPDX-License-Identifier: MIT
"""How far a teacher is to be believed, by its own error: what the attentive losses weigh points with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.losses.supervised import errors_to_truth, known_points
from bpfn_cli.losses.term import TeacherPasses, option
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid

QUANTILE = 0.95
KEPT_A_SCENE = 256  # errors of each level that the quantile is taken of
LEAST, GREATEST, Q95 = range(3)


@settings
class ImitabilitySettings:
    granularity: Literal["point", "sample"] = option("point", "one weight a point (by its error, m) or a sample (m^2)")
    phi: Literal["p95", "minmax", "paper"] = option(
        "p95", "p95: clamp(1 - e/q95, 0, 1); minmax: (max - e)/(max - min); paper: 1 - e/(max - min)"
    )
    eta: Literal["training", "batch"] = option("training", "where min, max and q95 of the teacher's errors come from")


def phi(errors: Tensor, kind: str, least: Tensor, greatest: Tensor, q95: Tensor) -> Tensor:
    """The weights of errors. Where the teacher errs the same everywhere, all are 1.

    Source: Saputra et al., ICCV 2019, eq. 8 to 10 (`paper`), which is negative at the worst sample wherever the least
    error is above 0; the other two are in [0, 1].
    """
    spread = greatest - least
    if kind == "p95":
        weights = (1 - errors / q95.clamp_min(torch.finfo(errors.dtype).tiny)).clamp(0, 1)
    elif kind == "minmax":
        weights = ((greatest - errors) / spread.clamp_min(torch.finfo(errors.dtype).tiny)).clamp(0, 1)
    else:
        weights = 1 - errors / spread.clamp_min(torch.finfo(errors.dtype).tiny)
    return torch.where(spread > 0, weights, torch.ones_like(weights))


class Imitability(nn.Module):
    """Phi of the teacher's errors at each level, from the spread of its errors over the training scenes.

    Attributes:
        spread: (levels, 3) buffer, least and greatest error and their 95 % quantile; of `sample` granularity the first
            row alone.
        known: whether `prepare` has been run; until then, or with `eta: batch`, the spread is that of the batch.
    """

    spread: Tensor
    known: Tensor

    def __init__(self, options: ImitabilitySettings):
        super().__init__()
        self.options = options
        self.register_buffer("spread", torch.zeros(LEVELS, 3))
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))

    @property
    def wants_training_set(self) -> bool:
        return self.options.eta == "training" and not bool(self.known)

    def prepare(self, passes: TeacherPasses) -> None:
        """One pass of the teacher over the training scenes."""
        if not self.wants_training_set:
            return
        kept: list[list[Tensor]] = [[] for _ in range(LEVELS)]
        extremes = torch.tensor([[torch.inf, -torch.inf]] * LEVELS)
        for teacher, batch in passes():
            for level, errors in self._errors(teacher, batch):
                extremes[level, 0] = torch.minimum(extremes[level, 0], errors.min().cpu())
                extremes[level, 1] = torch.maximum(extremes[level, 1], errors.max().cpu())
                stride = max(1, len(errors) // (KEPT_A_SCENE * len(batch.names)))
                kept[level].append(errors[::stride].cpu())
        for level, errors_of_level in enumerate(kept):
            if errors_of_level:
                self.spread[level] = torch.stack([*extremes[level], _quantile(torch.cat(errors_of_level))])
        self.known.fill_(True)

    def forward(self, teacher: FlowPyramid, batch: FlowBatch) -> dict[int, Tensor]:
        """level -> (B, N_l) weights, without gradient; 0 where the true flow is unknown."""
        with torch.no_grad():
            spread = self.spread if bool(self.known) and self.options.eta == "training" else self._of(teacher, batch)
            spread = spread.to(teacher.flows[0])
            known = known_points(teacher, batch)
            weights = {}
            for level, errors in errors_to_truth(teacher, batch).items():
                if self.options.granularity == "sample":
                    by_sample = phi(self._sample_errors(teacher, batch), self.options.phi, *spread[0])
                    weights[level] = by_sample[:, None].expand_as(errors)
                else:
                    weights[level] = phi(errors, self.options.phi, *spread[level])
                if known is not None:
                    weights[level] = torch.where(known[level], weights[level], 0.0)
            return weights

    def figures(self, weights: dict[int, Tensor]) -> dict[str, Tensor]:
        """Quantiles of the weights of the finest level, for the metrics log."""
        found = torch.quantile(
            weights[min(weights)].flatten()[: 2**20].float(),
            torch.tensor([0.05, 0.5, 0.95]).to(weights[min(weights)].device),
        )
        return {f"phi_q{name}": value for name, value in zip(("05", "50", "95"), found, strict=True)}

    def _of(self, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        spread = torch.zeros(LEVELS, 3)
        for level, errors in self._errors(teacher, batch):
            spread[level] = torch.stack([errors.min(), errors.max(), _quantile(errors)]).cpu()
        return spread

    def _errors(self, teacher: FlowPyramid, batch: FlowBatch) -> Iterator[tuple[int, Tensor]]:
        """Errors of the points of each level whose truth is known, or of the samples as level 0; none are empty."""
        if self.options.granularity == "sample":
            yield 0, self._sample_errors(teacher, batch)
            return
        known = known_points(teacher, batch)
        for level, errors in errors_to_truth(teacher, batch).items():
            chosen = errors.flatten() if known is None else errors[known[level]]
            if len(chosen):
                yield level, chosen

    @staticmethod
    def _sample_errors(teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        squares = errors_to_truth(teacher, batch)[0].square()
        known = known_points(teacher, batch)
        return squares.mean(dim=1) if known is None else squares.sum(1) / known[0].sum(1).clamp_min(1)


def _quantile(errors: Tensor) -> Tensor:
    ranked = errors.sort().values  # torch.quantile refuses more than 2^24 values
    return ranked[min(len(ranked) - 1, int(QUANTILE * len(ranked)))]
