# SPDX-License-Identifier: MIT
"""What all distillation terms share: the checks, the feature distances, the adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bpfn_cli.errors import ShapeError
from bpfn_cli.models.variants import ESTIMATOR_FEATURES, Variant
from bpfn_cli.structures import LEVELS, FlowPyramid

Levels = Annotated[tuple[Annotated[int, Field(ge=0, lt=LEVELS)], ...], Field(min_length=1, max_length=LEVELS)]
Feature = Literal["source", "target", "embedding", "estimator"]
Norm = Literal["l1", "l2", "fvu"]

_FEATURES: dict[str, Callable[[FlowPyramid], list[Tensor]]] = {
    "source": lambda output: output.bfe_source,
    "target": lambda output: output.bfe_target,
    "embedding": lambda output: output.bfe_embedding,
    "estimator": lambda output: output.estimator_features,
}


def check_same_points(student: FlowPyramid, teacher: FlowPyramid) -> None:
    """Raises: ShapeError: the two networks did not sample the same points."""
    if student.pyramid is not None and student.pyramid is teacher.pyramid:
        return
    pairs = (
        (student.sample_indices1, teacher.sample_indices1),
        (student.sample_indices2, teacher.sample_indices2),
    )
    for own, other in pairs:
        for level, indices in own.items():
            if indices.shape != other[level].shape or not torch.equal(indices, other[level]):
                raise ShapeError(
                    f"student and teacher sampled different points at level {level}: give both the same clouds"
                )


def feature_width(variant: Variant, feature: Feature, level: int) -> int:
    """Channels of a named feature at a level."""
    return ESTIMATOR_FEATURES if feature == "estimator" else variant.levels[level].embedding


class FeatureDistance(nn.Module):
    """Distance of one named feature of student and teacher: the mean over levels, batch, channels and points.

    Where the widths differ, the student's features first pass an adapter (a linear map, trained with the
    student, in no exported file, counted nowhere).

    Args (of the call): two outputs on the same points.
    Returns: l1: mean |A s - t|; l2: mean (A s - t)^2; fvu: sum (A s - t)^2 / sum (t - mean t)^2, which is 0 for
        perfect, 1 for predicting the mean, and free of units.
    Raises: ShapeError: a feature is missing or empty, or the points differ.
    """

    def __init__(self, feature: Feature, levels: tuple[int, ...], norm: Norm, student: Variant, teacher: Variant):
        super().__init__()
        self.feature, self.levels, self.norm = feature, levels, norm
        self.adapters = nn.ModuleDict()
        for level in levels:
            own, other = feature_width(student, feature, level), feature_width(teacher, feature, level)
            if own != other:
                self.adapters[str(level)] = nn.Linear(own, other)

    def forward(self, student: FlowPyramid, teacher: FlowPyramid) -> Tensor:
        check_same_points(student, teacher)
        own, other = _FEATURES[self.feature](student), _FEATURES[self.feature](teacher)
        return torch.stack([self._at_level(level, own, other) for level in self.levels]).mean()

    def _at_level(self, level: int, own: list[Tensor], other: list[Tensor]) -> Tensor:
        if level >= len(own) or level >= len(other) or not own[level].numel() or not other[level].numel():
            raise ShapeError(f"hint {self.feature} at level {level} is missing or empty")
        target = other[level].detach()
        adapter = self.adapters[str(level)] if str(level) in self.adapters else nn.Identity()
        adapted = adapter(own[level])
        if adapted.shape != target.shape:
            raise ShapeError(
                f"hint {self.feature} at level {level}: student {tuple(adapted.shape)}, teacher {tuple(target.shape)}"
            )
        difference = adapted - target
        if self.norm == "l1":
            return difference.abs().mean()
        if self.norm == "l2":
            return difference.square().mean()
        return difference.square().sum() / (target - target.mean(dim=(0, 1))).square().sum()
