# SPDX-License-Identifier: MIT
"""The base class of all distillation losses, and the checks and helpers that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.errors import ShapeError
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import BACKWARD_FIELD, LEVELS, VALUE_FIELDS, FlowBatch, FlowPyramid


def _different(levels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(levels)) < len(levels):
        raise ValueError("duplicate level")
    return levels


Level = Annotated[int, Field(ge=0, lt=LEVELS)]
Levels = Annotated[tuple[Level, ...], Field(min_length=1, max_length=LEVELS), AfterValidator(_different)]
ALL_LEVELS = tuple(range(LEVELS))
# The fields of a `FlowPyramid`.
ALL_FIELDS = (*VALUE_FIELDS, "bfe_neighbors")
# Those that every pass of a network gives.
USUAL_FIELDS = tuple(name for name in ALL_FIELDS if name != BACKWARD_FIELD)

# Passes of the fixed teacher over the training scenes: its outputs with their batches. Each call is one pass.
TeacherPasses = Callable[[], Iterator[tuple[FlowPyramid, FlowBatch]]]


def option(default: Any, meaning: str) -> Any:
    """A field of a loss's settings and its meaning, with the unit; the card prints both."""
    return Field(default=default, description=meaning)


def levels_option() -> Any:
    """The option `levels`: all by default."""
    return option(ALL_LEVELS, "levels to compare; 0 is the finest")


@dataclass(frozen=True)
class Card:
    """The description of a loss that `bpfn losses NAME` prints.

    Attributes:
        compares: what is compared, in a few words. formula: the value before weighting. source: paper and equation.
        deviations: differences from the paper, and why. adapters: layers that are needed only in training, and when.
        never_zero: why the value is not zero for a student that equals its teacher; empty if it is.
        meaning: what the student learns from, as a phrase for the legend of reports; empty: `compares`.
    """

    compares: str
    formula: str
    source: str
    deviations: tuple[str, ...] = ()
    adapters: str = "none"
    never_zero: str = ""
    meaning: str = ""


@settings
class NoOptions:
    """A loss without options."""


@dataclass(frozen=True)
class Measured:
    """The value of a loss, with details for the log.

    Attributes: value: scalar, before weighting. unit: its unit. levels: level -> its part, if the value is a sum over
        levels. active: share of the points (or samples) that contribute; None: all. figures: other numbers.
    """

    value: Tensor
    unit: str = ""
    levels: Mapping[int, Tensor] = field(default_factory=dict)
    active: Tensor | None = None
    figures: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def sum_of(cls, levels: Mapping[int, Tensor], unit: str, **details: Any) -> Measured:
        """The value that is the sum of its parts by level."""
        return cls(total(levels), unit, levels, **details)


def total(levels: Mapping[int, Tensor]) -> Tensor:
    """The sum of the parts of all levels."""
    return torch.stack(list(levels.values())).sum()


class HandValue(NamedTuple):
    """A value of a loss's formula, and the number calculated by hand; `bpfn losses --check` compares them."""

    what: str
    computed: float
    expected: float


class DistillationLoss(nn.Module):
    """Base of all losses; docs/extending.md shows how to write one.

    Called with (student output, teacher output, batch). Both outputs are on the points of the batch, and the teacher's
    is detached; one of a loss that needs no teacher is None if there is none. Returns a `Measured`, or only its scalar.

    Class attributes:
        card: its description. settings: dataclass of its options.
        kind: "output": replaces a share gamma of the supervised loss; "hint": is added to it, scaled.
        exact_gradient_options: options for which the gradient is that of the value; the gradient check uses them.
        needs_truth: whether it uses the true flow of the batch. An instance may set it, by its options.
        needs_teacher: whether it uses the teacher; a loss that needs neither determines the flow by itself.
        needs_whole_batches: whether a part of a batch gives other values than the whole one. An instance may set it.
        uses: the fields of the teacher's output that the loss uses, beside the features that its modules compare.
    """

    card: ClassVar[Card]
    settings: ClassVar[type] = NoOptions
    kind: ClassVar[Literal["output", "hint"]] = "hint"
    exact_gradient_options: ClassVar[Mapping[str, Any]] = {}
    needs_truth: bool = False
    needs_teacher: ClassVar[bool] = True
    needs_whole_batches: bool = False
    uses: ClassVar[tuple[str, ...]] = USUAL_FIELDS

    def __init__(self, options: Any, student: Variant, teacher: Variant):
        super().__init__()
        self.options = options

    def forward(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> Measured | Tensor:
        raise NotImplementedError

    @classmethod
    def hand_values(cls) -> Iterator[HandValue]:
        """Values of the formula with numbers calculated by hand."""
        return iter(())

    def reads(self) -> frozenset[str]:
        """The fields of the teacher's output that a teacher cache must store."""
        return frozenset(self.uses).union(module.field for module in self.modules() if isinstance(module, HintModule))

    def adapters(self) -> list[nn.Parameter]:
        """The parameters that the student's optimizer trains too; they are never exported."""
        return list(self.parameters())

    def prepare(self, passes: TeacherPasses) -> None:
        """Measure the teacher on the training scenes, before the first step."""

    def needs_preparation(self) -> bool:
        """Whether `prepare` does anything."""
        return type(self).prepare is not DistillationLoss.prepare

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch; `epoch` counts from 0."""

    def before_step(self, student: FlowPyramid, teacher: FlowPyramid, batch: FlowBatch) -> None:
        """Called before each step, to train parts with their own optimizer. Both outputs are detached."""

    def hints(self) -> Iterator[tuple[str, int, int, int]]:
        """(feature, level, student's channels, teacher's channels) of each feature compared, for the plan."""
        for module in self.modules():
            if isinstance(module, HintModule):
                for level, (own, other) in module.widths.items():
                    yield module.feature, level, own, other


class HintModule(nn.Module):
    """A part of a loss that compares a named feature, in a field of the output; channels of student and teacher."""

    feature: str
    field: str
    widths: Mapping[int, tuple[int, int]]


def check_same_points(student: FlowPyramid, teacher: FlowPyramid) -> None:
    """Raises: ShapeError: the two networks did not sample the same points."""
    if student.pyramid is not None and student.pyramid is teacher.pyramid:
        return
    for name in ("sample_indices1", "sample_indices2"):
        own, other = getattr(student, name), getattr(teacher, name)
        if differ := [level for level, indices in own.items() if not torch.equal(indices, other[level])]:
            where = f"different points at level {differ[0]}"
            raise ShapeError(f"student and teacher sampled {where}: give both the same clouds")


def check_flows(student: FlowPyramid, teacher: FlowPyramid, levels: tuple[int, ...]) -> None:
    """Raises: ShapeError: other points, or a flow that is missing, empty or of another shape."""
    check_same_points(student, teacher)
    for level in levels:
        own, other = (level_of(output.flows, "flow", level) for output in (student, teacher))
        check_shapes("flow", level, own, other)


def check_shapes(what: str, level: int, own: Tensor, other: Tensor) -> None:
    """Raises: ShapeError: the shapes differ."""
    if own.shape != other.shape:
        raise ShapeError(f"{what} at level {level}: student {tuple(own.shape)}, teacher {tuple(other.shape)}")


def level_of(tensors: list[Tensor], what: str, level: int) -> Tensor:
    """One level of a feature. Raises: ShapeError: it is missing or empty."""
    if level >= len(tensors) or not tensors[level].numel():
        raise ShapeError(f"hint {what} at level {level} is missing or empty")
    return tensors[level]


def detached(output: FlowPyramid) -> FlowPyramid:
    """The same output without gradients."""
    return output.mapped(lambda level, tensor: tensor.detach())


def spread_rows(output: FlowPyramid, level: int, count: int) -> Tensor:
    """(B, M) indices of at most `count` source points of a level, spread evenly: its farthest point samples.

    Nothing is drawn at random: levels below the finest are in the order in which they were sampled.
    """
    if level == 0:
        return output.sample_indices1[1][:, :count]
    batch, points, _ = output.flows[level].shape
    return torch.arange(min(count, points), device=output.flows[level].device).expand(batch, -1)


def quantile(values: Tensor, share: float) -> Tensor:
    """A quantile of a vector; `torch.quantile` refuses more than 2^24 values."""
    ranked = values.sort().values
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
