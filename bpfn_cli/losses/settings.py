# SPDX-License-Identifier: MIT
"""The recipe keys below `objective`: weights of the terms, and the options of every loss."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bpfn_cli.config import settings
from bpfn_cli.losses.registry import LOSSES
from bpfn_cli.losses.supervised import SupervisedNorm

Weight = Annotated[float, Field(ge=0, le=1e6)]


@settings
class WeightSettings:
    """The weights of the terms.

    gamma: share of the teacher. Output terms give (1 - gamma) L_gt + gamma L_kd, hint terms L_gt + gamma kappa L_hint;
        several output terms share gamma equally. Without labels there is no L_gt, and gamma is taken as 1.
    rho: kappa is set so that |grad gamma kappa L_hint| = rho |grad w_gt L_gt|; several hint terms share rho. Without
        labels, the gradient of output terms, or else of terms that need no teacher, takes the place of L_gt's.
    calibration_step: the step at which kappa is set; before it hint terms have weight 0.
    recalibrate_every: number of steps after which kappa is set again; 0: never. A loss that shrinks faster or more
        slowly than the supervised one keeps its share that way.
    stage1_epochs: number of epochs at the start in which only hint terms are trained; 0: none.
    supervised_norm: norm of the error in the supervised loss: `l2`, unsquared, as published; `smooth_l1`, squared below
        1 m, summed over coordinates.
    beta: share that hints leave to the other terms: beta [(1 - gamma) L_gt + gamma L_kd] + (1 - beta) L_hint, as in the
        compression reports (0.8); hints are then not scaled by kappa. null: hints are added, scaled by kappa.
    w_gt, w_kd, w_hint: explicit weights instead of those from gamma (w_hint is then not scaled by kappa).
    own: options of your own losses, by `module:Class`.
    """

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.3
    rho: Annotated[float, Field(gt=0, le=10)] = 0.3
    calibration_step: Annotated[int, Field(ge=0, le=10**6)] = 20
    recalibrate_every: Annotated[int, Field(ge=0, le=10**6)] = 100
    stage1_epochs: Annotated[int, Field(ge=0, le=10**6)] = 0
    supervised_norm: SupervisedNorm = "l2"
    beta: Annotated[float, Field(ge=0, le=1)] | None = None
    w_gt: Weight | None = None
    w_kd: Weight | None = None
    w_hint: Weight | None = None
    own: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def scales_hints(self) -> bool:
        """Whether kappa sets the weight of hints."""
        return self.w_hint is None and self.beta is None


def option_key(name: str) -> str:
    """The key of a loss's options in `ObjectiveSettings`: `gan_compression` for gan-compression."""
    return name.replace("-", "_")


if TYPE_CHECKING:

    class ObjectiveSettings(WeightSettings):
        """The weights, and the options of every loss in `LOSSES` under its name."""
else:
    _SETTINGS = {option_key(name): kind.settings for name, kind in LOSSES.items()}
    _body = {"__annotations__": _SETTINGS, "__module__": __name__, "__doc__": "The weights and all losses' options."}
    _body |= {key: field(default_factory=kind) for key, kind in _SETTINGS.items()}
    ObjectiveSettings = settings(type("ObjectiveSettings", (WeightSettings,), _body))
