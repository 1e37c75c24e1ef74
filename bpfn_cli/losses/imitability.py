# SPDX-License-Identifier: MIT
"""Weights of points by the teacher's own error, for the attentive losses."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.losses.supervised import Target, errors_to_truth, known_points, supervised_loss, target_of
from bpfn_cli.losses.term import DistillationLoss, TeacherPasses, option, quantile
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid

QUANTILE = 0.95
SMALLEST_MEAN = 0.1  # of Phi, by which it is divided
KEPT_PER_SCENE = 256  # errors of each level from which the quantile is taken
HAND_ERRORS = torch.tensor([0.02, 0.05, 0.10])


@settings
class ImitabilitySettings:
    granularity: Literal["point", "sample", "batch"] = option(
        "point",
        "one weight per point (from its error in m), sample (m^2) or batch (the supervised loss of the teacher)",
    )
    phi: Literal["p95", "minmax", "paper"] = option(
        "p95", "p95: clamp(1 - e/q95, 0, 1); minmax: (max - e)/(max - min); paper: 1 - e/(max - min)"
    )
    eta: Literal["training", "batch"] = option("training", "source of min, max and q95 of the teacher's errors")


def phi(errors: Tensor, kind: str, least: Tensor, greatest: Tensor, q95: Tensor) -> Tensor:
    """The weights of errors; all 1 if the teacher's error is the same everywhere.

    Source: Saputra et al., ICCV 2019, eq. 8 to 10 (`paper`), which is negative at the worst sample whenever the
    smallest error is above 0; the other two are in [0, 1].
    """
    tiny = torch.finfo(errors.dtype).tiny
    spread = greatest - least
    if kind == "p95":
        weights = (1 - errors / q95.clamp_min(tiny)).clamp(0, 1)
    elif kind == "minmax":
        weights = ((greatest - errors) / spread.clamp_min(tiny)).clamp(0, 1)
    else:
        weights = 1 - errors / spread.clamp_min(tiny)
    return torch.where(spread > 0, weights, torch.ones_like(weights))


def phi_by_hand(kind: str, index: int) -> float:
    """For hand-computed values: the weight of one of the errors 0.02, 0.05 and 0.10."""
    errors = HAND_ERRORS
    return float(phi(errors, kind, errors.min(), errors.max(), errors.max())[index])


class Imitability(nn.Module):
    """Phi of the teacher's errors at each level, from the spread of its errors over the training scenes.

    Args: target: the teacher's flow whose error decides about a point of a coarser level.

    Attributes:
        spread: (levels, 3) buffer: smallest error, largest error and their 95 % quantile; with granularity `sample` and
            `batch` only the first row.
        means: (levels,) buffer: mean of Phi over the training scenes, at least `SMALLEST_MEAN`.
        known: whether `prepare` was run; before, and with `eta: batch`, spread and means are those of the batch.
    """

    spread: Tensor
    means: Tensor
    known: Tensor

    def __init__(self, options: ImitabilitySettings, target: Target = "level"):
        super().__init__()
        self.options, self.target = options, target
        self.register_buffer("spread", torch.zeros(LEVELS, 3))
        self.register_buffer("means", torch.ones(LEVELS))
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))

    @property
    def needs_preparation(self) -> bool:
        return self.options.eta == "training" and not bool(self.known)

    def prepare(self, passes: TeacherPasses) -> None:
        """Measure the spread in one pass of the teacher over the training scenes."""
        if not self.needs_preparation:
            return
        kept: list[list[Tensor]] = [[] for _ in range(LEVELS)]
        extremes = torch.tensor([[torch.inf, -torch.inf]] * LEVELS)
        for teacher, batch in passes():
            for level, errors in self._errors(teacher, batch):
                extremes[level, 0] = torch.minimum(extremes[level, 0], errors.min().cpu())
                extremes[level, 1] = torch.maximum(extremes[level, 1], errors.max().cpu())
                stride = max(1, len(errors) // (KEPT_PER_SCENE * len(batch.names)))
                kept[level].append(errors[::stride].cpu())
        for level, errors_of_level in enumerate(kept):
            if errors_of_level:
                errors = torch.cat(errors_of_level)
                self.spread[level] = torch.stack([*extremes[level], quantile(errors, QUANTILE)])
                self.means[self._levels_like(level)] = self._mean_phi(errors, self.spread[level])
        self.known.fill_(True)

    @torch.no_grad()
    def forward(self, teacher: FlowPyramid, batch: FlowBatch) -> dict[int, Tensor]:
        """level -> (B, N_l) weights, without gradient; 0 where the true flow is unknown."""
        spread = (self.spread if self._is_measured else self._of_batch(teacher, batch)[0]).to(teacher.flows[0])
        known = known_points(teacher, batch)
        weights = {}
        for level, errors in errors_to_truth(target_of(teacher, self.target), batch).items():
            if self.options.granularity != "point":
                whole = phi(self._whole_errors(teacher, batch), self.options.phi, *spread[0])
                weights[level] = whole[:, None].expand_as(errors)
            else:
                weights[level] = phi(errors, self.options.phi, *spread[level])
            if known is not None:
                weights[level] = torch.where(known[level], weights[level], 0.0)
        return weights

    @torch.no_grad()
    def scales(self, teacher: FlowPyramid, batch: FlowBatch) -> list[float]:
        """For each level, what gives the weights a mean of 1 over the training scenes."""
        means = self.means if self._is_measured else self._of_batch(teacher, batch)[1]
        return (1 / means).tolist()

    @property
    def _is_measured(self) -> bool:
        return bool(self.known) and self.options.eta == "training"

    def _of_batch(self, teacher: FlowPyramid, batch: FlowBatch) -> tuple[Tensor, Tensor]:
        """Spread and means of a batch alone."""
        spread, means = torch.zeros(LEVELS, 3), torch.ones(LEVELS)
        for level, errors in self._errors(teacher, batch):
            spread[level] = torch.stack([errors.min(), errors.max(), quantile(errors, QUANTILE)]).cpu()
            means[self._levels_like(level)] = self._mean_phi(errors.cpu(), spread[level])
        return spread, means

    def _mean_phi(self, errors: Tensor, spread: Tensor) -> Tensor:
        return phi(errors, self.options.phi, *spread.to(errors)).mean().clamp_min(SMALLEST_MEAN)

    def _levels_like(self, level: int) -> slice:
        """The levels that have the weights of one."""
        return slice(level, level + 1) if self.options.granularity == "point" else slice(None)

    def _errors(self, teacher: FlowPyramid, batch: FlowBatch) -> Iterator[tuple[int, Tensor]]:
        """Errors of the points with a known flow, by level, or of samples or the batch as level 0; none are empty."""
        if self.options.granularity != "point":
            yield 0, self._whole_errors(teacher, batch)
            return
        known = known_points(teacher, batch)
        for level, errors in errors_to_truth(target_of(teacher, self.target), batch).items():
            chosen = errors.flatten() if known is None else errors[known[level]]
            if len(chosen):
                yield level, chosen

    def _whole_errors(self, teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
        """One error for each sample, (B,), or for the batch, (1,)."""
        if self.options.granularity == "batch":
            return supervised_loss(teacher, batch)[None]
        return _sample_errors(teacher, batch)


class AttentiveLoss(DistillationLoss):
    """Base of the losses that weight points by the teacher's error; its options extend `ImitabilitySettings`."""

    needs_truth = True

    def __init__(self, options: ImitabilitySettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.imitability = Imitability(options, getattr(options, "target", "level"))
        self.needs_whole_batches = options.granularity == "batch"

    def prepare(self, passes: TeacherPasses) -> None:
        self.imitability.prepare(passes)

    def needs_preparation(self) -> bool:
        return self.imitability.needs_preparation


def weight_details(weights: dict[int, Tensor]) -> dict[str, Any]:
    """For `Measured`: the share of positive weights and quantiles of the weights at the finest level."""
    finest = weights[0].flatten()[: 2**20].float()
    found = torch.quantile(finest, torch.tensor([0.05, 0.5, 0.95], device=finest.device))
    figures = {f"phi_q{name}": value for name, value in zip(("05", "50", "95"), found, strict=True)}
    return {"active": (weights[0] > 0).float().mean(), "figures": figures}


def _sample_errors(teacher: FlowPyramid, batch: FlowBatch) -> Tensor:
    squares = errors_to_truth(teacher, batch)[0].square()
    known = known_points(teacher, batch)
    return squares.mean(dim=1) if known is None else squares.sum(1) / known[0].sum(1).clamp_min(1)
