# SPDX-License-Identifier: MIT
"""Network augmentation: the student is also trained as part of wider networks that share its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from bpfn_cli.config import settings
from bpfn_cli.errors import UsageError
from bpfn_cli.losses.objective import SUPERVISED
from bpfn_cli.losses.supervised import errors_to_truth, measured
from bpfn_cli.losses.term import option
from bpfn_cli.models import BiPointFlowNet, Variant, build_model
from bpfn_cli.models.slicing import slice_rows
from bpfn_cli.ops import matrix_precision
from bpfn_cli.rng import keyed_generator
from bpfn_cli.strategies.base import Strategy, StrategyCard, Terms
from bpfn_cli.strategies.terms import WeightedTerm
from bpfn_cli.structures import FlowBatch


@settings
class NetaugSettings:
    alpha: Annotated[float, Field(ge=0)] = option(1.0, "weight of the wider network's loss")
    choices: Annotated[int, Field(ge=1, le=64)] = option(4, "number of wider networks to draw from, evenly spaced")
    until: Annotated[float, Field(ge=0, le=1)] = option(0.5, "share of the epochs after which they are dropped")


def widened(student: Variant, largest: Variant, share: float) -> Variant:
    """The student with its sizes increased by `share` towards those of `largest`; the other settings are its own."""

    levels = []
    for index, (own, other) in enumerate(zip(student.levels, largest.levels, strict=True)):
        grown = ["width", "expanded", "embedding", *([] if student.separable.at(index) else ["c_mid"])]
        gaps = {name: max(0, getattr(other, name) - getattr(own, name)) for name in grown}
        sizes = {name: getattr(own, name) + round(share * gap) for name, gap in gaps.items()}
        if student.separable.at(index):  # its maps have a group for each WeightNet output
            sizes = {name: size - (size - getattr(own, name)) % own.c_mid for name, size in sizes.items()}
        levels.append(replace(own, **sizes))
    first, second, third, fourth, fifth = levels
    return replace(student, name=f"{student.name}+{share:g}", levels=(first, second, third, fourth, fifth))


@dataclass(frozen=True)
class _Wider:
    """A wider network: its structure without weights, and for each weight its places in that of the widest network."""

    structure: BiPointFlowNet
    rows: dict[str, Tensor]

    @classmethod
    def inside(cls, variant: Variant, widest: BiPointFlowNet) -> _Wider:
        with torch.device("meta"):
            structure = type(widest)(variant, widest.num_points)
        return cls(structure, _rows_of(structure, widest))


class NetaugStrategy(Strategy):
    """Plain training plus, in the first half, the loss of a random wider network that contains the student."""

    card = StrategyCard(
        "the student is trained alone and as part of a random wider network",
        "NetAug, Cai et al., ICLR 2022 [checked against the authors' code]: L(base) + alpha L([base, "
        "augmented]), alpha 1",
        (
            "the widest network has the teacher's widths and WeightNet outputs; PointConv's inputs, flattened as "
            "c * C_mid + w, are cut in both factors",
            "wider networks use their own batch statistics and do not change the student's, so that nothing has to be "
            "re-estimated afterwards",
            "channels are not sorted by magnitude every epoch: narrower choices are prefixes of wider ones, which "
            "orders the channels by how often they are used",
            "wider networks learn from the truth alone, the student also from --loss",
        ),
        "the student is also trained as part of wider networks",
    )
    settings = NetaugSettings
    stateful = (*Strategy.stateful, "widest")

    def set_up(self) -> None:
        student, options = self.student, self.options
        if self.largest is None:
            raise UsageError("strategy netaug needs a larger variant to grow towards: set recipe key teacher")
        shares = [(index + 1) / options.choices for index in range(options.choices)]
        variants = [widened(student.variant, self.largest, share) for share in shares]
        if variants[-1].levels == student.variant.levels:
            problem = f"{self.largest.name} is nowhere wider than {student.variant.name}"
            raise UsageError(f"strategy netaug: {problem}; choose another --variant or recipe key teacher")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.own_seed("widest"))
            self.widest = build_model(variants[-1], student.num_points).to(self.device)
        self.rows = _rows_of(student, self.widest)
        self.wider = [_Wider.inside(variant, self.widest) for variant in variants]

    def busiest_epoch(self, epochs: int) -> int:
        return 0

    @property
    def extra_terms(self) -> tuple[tuple[str, str], ...]:
        widest = self.wider[-1].structure.variant.levels[0]
        weight = f"weight {self.options.alpha:g} in the first {self.options.until:.0%} of the epochs"
        return (("augmented", f"{weight}, one of {len(self.wider)} networks (width up to {widest.width} at level 0)"),)

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        return [*super().parameter_groups(), list(self.widest.parameters())]

    def terms(self, batch: FlowBatch) -> Terms:
        output, terms = self.student_terms(batch)
        if self.epoch >= round(self.options.until * self.epochs, 6) or self.options.alpha == 0:
            return terms
        wider = self.wider[int(keyed_generator("netaug", self.seed, self.steps).integers(len(self.wider)))]
        structure, weights = wider.structure.train(), self.weights_of(wider)
        with matrix_precision(self.precision):
            wide = functional_call(structure, weights, (batch.pc1, batch.pc2), {"pyramid": output.pyramid})
        weight = self.options.alpha * terms[SUPERVISED].weight
        errors = errors_to_truth(wide, batch, self.objective.options.supervised_norm)
        return terms | {"augmented": WeightedTerm(measured(errors), weight)}

    def weights_of(self, wider: _Wider) -> dict[str, Tensor]:
        """Weights of a wider network: the student's where it has them, otherwise the widest's; initial statistics."""
        own = dict(self.student.named_parameters())
        found = {}
        shapes = {name: parameter.shape for name, parameter in wider.structure.named_parameters()}
        for name, parameter in self.widest.named_parameters():
            whole = parameter.flatten().index_copy(0, self.rows[name], own[name].flatten())
            found[name] = whole.index_select(0, wider.rows[name]).view(shapes[name])
        for name, buffer in wider.structure.named_buffers():
            fill = torch.ones if name.endswith("running_var") else torch.zeros
            found[name] = fill(buffer.shape, dtype=buffer.dtype, device=parameter.device)
        return found


def _rows_of(part: BiPointFlowNet, whole: BiPointFlowNet) -> dict[str, Tensor]:
    """For each weight of `part`, flattened: its indices in the flattened weight of `whole`."""
    shapes = {name: parameter.shape for name, parameter in part.named_parameters()}
    return {
        name: slice_rows(name, parameter.shape, shapes[name], part.variant, whole.variant).to(parameter.device)
        for name, parameter in whole.named_parameters()
    }
