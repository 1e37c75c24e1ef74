# SPDX-License-Identifier: MIT
"""When a student stops listening to its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from bpfn_cli.config import settings


@settings
class EarlyStopSettings:
    """kind: never; hard: gamma to 0 after `at`; linear: gamma falls to 0 until then; auto: gamma to 0 once the student
    has been as good as its teacher on the held-out scenes for `checks` validations in a row.
    at: share of the epochs.

    Source: Cho & Hariharan, ICCV 2019; `auto` is ours, for students that overtake their teacher.
    """

    kind: Literal["never", "hard", "linear", "auto"] = "never"
    at: Annotated[float, Field(ge=0, le=1)] = 0.5
    checks: Annotated[int, Field(ge=1, le=1000)] = 3


class EarlyStop:
    """The factor on gamma, epoch by epoch.

    Attributes: good: validations in a row in which the student was as good as its teacher.
    """

    def __init__(self, options: EarlyStopSettings, teacher_epe3d: float | None = None):
        self.options, self.teacher_epe3d = options, teacher_epe3d
        self.good = 0

    def share(self, epoch: int, epochs: int) -> float:
        """The teacher's share in an epoch, counted from 0, as a factor on gamma."""
        kind, stop = self.options.kind, self.options.at * epochs
        if kind == "hard":
            return 1.0 if epoch < stop else 0.0
        if kind == "linear":
            return max(0.0, 1 - epoch / stop) if stop else 0.0
        if kind == "auto":
            return 0.0 if self.good >= self.options.checks else 1.0
        return 1.0

    def observe(self, student_epe3d: float) -> None:
        """Take note of a validation. Once stopped, `auto` stays so."""
        if self.teacher_epe3d is None or self.good >= self.options.checks:
            return
        self.good = self.good + 1 if student_epe3d <= self.teacher_epe3d else 0

    def state_dict(self) -> dict[str, Any]:
        return {"good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.good = state["good"]
