# SPDX-License-Identifier: MIT
"""Online distillation: two students train together, and each learns from a combination of both."""

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
from bpfn_cli.strategies.base import Strategy, StrategyCard, Terms
from bpfn_cli.strategies.terms import WeightedTerm
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class OnlineSettings:
    target: Literal["naive", "linear", "general", "pointbest"] = option(
        "linear",
        "naive: the better peer for each scene; linear: the best mix for each scene; general: one mix per epoch; "
        "pointbest: the better peer for each point",
    )
    weight: Annotated[float, Field(ge=0)] = option(1.0, "lambda, weight of R(||s_i - target||)")


def general_weights(covariance: Tensor) -> Tensor:
    """w = C^-1 1 / (1^T C^-1 1), negative weights set to 0: the mix of peers with the smallest squared error.

    Args: covariance: (m, m), mean inner products of the peers' errors, m^2.
    """
    exact = covariance.double()
    if not exact.diagonal().sum() > 0:  # no error, or no scenes to measure it on
        return torch.full((len(exact),), 1 / len(exact), dtype=torch.float64)
    # With the ridge, two peers with equal errors share equally.
    ridge = 1e-9 * exact.diagonal().mean() * torch.eye(len(exact), dtype=torch.float64)
    weights = torch.linalg.solve(exact + ridge, torch.ones(len(exact), 1, dtype=torch.float64)).flatten()
    weights = (weights / weights.sum()).clamp_min(0)
    return weights / weights.sum()


def best_share(first: Tensor, second: Tensor, truth: Tensor, known: Tensor | None = None) -> Tensor:
    """The lambda in [0, 1] for which lambda first + (1 - lambda) second is closest to the truth: (B,).

    Args: first, second, truth: (B, N, 3) metres. known: (B, N) bool, the points with a known flow; None: all.
    """
    difference = first - second
    along, squares = ((truth - second) * difference).sum(-1), difference.square().sum(-1)
    if known is not None:
        along, squares = torch.where(known, along, 0.0), torch.where(known, squares, 0.0)
    length = squares.sum(1)
    share = (along.sum(1) / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(0, 1)
    return torch.where(length > 0, share, 0.5)


class OnlineStrategy(Strategy):
    """Two peers of one variant with different initial weights; the first is the student that is exported."""

    card = StrategyCard(
        "two students from scratch learn from the truth and from a mix of both",
        "KDCL, Guo et al., CVPR 2020, online distillation [as cited by later work]",
        (
            "flows instead of logits: L = sum_i R(e_i) + lambda R(||s_i - target||), lambda 1",
            "MinLogit has no equivalent for flow; pointbest takes the closer peer at each point instead",
            "both peers see the same view; the first is exported even if the second is better, because it starts from "
            "the same weights as the students of the other methods",
        ),
        "two students learn from each other",
    )
    settings = OnlineSettings
    stateful = (*Strategy.stateful, "peer", "peer_objective")

    peer: BiPointFlowNet

    @classmethod
    def needs_meta_val(cls, options: OnlineSettings) -> bool:
        return options.target == "general"

    def set_up(self) -> None:
        if self.options.target == "general" and self.meta_val is None:
            raise UsageError("strategy online with target general needs held-out scenes: raise data.meta_val")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.own_seed("peer"))
            self.peer = build_model(self.student.variant, self.student.num_points).to(self.device)
        self.peer_objective = copy.deepcopy(self.objective)
        self.mix = torch.tensor([0.5, 0.5])

    @property
    def extra_terms(self) -> tuple[tuple[str, str], ...]:
        own = ("online", f"weight {self.options.weight:g}, target {self.options.target}")
        return own, ("peer_...", "the same terms for the other student")

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        return [*super().parameter_groups(), [*self.peer.parameters(), *self.peer_objective.adapters()]]

    def networks(self) -> list[BiPointFlowNet]:
        return [self.student, self.peer]

    def modules(self) -> list[nn.Module]:
        return [*super().modules(), self.peer_objective]

    def after_preparation(self) -> None:
        self.peer_objective.load_state_dict(self.objective.state_dict())

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        super().begin_epoch(epoch, epochs)
        self.peer_objective.begin_epoch(epoch, epochs)
        if self.options.target == "general" and epoch > 0:
            self.mix = general_weights(self._covariance(epoch))

    def terms(self, batch: FlowBatch) -> Terms:
        own = self.run(self.student, batch)
        other = self.run(self.peer, batch, own)
        teacher_output = self.teacher_output(batch, own)
        self.peer_objective.teacher_share = self.objective.teacher_share
        targets = self.targets(own, other, batch)
        terms = self.weighted_terms(self.objective, own, teacher_output, batch)
        peer_terms = self.weighted_terms(self.peer_objective, other, teacher_output, batch, self.peer, "peer_")
        terms["online"] = WeightedTerm(_distance(own, targets), self.options.weight)
        peer_terms["online"] = WeightedTerm(_distance(other, targets), self.options.weight)
        return terms | {f"peer_{name}": term for name, term in peer_terms.items()}

    @torch.no_grad()
    def targets(self, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> list[Tensor]:
        """What both learn at each level: (B, N_l, 3) metres, without gradient."""
        kind = self.options.target
        pairs = list(zip(own.flows, other.flows, strict=True))
        if kind == "general":
            return [float(self.mix[0]) * a + float(self.mix[1]) * b for a, b in pairs]
        if kind == "linear":
            truth, known = at_levels(own, batch.truth), known_points(own, batch)
            mixed = []
            for level, (a, b) in enumerate(pairs):
                share = best_share(a, b, truth[level], None if known is None else known[level])[:, None, None]
                mixed.append(share * a + (1 - share) * b)
            return mixed
        first, second = errors_to_truth(own, batch), errors_to_truth(other, batch)
        if kind == "naive":
            is_better = (first[0].sum(1) <= second[0].sum(1))[:, None, None]
            return [torch.where(is_better, a, b) for a, b in pairs]
        return [torch.where((first[i] <= second[i])[..., None], a, b) for i, (a, b) in enumerate(pairs)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mix": self.mix}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.mix = state["mix"]

    @torch.no_grad()
    def _covariance(self, epoch: int) -> Tensor:
        """Mean inner products of the peers' errors at level 0 on the held-out scenes."""
        sums, points = torch.zeros(2, 2, dtype=torch.float64), 0
        for batch in self.meta_val(epoch) if self.meta_val else ():
            counted = 1 if batch.valid is None else batch.valid[..., None]
            flows = [network.eval()(batch.pc1, batch.pc2).flows[0] for network in self.networks()]
            errors = [(flow - batch.truth).double() * counted for flow in flows]
            sums += torch.tensor([[float((a * b).sum()) for b in errors] for a in errors], dtype=torch.float64)
            points += batch.truth.shape[0] * batch.truth.shape[1]
        return sums / max(points, 1)


def _distance(output: FlowPyramid, targets: list[Tensor]) -> Measured:
    pairs = enumerate(zip(output.flows, targets, strict=True))
    return measured({level: torch.linalg.vector_norm(flow - target, dim=-1) for level, (flow, target) in pairs})
