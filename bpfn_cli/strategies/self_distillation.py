# SPDX-License-Identifier: MIT
"""Self-distillation: the student's finest level teaches its coarser levels."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from bpfn_cli.config import settings
from bpfn_cli.errors import UsageError
from bpfn_cli.losses.features import total
from bpfn_cli.losses.objective import SUPERVISED, gradient_norm, limited_change
from bpfn_cli.losses.supervised import SupervisedNorm, at_levels, errors_to_truth, finest_epe3d, measured
from bpfn_cli.losses.term import Measured, option
from bpfn_cli.strategies.base import Strategy, StrategyCard, Terms
from bpfn_cli.strategies.terms import WeightedTerm
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid

COARSER = range(1, LEVELS)


@settings
class SelfSettings:
    alpha: Annotated[float, Field(ge=0, le=1)] = option(0.1, "weight of the finest level in the loss of the coarser")
    feature_weight: Annotated[float, Field(ge=0)] | None = option(
        None,
        "lambda, fixed weight of the summed squared feature distance (the paper's form: 1e-6); null: such that its "
        "gradient is objective.rho times the supervised one, set again every objective.recalibrate_every steps",
    )
    start: Annotated[float, Field(ge=0, le=1)] = option(0.1, "share of the epochs before self-distillation starts")


def self_terms(
    output: FlowPyramid, batch: FlowBatch, alpha: float, norm: SupervisedNorm = "l2"
) -> tuple[Measured, Measured, Measured]:
    """Three terms: the supervised loss with (1 - alpha) at the coarser levels; alpha R(||s_l - sg(s_0)||) there; and
    the sum over them, points and channels of (h_l - sg(h_0))^2, mean over the batch. The last two have no gradient at
    level 0."""
    errors = errors_to_truth(output, batch, norm)
    kept = {i: error * (1 - alpha) if i else error for i, error in errors.items()}
    epe3d = finest_epe3d(errors if norm == "l2" else errors_to_truth(output, batch), batch)
    finest = at_levels(output, output.flows[0].detach())
    distances = {i: alpha * torch.linalg.vector_norm(output.flows[i] - finest[i], dim=-1) for i in COARSER}
    features = at_levels(output, output.estimator_features[0].detach())
    squares: dict[int, Tensor] = {
        i: (output.estimator_features[i] - features[i]).square().sum(dim=(1, 2)).mean() for i in COARSER
    }
    return measured(kept, figures={"epe3d": epe3d}), measured(distances), Measured(total(squares), "1", squares)


class FeatureScale(nn.Module):
    """The weight of the feature term relative to that of the supervised loss.

    Attributes: kappa: scalar buffer. calibration: 0 until it is set, then 1 + the step at which it was set last.
    """

    kappa: Tensor
    calibration: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kappa", torch.zeros(()))
        self.register_buffer("calibration", torch.tensor(0))

    def is_due(self, step: int, every: int) -> bool:
        """Whether kappa must be set, or set again after `every` steps (0: never)."""
        last = int(self.calibration)
        return last == 0 or 0 < every <= step + 1 - last

    def calibrate(self, wanted: float, step: int) -> None:
        """Set kappa; after the first time it changes by a limited factor."""
        self.kappa.fill_(limited_change(float(self.kappa), wanted))
        self.calibration.fill_(step + 1)


class SelfStrategy(Strategy):
    """Plain training in which the finest level's flow and features also teach the coarser levels."""

    card = StrategyCard(
        "the student's finest level teaches its coarser levels",
        "Be Your Own Teacher, Zhang et al., ICCV 2019 [alpha 0.1 and lambda 1e-6 from a third-party implementation]",
        (
            "the exits are the levels of the pyramid: L = a_0 sum e_0 + sum_l a_l sum [(1 - alpha) e_l + alpha ||s_l - "
            "sg(s_0)||] + kappa sum (h_l - sg(h_0))^2",
            "kappa sets the gradient of the features to rho times the supervised one; the paper's form is a fixed "
            "lambda: strategy.self.feature_weight: 1e-6",
            "starts after a tenth of the epochs, because the finest level is useless at first",
        ),
        "the finest level teaches the coarser ones",
    )
    settings = SelfSettings
    stateful = (*Strategy.stateful, "scale")

    def set_up(self) -> None:
        widths = {level.estimator_features for level in self.student.variant.levels[:LEVELS]}
        if len(widths) > 1:
            problem = "its features are compared between levels, but widths.estimator_features differ"
            raise UsageError(f"strategy self: {problem} ({', '.join(map(str, sorted(widths)))}); make them equal")
        self.scale = FeatureScale().to(self.device)

    def modules(self) -> list[nn.Module]:
        return [*super().modules(), self.scale]

    @property
    def extra_terms(self) -> tuple[tuple[str, str], ...]:
        options, start = self.options, f"starting after {self.options.start:.0%} of the epochs"
        return (
            ("self_flow", f"share {options.alpha:g} of the coarser levels, {start}"),
            ("self_features", f"{self._weighting()}, {start}"),
        )

    def _weighting(self) -> str:
        if self.options.feature_weight is None:
            return f"gradient {self.objective.options.rho:g} times the supervised one"
        return f"weight {self.options.feature_weight:g}"

    def terms(self, batch: FlowBatch) -> Terms:
        output, terms = self.student_terms(batch)
        if self.epoch < round(self.options.start * self.epochs, 6):
            return terms
        weight = terms[SUPERVISED].weight
        norm = self.objective.options.supervised_norm
        supervised, flow, features = self_terms(output, batch, self.options.alpha, norm)
        return {
            **terms,
            SUPERVISED: WeightedTerm(supervised, weight),
            "self_flow": WeightedTerm(flow, weight),
            "self_features": WeightedTerm(features, weight * self._feature_weight(supervised, features)),
        }

    def _feature_weight(self, supervised: Measured, features: Measured) -> float:
        """The weight of the feature term relative to the supervised loss; kappa is set first when it is time."""
        if self.options.feature_weight is not None:
            return self.options.feature_weight
        options = self.objective.options
        if self.scale.is_due(self.steps, options.recalibrate_every):
            parameters = list(self.student.parameters())
            target, norm = (gradient_norm(term.value, parameters) for term in (supervised, features))
            wanted = options.rho * target / norm if norm > 0 else math.inf
            if math.isfinite(wanted):  # the step reports a gradient that is not
                self.scale.calibrate(wanted, self.steps)
        return float(self.scale.kappa)
