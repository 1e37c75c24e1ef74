# SPDX-License-Identifier: MIT
"""GAN Compression: squared hints through learned adapters, and a critic."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from bpfn_cli.config import settings
from bpfn_cli.losses.features import FeatureDistance, SourceFeature, feature_option, hand_value
from bpfn_cli.losses.response.adversarial import AdversarialSettings, Adversary
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, check_flows, levels_option, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid


@settings
class GanCompressionSettings(AdversarialSettings):
    feature: SourceFeature = feature_option()
    levels: Levels = levels_option()
    lambda_distill: Annotated[float, Field(ge=0)] = option(0.01, "weight of the squared hints")
    lambda_critic: Annotated[float, Field(ge=0)] = option(0.001, "weight of the critic; 0: no critic")


class GanCompressionLoss(DistillationLoss):
    """Hints of the student, mapped to the teacher's by a learned 1x1 map at every level, and a critic."""

    card = Card(
        compares="features through adapters, and flows as a critic sees them",
        formula="lambda_distill mean over levels of mean (f(F_s) - F_t)^2 / var F_t - lambda_critic mean_b D(p, s); "
        "total: L_gt + gamma kappa L",
        source="Li et al., GAN Compression, CVPR 2020; scripts: lambda_distill 0.01, lambda_recon 10 [read in the "
        "authors' code]",
        deviations=(
            "there are adapters at every level; between equal widths they start as the identity",
            "the critic takes the teacher's flow as real, where the original takes the ground truth (real: truth)",
            "the critic is that of adversarial, rescaled in each step; its weight relative to the hints is ours, since "
            "the paper's task loss was that of a GAN",
            "the paper's weight of hints is 0.001 of the reconstruction; here kappa determines it",
        ),
        adapters="one per level, and a critic",
        never_zero="the critic scores the student by itself (lambda_critic: 0 removes it)",
        meaning="squared hints and a critic",
    )
    settings = GanCompressionSettings
    exact_gradient_options: ClassVar[Mapping[str, Any]] = {"rescale": False}
    uses = ("flows",)

    def __init__(self, options: GanCompressionSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        sizes = student, teacher
        self.distance = FeatureDistance(options.feature, options.levels, "l2", *sizes, adapt=True, reduction="relative")
        self.adversary = Adversary(options) if options.lambda_critic else None
        self.needs_truth = self.adversary is not None and options.real == "truth"

    def adapters(self) -> list[nn.Parameter]:
        return list(self.distance.parameters())

    def before_step(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> None:
        if self.adversary is not None:
            self.adversary.learn(student, teacher, batch)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        levels = {i: self.options.lambda_distill * part for i, part in self.distance(student, teacher).items()}
        found = Measured.sum_of(levels, "1")
        if self.adversary is None:
            return found
        check_flows(student, teacher, (0,))
        critic = -self.options.lambda_critic * self.adversary.score(student, batch).mean()
        figures = {"critic": critic.detach(), **self.adversary.last}  # the part that belongs to no level
        return replace(found, value=found.value + critic, figures=figures)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        yield hand_value("l2", 0.09)
