# SPDX-License-Identifier: MIT
"""What every distillation loss is: a module with a card, options, and the checks that all share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.errors import ShapeError
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid


def _different(levels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(levels)) < len(levels):
        raise ValueError("a level stands twice")
    return levels


Level = Annotated[int, Field(ge=0, lt=LEVELS)]
Levels = Annotated[tuple[Level, ...], Field(min_length=1, max_length=LEVELS), AfterValidator(_different)]
ALL_LEVELS = tuple(range(LEVELS))
ALL_FIELDS = frozenset(
    ("flows", "bfe_source", "bfe_target", "bfe_embedding", "estimator_features", "bfe_neighbors")
)  # of a `FlowPyramid`

# Passes of the fixed teacher over the training scenes: outputs with their batches. Each call is one pass.
TeacherPasses = Callable[[], Iterator[tuple[FlowPyramid, FlowBatch]]]


def option(default: Any, meaning: str) -> Any:
    """A field of a loss's settings with what it means, unit included; the card prints both."""
    return Field(default=default, description=meaning)


@dataclass(frozen=True)
class Card:
    """What `bpfn losses NAME` prints.

    Attributes:
        compares: in a few words. formula: the value before weighting.
        source: paper and equation. deviations: where we do otherwise, and why.
        adapters: layers that only training needs, and when.
        never_zero: why the value is not zero for a student that equals its teacher; empty where it is.
    """

    compares: str
    formula: str
    source: str
    deviations: tuple[str, ...] = ()
    adapters: str = "none"
    never_zero: str = ""


@settings
class NoOptions:
    """A loss without options."""


@dataclass(frozen=True)
class Measured:
    """The value of a loss, and what is worth knowing of it.

    Attributes:
        value: scalar, before weighting. unit: its unit.
        levels: level -> its part of the value, where it is a sum over levels.
        active: share of the points (or samples) that take part; None: all do.
        figures: others for the metrics log.
    """

    value: Tensor
    unit: str = ""
    levels: Mapping[int, Tensor] = field(default_factory=dict)
    active: Tensor | None = None
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class DistillationLoss(nn.Module):
    """Base of all losses. A loss of one's own derives from it; see docs/losses.md.

    Called with (student output, teacher output, batch); both outputs are on the points of the batch, and the teacher's
    is detached. Returns a `Measured`, or just its scalar.

    Class attributes:
        card: what it is. settings: dataclass of its options.
        kind: "output" for what takes over a share gamma of the supervised loss; "hint" for what is added to it, scaled.
    """

    card: ClassVar[Card]
    settings: ClassVar[type] = NoOptions
    kind: ClassVar[Literal["output", "hint"]] = "hint"

    def __init__(self, options: Any, student: Variant, teacher: Variant):
        super().__init__()
        self.options = options

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured | Tensor:
        raise NotImplementedError

    def reads(self) -> frozenset[str]:
        """The fields of the teacher's output that it looks at, for the teacher cache: all, where it does not say."""
        return ALL_FIELDS

    def adapters(self) -> list[nn.Parameter]:
        """What is trained together with the student, by its optimizer, and never exported."""
        return list(self.parameters())

    def prepare(self, passes: TeacherPasses) -> None:
        """Before the first step: learn what must be known of the teacher on the training scenes."""

    def needs_preparation(self) -> bool:
        """Whether `prepare` does anything."""
        return type(self).prepare is not DistillationLoss.prepare

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch; `epoch` counts from 0."""

    def before_step(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> None:
        """Before each step: train what has an optimizer of its own. Both outputs are detached."""

    def hints(self) -> Iterator[tuple[str, int, int, int]]:
        """(feature, level, student's channels, teacher's channels) of each feature compared, for the plan."""
        return iter(())


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


def check_flows(student: FlowPyramid, teacher: FlowPyramid, levels: tuple[int, ...]) -> None:
    """Raises: ShapeError: other points, or a flow that is missing, empty or of another shape."""
    check_same_points(student, teacher)
    for level in levels:
        own, other = (level_of(output.flows, "flow", level) for output in (student, teacher))
        if own.shape != other.shape:
            raise ShapeError(f"flow at level {level}: student {tuple(own.shape)}, teacher {tuple(other.shape)}")


def level_of(tensors: list[Tensor], what: str, level: int) -> Tensor:
    """One level of a feature. Raises: ShapeError: it is missing or empty."""
    if level >= len(tensors) or not tensors[level].numel():
        raise ShapeError(f"hint {what} at level {level} is missing or empty")
    return tensors[level]


def detached(output: FlowPyramid) -> FlowPyramid:
    """The same output, through which no gradient flows."""
    return output.mapped(lambda level, tensor: tensor.detach())


def spread_rows(output: FlowPyramid, level: int, count: int) -> Tensor:
    """(B, M) indices of at most `count` source points of a level, spread evenly: its farthest point samples.

    No random draw: levels below the finest are in the order in which they were sampled.
    """
    points = output.flows[level].shape[1]
    if level == 0:
        return output.sample_indices1[1][:, :count]
    batch = output.flows[level].shape[0]
    return torch.arange(min(count, points), device=output.flows[level].device).expand(batch, -1)
