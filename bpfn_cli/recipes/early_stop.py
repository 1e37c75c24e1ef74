# SPDX-License-Identifier: MIT
"""Early stopping of distillation: when the teacher's influence ends."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from bpfn_cli import choices
from bpfn_cli.config import settings


@settings
class EarlyStopSettings:
    """When the teacher's influence ends.

    kind: never; hard: gamma drops to 0 after `at`; linear: gamma falls linearly to 0 until `at`; auto: gamma drops to 0
    once the student has matched its teacher on the held-out scenes in `checks` validations in a row.
    at: share of the epochs after which `hard` and `linear` have ended. checks: validations in a row that `auto` needs.

    Source: Cho & Hariharan, ICCV 2019; `auto` is our own, for students that overtake their teacher.
    """

    kind: choices.EarlyStop = "never"
    at: Annotated[float, Field(ge=0, le=1)] = 0.5
    checks: Annotated[int, Field(ge=1, le=1000)] = 3


class EarlyStop:
    """The factor on gamma in each epoch. good: consecutive validations in which the student matched its teacher."""

    def __init__(self, options: EarlyStopSettings, teacher_epe3d: float | None = None):
        self.options, self.teacher_epe3d, self.good = options, teacher_epe3d, 0

    def share(self, epoch: int, epochs: int) -> float:
        """The factor on gamma in an epoch, counted from 0."""
        kind, stop = self.options.kind, round(self.options.at * epochs, 6)  # 0.55 * 100 is above 55
        if kind == "hard":
            return 1.0 if epoch < stop else 0.0
        if kind == "linear":
            return max(0.0, 1 - epoch / stop) if stop else 0.0
        return 0.0 if kind == "auto" and self.good >= self.options.checks else 1.0

    def observe(self, student_epe3d: float) -> None:
        """Record a validation. Once `auto` has stopped, it stays stopped."""
        if self.teacher_epe3d is not None and self.good < self.options.checks:
            self.good = self.good + 1 if student_epe3d <= self.teacher_epe3d else 0

    def state_dict(self) -> dict[str, Any]:
        return {"good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.good = state["good"]
