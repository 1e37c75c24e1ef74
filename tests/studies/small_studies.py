# SPDX-License-Identifier: MIT
"""Studies of the smallest networks."""

from __future__ import annotations

from typing import Any

from tiny_world import LEAST

from bpfn_cli.studies.study import Study, cells_of

SHORT = {
    "teacher": "big",
    "data": {"points": LEAST, "holdout": 0},
    "train": {"epochs": 1, "batch_size": 2, "warmup_steps": 0},
    "objective": {"calibration_step": 1},
}


def study(**changes: Any) -> Study:
    """A study of two seeds and three losses, without controls."""
    given: dict[str, Any] = {
        "recipe": SHORT,
        "variants": ("tiny",),
        "losses": ("none", "basic", "hint"),
        "seeds": (0, 1),
        "controls": (),
    }
    return Study(**{**given, **changes})


def names(given: Study) -> list[str]:
    """The names of all cells."""
    return [cell.name for cell in cells_of(given)]
