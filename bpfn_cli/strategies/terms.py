# SPDX-License-Identifier: MIT
"""The terms of a training step, and their records as numbers for the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bpfn_cli import distributed
from bpfn_cli.errors import NonFiniteError, printable
from bpfn_cli.losses import Measured
from bpfn_cli.losses.objective import gradient_norm
from bpfn_cli.structures import FlowBatch

Key = TypeVar("Key")


@dataclass(frozen=True)
class WeightedTerm:
    """A measured term and its weight."""

    measured: Measured
    weight: float

    @property
    def value(self) -> Tensor:
        return self.measured.value * self.weight


@dataclass(frozen=True)
class TermRecord:
    """A term of a step as numbers.

    Attributes: weighted: raw * weight. active: share of the points that contribute; None: all. levels: raw value by
        level. gradient_share: of the sum of all terms' gradient norms; None: not measured. figures: for the log.
    """

    weighted: float
    raw: float
    weight: float
    active: float | None
    gradient_share: float | None
    levels: dict[int, float]
    figures: dict[str, float]

    @classmethod
    def from_term(cls, term: WeightedTerm) -> TermRecord:
        """The numbers of a term; figures that are not finite are left out."""
        measured = term.measured
        active = None if measured.active is None else _number(measured.active)
        figures = {name: _number(figure) for name, figure in measured.figures.items()}
        return cls(
            weighted=_number(term.value),
            raw=_number(measured.value),
            weight=term.weight,
            active=active if active is not None and math.isfinite(active) else None,
            gradient_share=None,
            levels={level: _number(part) for level, part in measured.levels.items()},
            figures={name: figure for name, figure in figures.items() if math.isfinite(figure)},
        )


def merge_records(parts: Sequence[tuple[Mapping[str, WeightedTerm], int]]) -> dict[str, TermRecord]:
    """The records of a batch from the terms of its parts, each with its number of samples: means over samples; the
    weight is that of the last part."""
    merged = {}
    for name in parts[0][0]:
        records = [(TermRecord.from_term(terms[name]), size) for terms, size in parts if name in terms]
        active = [(record.active, size) for record, size in records if record.active is not None]
        merged[name] = TermRecord(
            weighted=_mean((record.weighted, size) for record, size in records),
            raw=_mean((record.raw, size) for record, size in records),
            weight=records[-1][0].weight,
            active=_mean(active) if active else None,
            gradient_share=None,
            levels=_means([(record.levels, size) for record, size in records]),
            figures=_means([(record.figures, size) for record, size in records]),
        )
    return merged


def gradient_shares(values: Mapping[str, Tensor], parameters: list[nn.Parameter]) -> dict[str, float]:
    """Each term's share of the sum of all terms' gradient norms."""
    norms = {name: gradient_norm(value, parameters) for name, value in values.items()}
    whole = sum(norms.values())
    return {name: norm / whole if whole > 0 else 0.0 for name, norm in norms.items()}


def check_finite(what: str, value: Tensor, batch: FlowBatch) -> None:
    """Raises: NonFiniteError: in all processes if the value is NaN or infinite in any; names it and the samples."""
    error = None
    if not torch.isfinite(value):
        names = printable(", ".join(batch.names))
        error = NonFiniteError(f"{what} is {value.item()} for the samples {names}; lower train.lr or leave them out")
    distributed.raise_any(error)


def _mean(values: Iterable[tuple[float, int]]) -> float:
    pairs = list(values)
    if len(pairs) == 1:
        return pairs[0][0]  # exact: no multiplication and division by the size
    return sum(value * size for value, size in pairs) / sum(size for _, size in pairs)


def _means(tables: list[tuple[dict[Key, float], int]]) -> dict[Key, float]:
    keys = dict.fromkeys(key for table, _ in tables for key in table)
    return {key: _mean((table[key], size) for table, size in tables if key in table) for key in keys}


def _number(value: Tensor | float) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)
