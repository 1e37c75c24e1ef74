# SPDX-License-Identifier: MIT
"""Bridge distillation: the student's encoder features follow those of the teacher, seen through a small network."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.losses.features import (
    Feature,
    FeatureDistance,
    Norm,
    Reduction,
    feature_of,
    mean_distance,
    norm_option,
    reduction_option,
)
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, option
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowBatch, FlowPyramid

_FEATURES: tuple[Feature, ...] = ("encoder_source", "encoder_target")


@settings
class BridgeSettings:
    mix: bool = option(False, "each cloud's side also gets a mix of the teacher's features of both clouds")
    trained: bool = option(False, "train the bridge with the student; false: it stays a random projection")
    norm: Norm = norm_option()
    reduction: Reduction = reduction_option()
    levels: Levels = option((3,), "levels to compare; 0 is the finest")


class Bridge(nn.Module):
    """Linear maps of the teacher's features of both clouds, point by point: (B, N, inputs) each to (B, N, outputs)."""

    def __init__(self, inputs: int, outputs: int, mix: bool):
        super().__init__()
        self.mix = nn.Linear(2 * inputs, inputs) if mix else None
        self.output = nn.Linear(2 * inputs if mix else inputs, outputs)

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.mix is None:
            return self.output(source), self.output(target)
        mixed = self.mix(torch.cat([source, target], dim=-1))
        first, second = (self.output(torch.cat([own, mixed], dim=-1)) for own in (source, target))
        return first, second


class BridgeLoss(DistillationLoss):
    """`bihint` on encoder features, where the teacher's first pass a bridge, by default a fixed random projection."""

    card = Card(
        compares="encoder features of both clouds, the teacher's through a bridge",
        formula="D = 1/2 [D(e1_s, b1) + D(e2_s, b2)], D as in hint, b_i = V e_i, or with mix V [e_i, W [e1, e2]], of "
        "the teacher's encoder features e_i; total: L_gt + gamma kappa D",
        source="the compression reports; their text leaves the layers open, and they are linear maps here",
        deviations=(
            "in the reports the bridge ran without gradients, so it stayed as it was initialized: a fixed random "
            "projection of the teacher; that is the default here too, so compare it with the control random_adapter",
            "trained: true trains it with the student, which may make the teacher's features easier to match rather "
            "than worth matching",
            "the reports' form is beta [basic] + (1 - beta) D, D the plain sum of squares / 2 at level 3, without "
            "kappa: norm: half_l2, reduction: sum, with objective.beta: 0.8 and --loss basic",
        ),
        adapters="the bridge",
        never_zero="the teacher's features pass the bridge, and the student's do not",
        meaning="ground truth and a projection of the teacher's encoder features",
    )
    settings = BridgeSettings
    uses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: BridgeSettings, student: Variant, teacher: Variant):
        super().__init__(options, student, teacher)
        widths = {level: (student.levels[level].expanded, teacher.levels[level].expanded) for level in options.levels}
        self.bridges = nn.ModuleDict({str(i): Bridge(inputs, own, options.mix) for i, (own, inputs) in widths.items()})
        self.bridges.requires_grad_(options.trained)
        # Behind the bridge, the teacher's features are as wide as the student's.
        branches = [
            FeatureDistance(feature, options.levels, options.norm, student, student, reduction=options.reduction)
            for feature in _FEATURES
        ]
        for branch in branches:
            branch.widths = widths
        self.branches = nn.ModuleList(branches)

    def adapters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
        return mean_distance(self.branches, student, self._through_bridge(teacher), batch)

    def _through_bridge(self, teacher: FlowPyramid) -> FlowPyramid:
        """The teacher's output with only the projected encoder features of the levels compared."""
        source, target = list(teacher.encoder_source), list(teacher.encoder_target)
        for level in self.options.levels:
            pair = [feature_of(teacher, feature, level) for feature in _FEATURES]
            source[level], target[level] = self.bridges[str(level)](*pair)
        return replace(teacher, encoder_source=source, encoder_target=target)

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        source, target = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
        for mix, expected in ((False, 0.5), (True, 2.0)):
            bridge = Bridge(2, 2, mix)
            for parameter in bridge.parameters():
                nn.init.constant_(parameter, 0.5 if parameter.dim() == 2 else 0.0)
            found = bridge(source, target)[0][0, 0, 0]
            yield HandValue(
                f"of features (1, 0) and (0, 2), all weights 0.5, mix: {mix}", float(found.detach()), expected
            )
