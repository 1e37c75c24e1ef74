# SPDX-License-Identifier: MIT
"""Distances between named features, and the adapters between different widths."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpfn_cli.errors import UsageError
from bpfn_cli.losses.term import (
    HandValue,
    HintModule,
    Levels,
    Measured,
    check_same_points,
    check_shapes,
    level_of,
    option,
    total,
)
from bpfn_cli.models.variants import BASELINE, Variant
from bpfn_cli.structures import ENCODER_FIELDS, FlowBatch, FlowPyramid

SourceFeature = Literal["source", "embedding", "estimator", "encoder_source"]
Feature = Literal["source", "target", "embedding", "estimator", "encoder_source", "encoder_target"]
Norm = Literal["l1", "l2", "half_l2", "fvu"]
Reduction = Literal["relative", "mean", "sum", "numel"]

UNIT = "unit of the features"
SMALLEST_SPREAD = 1e-8
FIELDS: dict[str, str] = {
    "source": "bfe_source",
    "target": "bfe_target",
    "embedding": "bfe_embedding",
    "estimator": "estimator_features",
    "encoder_source": "encoder_source",
    "encoder_target": "encoder_target",
}


def feature_option() -> Any:
    """The option `feature`: one of `SourceFeature`."""
    return option("source", "feature of the source points to compare")


def norm_option() -> Any:
    """The option `norm`: one of `Norm`."""
    return option(
        "l1", "l1, l2 (squared), half_l2 (half of that), or fvu (fraction of variance unexplained, without a unit)"
    )


def reduction_option() -> Any:
    """The option `reduction`: one of `Reduction`."""
    return option(
        "relative",
        "relative: mean over levels and elements, each level divided by the spread of the teacher's feature; mean: "
        "without that; sum: over levels and elements; numel: that sum over the number of elements of the encoder's "
        "feature at level 0",
    )


def feature_of(output: FlowPyramid, feature: Feature, level: int) -> Tensor:
    """(B, N_l, C_l). Raises: ShapeError: missing or empty."""
    return level_of(getattr(output, FIELDS[feature]), feature, level)


def feature_width(variant: Variant, feature: Feature, level: int) -> int:
    """Number of channels of a named feature at a level."""
    sizes = variant.levels[level]
    if feature == "estimator":
        return sizes.estimator_features
    return sizes.expanded if FIELDS[feature] in ENCODER_FIELDS else sizes.embedding


class FeatureDistance(HintModule):
    """Distance between a named feature of student and teacher. reduction: `mean`, over levels, batch, channels and
    points, or another of `reduction_option`.

    If the widths differ (or with `adapt`), the student's features first pass an adapter: a linear map that is
    trained with the student, and neither exported nor counted. Between equal widths it starts as the identity.

    Args (of the call): two outputs on the same points; weights: level -> (B, N_l) weights of the points instead of 1;
        levels: those compared this time; None: all. samples: of the optimizer step, over which `sum` adds up; the sum
        over a part of them is scaled to all, since the gradients of parts are averaged.
    Returns: level -> its part. l1: |A s - t|; l2: (A s - t)^2; half_l2: half of it; fvu: sum (A s - t)^2 / sum
        (t - mean t)^2, which has no unit, and is 0 for a perfect student and 1 for one that predicts the mean.
    Raises: ShapeError: a feature is missing or empty, or the points differ. UsageError: fvu with another reduction.
    """

    def __init__(
        self,
        feature: Feature,
        levels: Levels,
        norm: Norm,
        student: Variant,
        teacher: Variant,
        adapt: bool = False,
        reduction: Reduction = "mean",
    ):
        super().__init__()
        if norm == "fvu" and reduction in ("sum", "numel"):
            raise UsageError(f"norm fvu is a fraction and has no reduction {reduction}; use reduction relative")
        self.reduction, self.first_width = reduction, student.levels[0].expanded
        self.feature: Feature = feature
        self.field, self.levels, self.norm = FIELDS[feature], levels, norm
        self.widths = {i: (feature_width(student, feature, i), feature_width(teacher, feature, i)) for i in levels}
        self.adapters = nn.ModuleDict(
            {str(i): _adapter(*widths) for i, widths in self.widths.items() if adapt or widths[0] != widths[1]}
        )

    def forward(
        self,
        student: FlowPyramid,
        teacher: FlowPyramid,
        weights: Mapping[int, Tensor] | None = None,
        levels: Levels | None = None,
        samples: int | None = None,
    ) -> dict[int, Tensor]:
        check_same_points(student, teacher)
        chosen = self.levels if levels is None else levels
        count = self._count(student, chosen, samples)
        return {level: self._at_level(level, student, teacher, weights) / count for level in chosen}

    def _count(self, student: FlowPyramid, levels: Levels, samples: int | None) -> float:
        """What the parts of the levels are divided by."""
        if self.reduction in ("relative", "mean"):
            return len(levels)
        batch, points = student.flows[0].shape[:2]
        return batch / (samples or batch) if self.reduction == "sum" else batch * points * self.first_width

    def _at_level(
        self, level: int, student: FlowPyramid, teacher: FlowPyramid, weights: Mapping[int, Tensor] | None
    ) -> Tensor:
        own, target = (feature_of(output, self.feature, level) for output in (student, teacher))
        adapted = self.adapters[str(level)](own) if str(level) in self.adapters else own
        check_shapes(f"hint {self.feature}", level, adapted, target)
        distance = self._distance(adapted, target)
        if weights is not None:
            distance = distance * weights[level][..., None]
        if self.norm == "fvu":
            variance = (target - target.mean(dim=(0, 1))).square().sum()
            return distance.sum() / variance.clamp_min(torch.finfo(variance.dtype).tiny)
        if self.reduction == "relative":
            target = target.detach()
            spread = self._distance(target, target.mean(dim=1, keepdim=True)).mean(dim=(1, 2))
            return (distance.mean(dim=(1, 2)) / spread.clamp_min(SMALLEST_SPREAD)).mean()
        return distance.mean() if self.reduction == "mean" else distance.sum()

    def _distance(self, own: Tensor, target: Tensor) -> Tensor:
        difference = own - target
        if self.norm == "l1":
            return difference.abs()
        return difference.square() / 2 if self.norm == "half_l2" else difference.square()

    @property
    def unit(self) -> str:
        return "1" if self.reduction == "relative" or self.norm == "fvu" else UNIT


def mean_distance(distances: Iterable[Any], student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured:
    """The mean over several `FeatureDistance` with one norm and reduction."""
    measured = ((one.unit, one(student, teacher, samples=batch.step_samples)) for one in distances)
    units, found = zip(*measured, strict=True)
    levels = {level: total({i: one[level] for i, one in enumerate(found)}) / len(found) for level in found[0]}
    return Measured.sum_of(levels, units[0])


def hand_value(norm: Norm, expected: float) -> HandValue:
    """The distance between features that differ by 0.6 in one of four channels."""
    target = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    own = target.clone()
    own[:, :, 2] += 0.6
    outputs = (FlowPyramid([x], {}, {}, [x], [x], [x], [x], pyramid=None) for x in (own, target))
    distance = total(FeatureDistance("estimator", (0,), norm, BASELINE, BASELINE)(*outputs))
    return HandValue(f"0.6 in one of four channels, {norm}", float(distance), expected)


def _adapter(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if inputs == outputs:
        nn.init.eye_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return layer
