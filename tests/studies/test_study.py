# SPDX-License-Identifier: MIT
"""The cells of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_studies import names, study

from bpfn_cli.config import build, parse_yaml
from bpfn_cli.errors import UsageError
from bpfn_cli.studies.study import Study, cells_of, read_study


def test_cells_are_all_combinations_seed_by_seed() -> None:
    given = study(losses=("none", "basic+hint"), strategies=("plain", "online", "meta"), controls=("equal_time",))
    methods = ("scratch", "basic+hint", "online", "basic+hint+online", "basic+hint+meta", "equal_time")
    assert names(given) == [f"tiny-{what}-seed{seed}" for seed in (0, 1) for what in methods]
    assert names(study(losses=("none", "basic"), strategies=("online",), seeds=(0,)))[0] == "tiny-scratch-seed0"
    cell = cells_of(given)[1]
    assert (cell.recipe.loss, cell.recipe.seed, cell.recipe.variant) == (("basic", "hint"), 0, "tiny")
    assert cell.recipe.objective.calibration_step == 1


def test_controls_have_their_own_recipes() -> None:
    controls = ("equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher")
    given = study(controls=controls, control_loss="hint", seeds=(0,))
    controls = {cell.control: cell.recipe for cell in cells_of(given) if cell.control}
    assert controls["equal_time"].loss == ("none",)
    assert controls["same_width_teacher"].teacher == "tiny"
    assert [controls[f"{kind}_teacher"].control for kind in ("random", "shuffled")] == ["random", "shuffled"]
    assert all(controls[kind].loss == ("hint",) for kind in controls if kind != "equal_time")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"losses": ("basic",)}, "losses: add none"),
        ({"recipe": {"seed": 1}}, r"recipe\.seed: the study sets this key"),
        ({"recipe": {"train": {"epoch": 3}}}, r"unknown key train\.epoch, did you mean train\.epochs"),
        ({"losses": ("none", "hnit")}, "did you mean hint"),
        ({"recipe": {"strategy": "online"}}, r"recipe\.strategy: give a mapping of strategy options"),
        ({"recipe": {"strategy": {"kind": "self"}}}, r"recipe\.strategy\.kind: the study sets this key"),
        ({"variants": ("tyni",)}, "unknown variant 'tyni'"),
        (
            {"controls": ("random_teacher",), "control_loss": "none"},
            "control_loss none: not one of the study's losses with a teacher",
        ),
        (
            {"controls": ("random_teacher",), "control_loss": "ail"},
            "control_loss ail: not one of the study's losses with a teacher",
        ),
        ({"seeds": (0, 1, 0)}, "seeds: duplicate seed"),
    ],
)
def test_invalid_study_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        cells_of(study(**changes))


def test_read_study_rejects_unknown_keys_and_values(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("variants: [tiny]\nlosses: [none, basic]\nseeds: [0]\nrecipe: {teacher: big}\n")
    assert read_study(path).seeds == (0,)
    assert build(Study, parse_yaml("{}", "x")) == Study()
    path.write_text("seed: [0]\ncontrols: [equal]\n")
    with pytest.raises(UsageError, match=r"controls\.0: input should be.*unknown key seed, did you mean seeds\?"):
        read_study(path)
