# SPDX-License-Identifier: MIT
"""Online distillation: two students learn side by side, each from what both know together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.errors import UsageError
from bpfn_cli.losses.supervised import at_levels, errors_to_truth, known_points, measured
from bpfn_cli.losses.term import Measured, option
from bpfn_cli.models import BiPointFlowNet, build_model
from bpfn_cli.strategies.plain import PlainStrategy, StrategyCard, Weighed
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class OnlineSettings:
    target: Literal["naive", "linear", "general", "pointbest"] = option(
        "linear", "naive: the better peer of a scene; linear: the best mix; general: one mix an epoch; pointbest"
    )
    weight: Annotated[float, Field(ge=0)] = option(1.0, "lambda, of R(||s_i - target||)")


def general_weights(covariance: Tensor) -> Tensor:
    """w = C^-1 1 / (1^T C^-1 1), negative ones cut: the mix of peers with the least squared error.

    Args: covariance: (m, m), mean inner products of the peers' errors, m^2.
    """
    exact = covariance.double()
    if not exact.diagonal().sum() > 0:  # no error at all, or nothing to measure it on
        return torch.full((len(exact),), 1 / len(exact), dtype=torch.float64)
    # The ridge lets two peers that err alike share equally.
    ridge = 1e-9 * exact.diagonal().mean() * torch.eye(len(exact), dtype=torch.float64)
    weights = torch.linalg.solve(exact + ridge, torch.ones(len(exact), 1, dtype=torch.float64)).flatten()
    weights = (weights / weights.sum()).clamp_min(0)
    return weights / weights.sum()


def best_share(first: Tensor, second: Tensor, truth: Tensor, known: Tensor | None = None) -> Tensor:
    """The share lambda in [0, 1] of `first` for which lambda first + (1 - lambda) second is nearest to the truth: (B,).

    Args: first, second, truth: (B, N, 3) metres. known: (B, N) bool, the points that count.
    """
    apart = first - second
    along, squares = ((truth - second) * apart).sum(-1), apart.square().sum(-1)
    if known is not None:
        along, squares = torch.where(known, along, 0.0), torch.where(known, squares, 0.0)
    length = squares.sum(1)
    share = (along.sum(1) / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(0, 1)
    return torch.where(length > 0, share, 0.5)


class OnlineStrategy(PlainStrategy):
    """Two peers of one variant and different beginnings; the first is the student that is deployed."""

    card = StrategyCard(
        "two students from scratch learn from the truth and from a mix of both",
        "KDCL, Guo et al., CVPR 2020, online distillation [second-hand]",
        (
            "flows instead of logits: L = sum_i R(e_i) + lambda R(||s_i - target||), lambda 1",
            "MinLogit has no form for flow; pointbest takes the closer peer at each point instead",
            "peers see the same view; the first is deployed whichever is better, as its beginning is that of the other "
            "methods",
        ),
    )
    settings = OnlineSettings

    peer: BiPointFlowNet

    @classmethod
    def needs_quiz(cls, options: OnlineSettings) -> bool:
        return options.target == "general"

    def begin(self) -> None:
        if self.options.target == "general" and self.quiz is None:
            raise UsageError("strategy online with target general needs scenes to quiz its students with")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.own_seed("peer"))
            self.peer = build_model(self.student.variant, self.student.num_points)
        self.peer.to(next(self.student.parameters()).device)
        self.peer_objective = copy.deepcopy(self.objective)
        self.mix = torch.tensor([0.5, 0.5])

    @property
    def adds(self) -> tuple[tuple[str, str], ...]:
        own = (("online", f"weight {self.options.weight:g}, target {self.options.target}"),)
        return (*own, ("peer_...", "the same terms of the other student"))

    def groups(self) -> list[list[nn.Parameter]]:
        return [*super().groups(), [*self.peer.parameters(), *self.peer_objective.adapters()]]

    def networks(self) -> list[BiPointFlowNet]:
        return [self.student, self.peer]

    def modules(self) -> list[nn.Module]:
        return [*super().modules(), self.peer_objective]

    def adopt_preparation(self) -> None:
        self.peer_objective.load_state_dict(self.objective.state_dict())

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        super().begin_epoch(epoch, epochs)
        self.peer_objective.begin_epoch(epoch, epochs)
        if self.options.target == "general" and epoch > 0:
            self.mix = general_weights(self._covariance(epoch))

    def terms(self, batch: FlowBatch) -> dict[str, Weighed]:
        own = self.run(self.student, batch)
        other = self.run(self.peer, batch, own)
        guide = self.guide(batch, own)
        self.peer_objective.teacher_share = self.objective.teacher_share
        targets = self.targets(own, other, batch)
        found = self.weigh(self.objective, own, guide, batch)
        beside = self.weigh(self.peer_objective, other, guide, batch, self.peer, "peer_")
        found["online"] = Weighed(_apart(own, targets), self.options.weight)
        beside["online"] = Weighed(_apart(other, targets), self.options.weight)
        return {**found, **{f"peer_{name}": term for name, term in beside.items()}}

    def targets(self, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> list[Tensor]:
        """What both learn at each level: (B, N_l, 3) metres, without gradient."""
        with torch.no_grad():
            kind = self.options.target
            pairs = list(zip(own.flows, other.flows, strict=True))
            if kind == "general":
                return [float(self.mix[0]) * a + float(self.mix[1]) * b for a, b in pairs]
            errors = errors_to_truth(own, batch), errors_to_truth(other, batch)
            if kind == "naive":
                is_better = (errors[0][0].sum(1) <= errors[1][0].sum(1))[:, None, None]
                return [torch.where(is_better, a, b) for a, b in pairs]
            if kind == "pointbest":
                return [
                    torch.where((errors[0][level] <= errors[1][level])[..., None], a, b)
                    for level, (a, b) in enumerate(pairs)
                ]
            truth, known = at_levels(own, batch.flow), known_points(own, batch)
            mixed = []
            for level, (a, b) in enumerate(pairs):
                share = best_share(a, b, truth[level], None if known is None else known[level])[:, None, None]
                mixed.append(share * a + (1 - share) * b)
            return mixed

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "peer": self.peer.state_dict(),
            "peer_objective": self.peer_objective.state_dict(),
            "mix": self.mix,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.peer.load_state_dict(state["peer"])
        self.peer_objective.load_state_dict(state["peer_objective"])
        self.mix = state["mix"]

    def _covariance(self, epoch: int) -> Tensor:
        """Mean inner products of the peers' errors at level 0 on the quiz scenes."""
        sums, points = torch.zeros(2, 2, dtype=torch.float64), 0
        with torch.no_grad():
            for batch in self.quiz(epoch) if self.quiz else ():
                errors = []
                for network in self.networks():
                    error = (network.eval()(batch.pc1, batch.pc2).flows[0] - batch.flow).double()
                    errors.append(error if batch.valid is None else error * batch.valid[..., None])
                sums += torch.tensor([[float((a * b).sum()) for b in errors] for a in errors], dtype=torch.float64)
                points += batch.flow.shape[0] * batch.flow.shape[1]
        return sums / max(points, 1)


def _apart(output: FlowPyramid, targets: list[Tensor]) -> Measured:
    return measured(
        {
            level: torch.linalg.vector_norm(flow - target, dim=-1)
            for level, (flow, target) in enumerate(zip(output.flows, targets, strict=True))
        }
    )
