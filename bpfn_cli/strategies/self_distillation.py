# SPDX-License-Identifier: MIT
"""Self-distillation: the finest level of the student teaches its coarser ones."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bpfn_cli.config import settings
from bpfn_cli.losses.features import total
from bpfn_cli.losses.objective import SUPERVISED
from bpfn_cli.losses.supervised import at_levels, errors_to_truth, finest_epe3d, measured
from bpfn_cli.losses.term import Measured, option
from bpfn_cli.strategies.plain import PlainStrategy, StrategyCard, Weighed
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid

COARSER = range(1, LEVELS)


@settings
class SelfSettings:
    alpha: Annotated[float, Field(ge=0, le=1)] = option(0.1, "share of the finest level in the loss of the coarser")
    feature_weight: Annotated[float, Field(ge=0)] = option(1e-6, "lambda, of the mean squared features apart")
    start: Annotated[float, Field(ge=0, le=1)] = option(0.1, "share of the epochs before the finest level teaches")


def self_terms(output: FlowPyramid, batch: FlowBatch, alpha: float) -> tuple[Measured, Measured, Measured]:
    """The supervised loss with (1 - alpha) at the coarser levels; alpha R(||s_l - sg(s_0)||) there; and the mean over
    them of mean (h_l - sg(h_0))^2. Level 0 gets no gradient from the last two."""
    errors = errors_to_truth(output, batch)
    kept = {i: error * (1 - alpha) if i else error for i, error in errors.items()}
    epe3d = finest_epe3d(errors, batch)
    finest = at_levels(output, output.flows[0].detach())
    apart = {i: alpha * torch.linalg.vector_norm(output.flows[i] - finest[i], dim=-1) for i in COARSER}
    features = at_levels(output, output.estimator_features[0].detach())
    squares: dict[int, Tensor] = {
        i: (output.estimator_features[i] - features[i]).square().mean() / len(COARSER) for i in COARSER
    }
    return measured(kept, figures={"epe3d": epe3d}), measured(apart), Measured(total(squares), "1", squares)


class SelfStrategy(PlainStrategy):
    """`plain`, and the finest level's flow and features guide the coarser levels."""

    card = StrategyCard(
        "the student's finest level teaches its coarser levels",
        "Be Your Own Teacher, Zhang et al., ICCV 2019 [values of a re-implementer: alpha 0.1, lambda 1e-6]",
        (
            "exits are the levels of the pyramid: L = a_0 sum e_0 + sum_l a_l sum [(1 - alpha) e_l + alpha ||s_l - "
            "sg(s_0)||] + lambda mean (h_l - sg(h_0))^2",
            "starts after a tenth of the epochs, since the finest level is worthless at first",
        ),
    )
    settings = SelfSettings

    @property
    def adds(self) -> tuple[tuple[str, str], ...]:
        options, start = self.options, f"from {self.options.start:.0%} of the epochs on"
        return ("self_flow", f"share {options.alpha:g} of the coarser levels, {start}"), (
            "self_features",
            f"weight {options.feature_weight:g}, {start}",
        )

    def terms(self, batch: FlowBatch) -> dict[str, Weighed]:
        output = self.run(self.student, batch)
        found = self.weigh(self.objective, output, self.guide(batch, output), batch)
        if self.epoch < self.options.start * self.epochs:
            return found
        weight = found[SUPERVISED].weight
        supervised, flow, features = self_terms(output, batch, self.options.alpha)
        return {
            **found,
            SUPERVISED: Weighed(supervised, weight),
            "self_flow": Weighed(flow, weight),
            "self_features": Weighed(features, weight * self.options.feature_weight),
        }
