# SPDX-License-Identifier: MIT
"""Networks of sizes that no variant has, from `bpfn slim` to the reports, under their own names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfn_cli.cli.main import run
from bpfn_cli.cli.network.tables import chosen_variants
from bpfn_cli.models import Separable, read_checkpoint

SHORT = ("--epochs", 1, "--points", 1024, "--set", "data.holdout=0", "--set", "train.batch_size=2")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, things: Path) -> Any:
    """Run a command in an empty folder; returns its exit code, or else what it printed as JSON."""
    monkeypatch.chdir(tmp_path)

    def call(*words: Any) -> Any:
        data = ("--data", things, *SHORT) if words[0] in ("train", "distill") else ()
        code = run([*map(str, words), *map(str, data)])
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 and "--json" in words else err if code else None

    return call


def record_of(name: str) -> dict[str, Any]:
    return json.loads((Path("runs") / name / "run.json").read_text())


def test_own_sizes_are_trained_from_their_checkpoint_and_reported_under_their_name(command: Any) -> None:
    assert command("slim", "--width", 0.05, "--c-mid", 3, "--out", "mine.safetensors", "--json")["variant"] == "mine"
    assert command("train", "--checkpoint", "mine.safetensors", "--name", "a") is None
    trained, written = read_checkpoint("runs/a/student.safetensors"), read_checkpoint("mine.safetensors")
    assert trained.variant == written.variant
    assert record_of("a")["variant"] == "mine"
    assert record_of("a")["recipe"]["variant"]["widths"]["encoder"] == [2, 3, 6, 13, 13]
    tables = command("report", "--json")
    assert '"model": "mine"' in json.dumps(tables)
    assert command("profile", "--variant", "mine.safetensors", "--points", 1024, "--json")["variant"] == "mine"
    assert [one.name for one in chosen_variants(["half", "mine.safetensors"], False, None)] == ["half", "mine"]


def test_teacher_and_student_of_own_sizes_are_trained_and_a_changed_file_is_noticed(command: Any) -> None:
    Path("mine.yaml").write_text("{width: 0.05, c_mid: 1, neighbors: {estimator: 5}}")
    Path("recipe.yaml").write_text(
        "variant: mine.yaml\nteacher: {base: mine.yaml.safetensors, name: large, c_mid: 2}\nloss: [basic]\n"
    )
    command("slim", "--variant", "mine.yaml", "--out", "mine.yaml.safetensors")
    words = ("distill", "-c", "recipe.yaml", "--teacher", "train", "--name", "a")
    assert command(*words) is None
    record = record_of("a")
    assert (record["variant"], record["teacher"]["variant"]) == ("mine", "large")
    assert record["recipe"]["teacher"]["c_mid"] == [2] * 5
    assert command(*words, "--resume") is None
    Path("mine.yaml").unlink()
    assert command("resume", "runs/a") is None  # the sizes are in the run folder
    Path("mine.yaml").write_text("{width: 0.05, c_mid: 1, neighbors: {estimator: 6}}")
    assert "variant.neighbors.estimator 5, now 6" in command(*words, "--resume")


def test_neighbors_and_separable_levels_of_the_command_line_are_kept(command: Any) -> None:
    sizes = ("--neighbors", "embedding=8,estimator=5", "--separable-encoder", "4,3", "--separable-estimators", 0)
    command("slim", "--width", 0.5, *sizes, "--out", "few.safetensors")
    found = read_checkpoint("few.safetensors").variant
    assert (found.encoder_neighbors, found.embedding_neighbors, found.estimator_neighbors) == (16, 8, 5)
    assert found.separable == Separable(encoder=(3, 4), estimators=(0,))
    command("slim", "--variant", "few.safetensors", "--neighbors", "encoder=8", "--out", "fewer.safetensors")
    changed = replace(found, name="fewer", encoder_neighbors=8)
    assert read_checkpoint("fewer.safetensors").variant == changed


def test_pth_has_the_weights_of_the_checkpoint_and_leads_back(command: Any) -> None:
    command("slim", "--width", 0.05, "--c-mid", 3, "--points", 1024, "--out", "mine.safetensors")
    assert command("slim", "--checkpoint", "mine.safetensors", "--out", "mine.pth", "--json")["variant"] == "mine"
    assert command("slim", "--checkpoint", "mine.pth", "--out", "again.safetensors") is None
    first, state, again = (read_checkpoint(name) for name in ("mine.safetensors", "mine.pth", "again.safetensors"))
    assert first.variant == state.variant == again.variant
    for name, tensor in first.state.items():
        assert torch.equal(tensor, state.state[name]) and torch.equal(tensor, again.state[name])
    told = command("slim", "--checkpoint", "mine.pth", "--c-mid", 2, "--out", "other.pth")
    assert "--c-mid: --checkpoint copies a network as it is" in told
    assert "is also an input" in command("slim", "--checkpoint", "mine.pth", "--out", "mine.pth", "--force")


@pytest.mark.parametrize("loss", ["bounded", pytest.param("hint", marks=pytest.mark.slow)])
def test_losses_are_checked_with_networks_of_own_sizes(command: Any, loss: str) -> None:
    Path("mine.yaml").write_text("{width: 0.05, c_mid: 2}")
    checks = command("losses", loss, "--check", "--student", "mine.yaml", "--teacher", "mine.yaml", "--json")
    assert checks and all(check["passed"] is not False for check in checks)


def test_network_trained_on_crops_sees_whole_clouds_at_once(command: Any) -> None:
    command("slim", "--width", 0.05, "--c-mid", 1, "--out", "mine.safetensors")
    assert command("train", "--variant", "mine.safetensors", "--name", "a", "--set", "data.augment.crop=1.1") is None
    assert read_checkpoint("runs/a/student.safetensors").num_points == 1126


def test_study_of_own_sizes_has_a_teacher_with_the_same_neighbors(command: Any, things: Path) -> None:
    Path("mine.yaml").write_text("{width: 0.05, c_mid: 1, neighbors: {estimator: 5}}")
    command("slim", "--variant", "mine.yaml", "--out", "t.safetensors")

    def plan(teacher: str) -> Any:
        keys = "variants: [mine.yaml], losses: [none, basic], seeds: [0], controls: [], recipe: {data: {holdout: 0}}"
        Path("study.yaml").write_text(f"{{teacher: {teacher}, {keys}}}")
        return command("compare", "study.yaml", "--data", things, "--dry-run", "--json")

    assert "teacher baseline and student mine sample different points" in plan("null")
    assert [one["name"] for one in plan("t.safetensors")] == ["mine-scratch-seed0", "mine-basic-seed0"]


def test_file_of_sizes_in_place_of_weights_is_refused(command: Any) -> None:
    Path("mine.yaml").write_text("{width: 0.05}")
    told = "mine.yaml: a file of sizes, not of weights; give it to --variant"
    assert told in command("distill", "--loss", "basic", "--teacher", "mine.yaml")
    assert told in command("slim", "--checkpoint", "mine.yaml", "--out", "x.pth")
