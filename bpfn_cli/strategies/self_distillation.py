# SPDX-License-Identifier: MIT
"""Self-distillation: the student's finest level teaches its coarser levels."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses.features import total
from bpfn_cli.losses.objective import SUPERVISED
from bpfn_cli.losses.supervised import SupervisedNorm, at_levels, errors_to_truth, finest_epe3d, measured
from bpfn_cli.losses.term import Measured, option
from bpfn_cli.strategies.base import Strategy, StrategyCard, Terms
from bpfn_cli.strategies.terms import WeightedTerm
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid

COARSER = range(1, LEVELS)


@settings
class SelfSettings:
    alpha: Annotated[float, Field(ge=0, le=1)] = option(0.1, "weight of the finest level in the loss of the coarser")
    feature_weight: Annotated[float, Field(ge=0)] = option(1e-6, "lambda, weight of the mean squared feature distance")
    start: Annotated[float, Field(ge=0, le=1)] = option(0.1, "share of the epochs before self-distillation starts")


def self_terms(
    output: FlowPyramid, batch: FlowBatch, alpha: float, norm: SupervisedNorm = "l2"
) -> tuple[Measured, Measured, Measured]:
    """Three terms: the supervised loss with (1 - alpha) at the coarser levels; alpha R(||s_l - sg(s_0)||) there; and
    the mean over them of mean (h_l - sg(h_0))^2. The last two have no gradient at level 0."""
    errors = errors_to_truth(output, batch, norm)
    kept = {i: error * (1 - alpha) if i else error for i, error in errors.items()}
    epe3d = finest_epe3d(errors_to_truth(output, batch), batch)
    finest = at_levels(output, output.flows[0].detach())
    distances = {i: alpha * torch.linalg.vector_norm(output.flows[i] - finest[i], dim=-1) for i in COARSER}
    features = at_levels(output, output.estimator_features[0].detach())
    squares: dict[int, Tensor] = {
        i: (output.estimator_features[i] - features[i]).square().mean() / len(COARSER) for i in COARSER
    }
    return measured(kept, figures={"epe3d": epe3d}), measured(distances), Measured(total(squares), "1", squares)


class SelfStrategy(Strategy):
    """Plain training in which the finest level's flow and features also teach the coarser levels."""

    card = StrategyCard(
        "the student's finest level teaches its coarser levels",
        "Be Your Own Teacher, Zhang et al., ICCV 2019 [values of a re-implementer: alpha 0.1, lambda 1e-6]",
        (
            "the exits are the levels of the pyramid: L = a_0 sum e_0 + sum_l a_l sum [(1 - alpha) e_l + alpha ||s_l - "
            "sg(s_0)||] + lambda mean (h_l - sg(h_0))^2",
            "starts after a tenth of the epochs, because the finest level is useless at first",
        ),
        "the finest level teaches the coarser ones",
    )
    settings = SelfSettings

    @property
    def extra_terms(self) -> tuple[tuple[str, str], ...]:
        options, start = self.options, f"starting after {self.options.start:.0%} of the epochs"
        return (
            ("self_flow", f"share {options.alpha:g} of the coarser levels, {start}"),
            ("self_features", f"weight {options.feature_weight:g}, {start}"),
        )

    def terms(self, batch: FlowBatch) -> Terms:
        output, terms = self.student_terms(batch)
        if self.epoch < self.options.start * self.epochs:
            return terms
        weight = terms[SUPERVISED].weight
        norm = self.objective.options.supervised_norm
        supervised, flow, features = self_terms(output, batch, self.options.alpha, norm)
        return {
            **terms,
            SUPERVISED: WeightedTerm(supervised, weight),
            "self_flow": WeightedTerm(flow, weight),
            "self_features": WeightedTerm(features, weight * self.options.feature_weight),
        }
