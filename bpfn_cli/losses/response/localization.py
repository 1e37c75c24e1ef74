# SPDX-License-Identifier: MIT
"""Localization distillation: distributions over bins of the flow, not the flow itself."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.losses import term
from bpfn_cli.losses.features import feature_of
from bpfn_cli.losses.supervised import at_levels, known_points
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, TeacherPasses, option, total
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import interpolate, upsample
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid, PointPyramid

QUANTILE = 0.995  # of the residual's size, up to which the bins reach
KEPT_PER_SAMPLE = 256
SMALLEST_REACH_M = 1e-3


@settings
class LocalizationSettings:
    bins: Annotated[int, Field(ge=3, le=257)] = option(33, "number of bins for each coordinate of the residual flow")
    temperature: Annotated[float, Field(gt=0)] = option(10.0, "tau, temperature of both distributions")
    weight: Annotated[float, Field(ge=0)] = option(
        1.0, "weight of the distillation relative to the distribution focal loss"
    )
    head_epochs: Annotated[int, Field(ge=1, le=100)] = option(5, "passes that fit the teacher's heads before training")
    head_lr: Annotated[float, Field(gt=0, le=1)] = option(1e-2, "learning rate of this fit (Adam)")
    levels: Levels = term.levels_option()


def distribution_focal_loss(logits: Tensor, values: Tensor, reach: Tensor) -> Tensor:
    """Cross entropy with the two bins around each value: -(1 - r) log p_k - r log p_{k+1}.

    Args:
        logits: (..., K). values: (...) metres, clamped to +-reach. reach: scalar, metres; the bins are evenly spaced
            in [-reach, reach].
    """
    bins = logits.shape[-1]
    position = ((values / reach).clamp(-1, 1) + 1) / 2 * (bins - 1)
    lower = position.floor().clamp(max=bins - 2).long()
    rest = position - lower
    log_p = logits.log_softmax(dim=-1)
    at_lower, at_upper = (log_p.gather(-1, index[..., None])[..., 0] for index in (lower, lower + 1))
    return -((1 - rest) * at_lower + rest * at_upper)


def softened_divergence(own: Tensor, other: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(softmax(other / tau) || softmax(own / tau)) of logits (..., K), summed over bins."""
    log_own, log_other = (logits.div(temperature).log_softmax(dim=-1) for logits in (own, other))
    return (log_other.exp() * (log_other - log_own)).sum(dim=-1) * temperature**2


def expectation(logits: Tensor, reach: Tensor) -> Tensor:
    """The mean of the distribution over bin centers, metres."""
    centers = torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype, device=logits.device) * reach
    return (logits.softmax(dim=-1) * centers).sum(dim=-1)


def shifted(logits: Tensor, shift: Tensor, reach: Tensor) -> Tensor:
    """The logits of a distribution that is moved along its bins: those at c_k - shift, interpolated linearly.

    Args: logits: (..., K); beyond the bins, the outermost counts. shift: (...) metres. reach: scalar, metres.
    """
    bins = logits.shape[-1]
    centers = torch.arange(bins, dtype=logits.dtype, device=logits.device)
    position = (centers - shift[..., None] / reach * ((bins - 1) / 2)).clamp(0, bins - 1)
    lower = position.floor().clamp(max=bins - 2).long()
    return torch.lerp(logits.gather(-1, lower), logits.gather(-1, lower + 1), position - lower)


def coarse_flows(output: FlowPyramid, batch: FlowBatch) -> list[Tensor]:
    """The flow to which each level's estimator adds, from the coarser level, without gradient: (B, N_l, 3) metres."""
    found = [torch.zeros_like(output.flows[LEVELS - 1])]
    points = None if isinstance(output.pyramid, PointPyramid) else at_levels(output, batch.pc1)
    for level in reversed(range(LEVELS - 1)):
        coarser = output.flows[level + 1].detach()
        if points is not None:
            coarse = upsample(points[level], points[level + 1], coarser)
        else:
            source = output.pyramid.source  # type: ignore[union-attr]
            coarse = interpolate(coarser, source.up_neighbors[level], source.up_weights[level])
        found.insert(0, coarse)
    return found


def residual_truth(output: FlowPyramid, batch: FlowBatch) -> list[Tensor]:
    """What each level's estimator should add to the flow from the coarser level: (B, N_l, 3) metres."""
    pairs = zip(at_levels(output, batch.truth), coarse_flows(output, batch), strict=True)
    return [truth - coarse for truth, coarse in pairs]


class Heads(nn.ModuleDict):
    """At each level, a linear map from the estimator's features to the bins of the three coordinates."""

    def __init__(self, variant: Variant, levels: tuple[int, ...], bins: int):
        widths = {str(level): variant.levels[level].estimator_features for level in levels}
        super().__init__({level: nn.Linear(width, 3 * bins) for level, width in widths.items()})

    def logits(self, output: FlowPyramid, level: int) -> Tensor:
        """(B, N_l, 3, K)."""
        return self[str(level)](feature_of(output, "estimator", level)).unflatten(-1, (3, -1))


class LocalizationLoss(DistillationLoss):
    """Heads of the student learn the distribution of the residual flow from the truth and from the teacher's heads."""

    reaches: Tensor
    fitted: Tensor

    card = Card(
        compares="distributions of the residual flow over bins",
        formula="mean over levels of [DFL + tau^2 KL(softmax(z_t' / tau) || softmax(z_s / tau))], z_t' the teacher's "
        "logits, moved along the bins by the difference of the two coarser flows; total: L_gt + gamma kappa L",
        source="Zheng et al., Localization Distillation, CVPR 2022; distribution focal loss of Li et al., NeurIPS 2020 "
        "[checked against the authors' code]",
        deviations=(
            "the network has no distribution head; training adds a linear one on the estimator's 64 features; "
            "the exported flow is still that of `fc`",
            "the teacher's body is frozen; its heads are fitted by DFL on the training scenes before the training",
            "the bins reach to the 99.5 % quantile of the teacher's residual; each network's residual is relative to "
            "its own coarser flow, so the teacher's distribution is moved to the student's",
            "both parts have weight 1 and the divergence is summed over bins",
            "young heads learn first what any teacher would teach them: at an error of 0.6 m, with heads that have had "
            "200 steps, the gradient has a cosine of 0.91 with that of a shuffled teacher; after 400 steps, 0.74",
        ),
        adapters="two heads per level",
        never_zero="the distribution focal loss compares with the truth, and the two heads differ",
        meaning="ground truth and the teacher's flow distributions",
    )
    settings = LocalizationSettings
    needs_truth = True
    uses = ("flows", "estimator_features")

    def __init__(self, options: LocalizationSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        self.own_heads, self.teacher_heads = (Heads(one, options.levels, options.bins) for one in (student, teacher))
        self.teacher_heads.requires_grad_(False)
        self.register_buffer("reaches", torch.zeros(LEVELS))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def adapters(self) -> list[nn.Parameter]:
        return list(self.own_heads.parameters())

    def needs_preparation(self) -> bool:
        return not bool(self.fitted)

    def prepare(self, passes: TeacherPasses) -> None:
        """Measure the reach of the bins, then fit the teacher's heads."""
        if not bool(self.fitted):
            self._measure_reaches(passes)
            self._fit_teacher_heads(passes)
            self.fitted.fill_(True)

    def _measure_reaches(self, passes: TeacherPasses) -> None:
        sizes: list[list[Tensor]] = [[] for _ in range(LEVELS)]
        for teacher, batch in passes():
            for level, size in enumerate(self._sizes(teacher, batch)):
                stride = max(1, len(size) // (KEPT_PER_SAMPLE * len(batch.names)))
                sizes[level].append(size[::stride].cpu())
        self.reaches.copy_(torch.stack([_reach(torch.cat(size)) for size in sizes]))

    def _fit_teacher_heads(self, passes: TeacherPasses) -> None:
        self.teacher_heads.requires_grad_(True)
        optimizer = torch.optim.Adam(self.teacher_heads.parameters(), lr=self.options.head_lr)
        for _ in range(self.options.head_epochs):
            for teacher, batch in passes():
                with torch.enable_grad():
                    loss = total(self._focal(self.teacher_heads, teacher, batch, self.reaches))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                optimizer.step()
        self.teacher_heads.requires_grad_(False)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        term.check_flows(student, teacher, self.options.levels)
        reaches = self.reaches if bool(self.fitted) else self._reaches_of(teacher, batch)
        focal = self._focal(self.own_heads, student, batch, reaches)
        divergence = {}
        pairs = zip(coarse_flows(teacher, batch), coarse_flows(student, batch), strict=True)
        shifts = [other - own for other, own in pairs]
        for level in self.options.levels:
            own, other = self.own_heads.logits(student, level), self.teacher_heads.logits(teacher, level)
            other = shifted(other, shifts[level], reaches[level])
            each = softened_divergence(own, other, self.options.temperature)
            divergence[level] = each.mean() / len(self.options.levels)
        levels = {level: focal[level] + self.options.weight * divergence[level] for level in focal}
        figures = {
            "focal": total(focal).detach(),
            "divergence": total(divergence).detach(),
            "head_error_m": self._head_error(student, batch, reaches),
        }
        return Measured.sum_of(levels, "nats", figures=figures)

    @torch.no_grad()
    def _head_error(self, student: FlowPyramid, batch: FlowBatch, reaches: Tensor) -> Tensor:
        """Mean error of the expectation of the finest head, metres."""
        finest = min(self.options.levels)
        expected = expectation(self.own_heads.logits(student, finest), reaches[finest])
        errors = torch.linalg.vector_norm(expected - residual_truth(student, batch)[finest], dim=-1)
        known = known_points(student, batch)
        counted = torch.ones_like(errors) if known is None else known[finest].to(errors)
        return (errors * counted).sum() / counted.sum().clamp_min(1)

    def _focal(self, heads: Heads, output: FlowPyramid, batch: FlowBatch, reaches: Tensor) -> dict[int, Tensor]:
        truth, known = residual_truth(output, batch), known_points(output, batch)
        found = {}
        for level in self.options.levels:
            each = distribution_focal_loss(heads.logits(output, level), truth[level], reaches[level]).mean(dim=-1)
            if known is not None:
                each = torch.where(known[level], each, 0.0)
            found[level] = each.mean() / len(self.options.levels)
        return found

    @staticmethod
    def _sizes(output: FlowPyramid, batch: FlowBatch) -> list[Tensor]:
        known = known_points(output, batch)
        sizes = [residual.abs().amax(dim=-1) for residual in residual_truth(output, batch)]
        return [size.flatten() if known is None else size[known[level]] for level, size in enumerate(sizes)]

    @torch.no_grad()
    def _reaches_of(self, output: FlowPyramid, batch: FlowBatch) -> Tensor:
        return torch.stack([_reach(size) for size in self._sizes(output, batch)])

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        focal = distribution_focal_loss(torch.zeros(1, 33), torch.tensor([0.013]), torch.tensor(0.1))
        yield HandValue("DFL of 33 equal bins is ln 33", float(focal[0]), 3.4965076)
        divergence = softened_divergence(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]]), 10.0)
        yield HandValue("tau^2 KL of (2, 0, 0) and 0, tau 10", float(divergence[0]), 0.4626)


def _reach(sizes: Tensor) -> Tensor:
    return term.quantile(sizes, QUANTILE).clamp_min(SMALLEST_REACH_M) if len(sizes) else sizes.new_tensor(1.0)
