# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import CPU
from tiny_world import BIG, LEAST, Quiet, tiny_network, write_things

from bpfn_cli.models import save_checkpoint
from bpfn_cli.parallel import Shard
from bpfn_cli.reporting.comparison import comparison_report
from bpfn_cli.runs.results import read_runs
from bpfn_cli.stop import Interruption
from bpfn_cli.studies.runner import StudyRunner
from bpfn_cli.studies.study import Study
from bpfn_cli.training import OpenedDataset
from bpfn_cli.training.trainer import Trainer

RECIPE: dict[str, Any] = {
    "teacher": "big",
    "data": {"points": LEAST, "holdout": 0},
    "train": {"epochs": 1, "batch_size": 2, "warmup_steps": 0},
    "objective": {"calibration_step": 1},
}


@pytest.mark.slow
def test_trainer_carries_out_a_study_with_all_controls(tmp_path: Path) -> None:
    data, folder = write_things(tmp_path / "things", val=2), tmp_path / "runs"
    controls = ("equal_time", "same_width_teacher", "random_teacher", "shuffled_teacher", "random_adapter")
    losses = ("none", "basic", "hint")
    save_checkpoint(start := tmp_path / "start.safetensors", tiny_network(5, BIG))
    basic = {"loss": ["basic"], "objective": {"gamma": 0.7}, "train": {"epochs": 2}}
    study = Study(
        recipe=RECIPE,
        variants=("tiny",),
        losses=losses,
        methods={"basic-0.7": basic, "sliced": {"initial": str(start)}},
        seeds=(0, 1),
        controls=controls,
        control_loss="hint",
    )
    trainer = Trainer(OpenedDataset.open(data), folder, CPU, "bpfn compare", Interruption(), Quiet())
    after = StudyRunner(study, folder, trainer, Shard()).run(Quiet())
    assert {one.state for one in after} == {"finished"}

    def record_of(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / name / "run.json").read_text())
        return found

    equal = record_of("tiny-equal_time-seed0")
    assert equal["epochs"] == max(1, round(equal["times_as_long"]))
    assert record_of("tiny-hint-random_teacher-seed0")["teacher"]["path"] == "random weights"
    assert record_of("tiny-hint-shuffled_teacher-seed1")["method"] == "hint+shuffled-teacher"
    own = record_of("tiny-hint-same_width_teacher-seed1")["teacher"]
    assert own["variant"] == "tiny"
    assert record_of(own["run"])["seed"] == 1_000_003  # differs from every student
    teachers = {path.name for path in folder.glob("teacher-big-*")}
    assert {
        record_of(f"tiny-{loss}-seed{seed}")["teacher"]["run"] for loss in (*losses[1:], "basic-0.7") for seed in (0, 1)
    } == teachers

    means, differences = comparison_report(read_runs(folder)).tables
    labels = ["scratch", "scratch, equal time", "hint, same-width teacher", "basic", "hint", "basic-0.7", "sliced"]
    labels += ["hint, random adapter", "hint, random teacher", "hint, shuffled teacher"]
    assert [row.cells[0] for row in means.rows] == ["teacher (big)", *labels]
    assert [row.cells[0] for row in differences.rows] == labels[1:]
    assert {row.cells[1] for row in differences.rows} == {2}
