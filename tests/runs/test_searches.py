# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_world import BIG

from bpfn_cli.errors import DataError, UsageError
from bpfn_cli.runs.searches import Candidate, Definition, SearchState, Trained, open_state

ASKED: dict[str, Any] = {
    "bpfn": "1.0",
    "teacher_sha256": "a" * 64,
    "data_sha256": "b" * 64,
    "used": 4,
    "held_out": 2,
    "scene_points": 1024,
    "points": 1024,
    "seed": 0,
    "importance": "l1",
    "budgets": 2,
    "tries": 1,
    "keep": 1,
    "recovery_steps": 1,
    "latency": False,
}


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Trained(name="1-2G", file="1-2G.safetensors", parameters=5, macs=7, cut_m=0.2, epe3d_m=0.1)
    candidate = Candidate(variant=BIG, macs=7, epe3d_m=0.3)
    state = SearchState(definition=Definition(**ASKED), orders=((1, 0),), sensitivities=(((4, 0.5),),))
    state = state.changed(candidates=(candidate,), networks=(made,))
    assert open_state(tmp_path, state.definition) == SearchState(definition=state.definition)
    state.write(tmp_path)
    found = open_state(tmp_path, Definition(**ASKED))
    assert found.candidates[0].variant == BIG
    assert found == state
    assert "orders" not in found.results()


def test_another_search_is_refused(tmp_path: Path) -> None:
    SearchState(definition=Definition(**ASKED)).write(tmp_path)
    other = Definition(**{**ASKED, "seed": 1, "teacher_sha256": "c" * 64})
    with pytest.raises(UsageError, match="another search: teacher_sha256 cccccccc, here aaaaaaaa; seed 1, here 0; rep"):
        open_state(tmp_path, other)


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text('{"format": 1, "definition": {}}')
    with pytest.raises(DataError, match=r"search.json: damaged: definition.bpfn: .* restore it"):
        open_state(tmp_path, Definition(**ASKED))
