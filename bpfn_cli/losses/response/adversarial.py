# SPDX-License-Identifier: MIT
"""Adversarial distillation: a critic learns to tell student from teacher, and the student to fool it."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from bpfn_cli import distributed
from bpfn_cli.config import settings
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Measured, check_flows, option, spread_rows
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import gather
from bpfn_cli.structures import FlowBatch, FlowPyramid

WIDTHS = (6, 64, 128, 256)
SMALLEST_SLOPE = 1e-6  # 1/m


@settings
class AdversarialSettings:
    points: Annotated[int, Field(ge=1, le=65536)] = option(
        2048, "number of points the critic sees; at most a quarter of all"
    )
    lr: Annotated[float, Field(gt=0, le=1)] = option(4e-4, "learning rate of the critic (Adam, betas 0 and 0.9)")
    gradient_penalty: Annotated[float, Field(ge=0)] = option(10.0, "lambda_gp, weight of the critic's gradient penalty")
    real: Literal["teacher", "truth"] = option("teacher", "flow that the critic takes as real")
    rescale: bool = option(True, "divide the score of a sample by the norm of its gradient by the flow, in each step")
    seed: Annotated[int, Field(ge=0)] = option(0, "seed of the random mixtures for the gradient penalty")


class Critic(nn.Module):
    """A score for a cloud with its flow: an MLP on each point, the maximum over points, a linear map. Without norm
    layers, because the gradient penalty is defined for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.per_point = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(WIDTHS))
        self.score = nn.Linear(WIDTHS[-1], 1)

    def forward(self, points: Tensor, flow: Tensor) -> Tensor:
        """(B, N, 3) metres each, to (B,). The order of points does not matter."""
        x = torch.cat([points - points.mean(dim=1, keepdim=True), flow], dim=-1)
        for layer in self.per_point:
            x = F.leaky_relu(layer(x), 0.2)
        return self.score(x.amax(dim=1))[:, 0]


def gradient_penalty(critic: nn.Module, points: Tensor, flow: Tensor) -> Tensor:
    """mean_b (||d critic / d flow||_2 - 1)^2."""
    flow = flow.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points, flow).sum(), flow, create_graph=True)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


class Adversary(nn.Module):
    """The critic with its own optimizer, trained during the student's training."""

    def __init__(self, options: AdversarialSettings):
        super().__init__()
        self.options = options
        self.critic = Critic()
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=options.lr, betas=(0.0, 0.9))
        self.draws = torch.Generator().manual_seed(options.seed)
        self.last: dict[str, Tensor] = {}

    def score(self, output: FlowPyramid, batch: FlowBatch) -> Tensor:
        """(B,) scores of an output; the critic is fixed, so only the flow gets a gradient.

        With `rescale` that gradient has norm 1 for each sample, whatever the critic's slope.
        """
        fixed = {name: tensor.detach() for name, tensor in self.critic.named_parameters()}
        points, flow = self._seen(output, batch)
        if not self.options.rescale:
            return functional_call(self.critic, fixed, (points, flow))
        with torch.enable_grad():
            leaf = flow.detach().requires_grad_()
            scores = functional_call(self.critic, fixed, (points, leaf))
            (slope,) = torch.autograd.grad(scores.sum(), leaf)
        # The same value and gradient as the critic's, without a second pass of it.
        linear = scores.detach() + ((flow - flow.detach()) * slope).sum(dim=(1, 2))
        return linear / torch.linalg.vector_norm(slope.flatten(1), dim=1).clamp_min(SMALLEST_SLOPE)

    def learn(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> None:
        """Take one step of the critic. Where the truth is real but unknown, the teacher's flow takes its place."""
        points, fake = self._seen(student, batch)
        if self.options.real == "truth":
            known = None if batch.valid is None else batch.valid[..., None]
            truth = batch.truth if known is None else torch.where(known, batch.truth, teacher.flows[0])
            teacher = replace(teacher, flows=[truth, *teacher.flows[1:]])
        _, real = self._seen(teacher, batch)
        whole = batch.whole or len(points)  # drawn for all samples, so that all processes keep the same generator state
        drawn = torch.rand(whole, 1, 1, generator=self.draws)
        share = drawn[batch.first % whole :][: len(points)].to(points)
        with torch.enable_grad():
            gap = self.critic(points, fake).mean() - self.critic(points, real).mean()
            penalty = gradient_penalty(self.critic, points, share * real + (1 - share) * fake)
            loss = (gap + self.options.gradient_penalty * penalty) * distributed.share()
            gradients = torch.autograd.grad(loss, list(self.critic.parameters()))
        averaged = distributed.summed_gradients(gradients)
        for parameter, gradient in zip(self.critic.parameters(), averaged, strict=True):
            parameter.grad = gradient
        if all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in averaged):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.last = {"critic_gap": gap.detach(), "critic_penalty": penalty.detach()}

    def _seen(self, output: FlowPyramid, batch: FlowBatch) -> tuple[Tensor, Tensor]:
        rows = spread_rows(output, 0, self.options.points)
        return gather(batch.pc1, rows), gather(output.flows[0], rows)

    def get_extra_state(self) -> dict[str, Any]:
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "draws": self.draws.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"].cpu())


class AdversarialLoss(DistillationLoss):
    """The student's flow should look like the teacher's to a critic that is trained at the same time."""

    card = Card(
        compares="flows, as a critic sees them",
        formula="L = -mean_b D(p, s) / |grad_s D(p, s)|; critic: lambda_gp mean (||grad D|| - 1)^2 + mean D(s) - "
        "mean D(t); total: L_gt + gamma kappa L",
        source="Liu et al., Structured Knowledge Distillation, CVPR 2019, holistic distillation (WGAN-GP) [read in the "
        "authors' code]",
        deviations=(
            "the critic is a small point network (6-64-128-256, maximum, 1), without batch norm",
            "one critic step per student step; the score is divided by the norm of its gradient in each step, since "
            "it would otherwise vary by a factor of 40 while the critic learns (rescale: false: as in the source)",
            "the teacher is the real one, as in the source (real: truth for ground truth)",
            "the critic sees points relative to their mean",
        ),
        adapters="a critic",
        never_zero="the critic scores the student by itself; the value has no zero",
        meaning="ground truth and a critic that tells student from teacher",
    )
    settings = AdversarialSettings
    exact_gradient_options: ClassVar[Mapping[str, Any]] = {"rescale": False}
    uses = ("flows",)

    def __init__(self, options: AdversarialSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.needs_truth = options.real == "truth"
        self.adversary = Adversary(options)

    def adapters(self) -> list[nn.Parameter]:
        return []  # the critic has its own optimizer

    def before_step(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> None:
        self.adversary.learn(student, teacher, batch)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        check_flows(student, teacher, (0,))
        unit = "m" if self.options.rescale else "1"
        return Measured(-self.adversary.score(student, batch).mean(), unit, figures=self.adversary.last)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        penalty = gradient_penalty(_UnitSlope(), torch.rand(1, 4, 3), torch.rand(1, 4, 3))
        yield HandValue("penalty of a critic of slope 1", float(penalty.detach()), 0.0)
        torch.manual_seed(0)
        critic, points, flow = Critic(), torch.rand(1, 8, 3), torch.rand(1, 8, 3)
        change = critic(points, flow) - critic(points.flip(1), flow.flip(1))
        largest = round(float(change.detach().abs().max()), 6)
        yield HandValue("change of the score in another order of points", largest, 0.0)


class _UnitSlope(nn.Module):
    """D(x) = <w, x>, |w| = 1."""

    def forward(self, points: Tensor, flow: Tensor) -> Tensor:
        return flow.flatten(1).sum(dim=1) / flow[0].numel() ** 0.5
