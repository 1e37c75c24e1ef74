# SPDX-License-Identifier: MIT
"""The sizes of a network that pruning may change, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import LEVELS

LEAST_WIDTH = 4
LEAST_C_MID = 2
LEAST_NEIGHBORS = 4


@dataclass(frozen=True)
class Size:
    """One size: a field of a `Level`, or, with level None, a number of neighbors of the `Variant`.

    Attributes: most: its value in the teacher. least: its smallest one. step: it changes by multiples of this.
    """

    field: str
    level: int | None
    most: int
    least: int
    step: int = 1

    def of(self, variant: Variant) -> int:
        """Its value in a network."""
        value: int = getattr(variant if self.level is None else variant.levels[self.level], self.field)
        return value

    def change(self, variant: Variant, value: int) -> Variant:
        """The network with another value."""
        if self.level is None:
            return replace(variant, **{self.field: value})  # type: ignore[arg-type]
        levels = list(variant.levels)
        levels[self.level] = replace(levels[self.level], **{self.field: value})
        return replace(variant, levels=tuple(levels))  # type: ignore[arg-type]

    def at(self, share: float) -> int:
        """The value nearest to this share of the teacher's."""
        return min(self.most, max(self.least, round(self.most * share / self.step) * self.step))


def sizes_of(teacher: Variant) -> list[Size]:
    """All sizes that can be smaller than in the teacher."""
    return [size for size in _all(teacher) if size.least < size.most]


def _all(teacher: Variant) -> Iterator[Size]:
    separable = teacher.separable
    for index, level in enumerate(teacher.levels):
        # A separable PointConv has a multiple of c_mid outputs.
        for field, fixed in (("width", index in separable.encoder), ("estimator", index in separable.estimators)):
            step = level.c_mid if fixed else 1
            if field == "width" or index < LEVELS:
                yield Size(field, index, getattr(level, field), max(step, LEAST_WIDTH), step)
        if index < LEVELS:
            for field in ("expanded", "context", "embedding", "estimator_features"):
                yield Size(field, index, getattr(level, field), LEAST_WIDTH)
        if not separable.at(index):
            yield Size("c_mid", index, level.c_mid, LEAST_C_MID)
    # Teacher and student share the other neighbors, which cost few MACs.
    yield Size("embedding_neighbors", None, teacher.embedding_neighbors, LEAST_NEIGHBORS)
