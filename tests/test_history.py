# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from typing import Any

import pytest

from bpfn_cli.history import Step, plain_steps, read_history

STEP: dict[str, Any] = {"step": "teacher", "network": "a", "parameters": 1, "macs": 2, "points": 3, "bytes": 4}


def test_steps_are_read_as_they_were_written() -> None:
    steps = (Step(**STEP, epe3d_m=0.1, on="2 scenes"), Step(**{**STEP, "step": "pruned"}))
    written = json.loads(json.dumps({"history": plain_steps(steps)}))
    assert read_history(written) == steps
    assert written["history"][1] == {**STEP, "step": "pruned"}
    assert [step.sha256 for step in read_history(written, "f" * 64)] == [None, "f" * 64]


@pytest.mark.parametrize(
    "history",
    [None, 5, "teacher", {}, [5], [{}], [{**STEP, "macs": -1}], [{**STEP, "epe3d_m": float("nan")}], [STEP] * 65],
)
def test_anything_else_is_no_history(history: object) -> None:
    assert read_history({"history": history}) == ()
    assert read_history({}) == ()
