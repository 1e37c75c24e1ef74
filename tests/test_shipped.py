# SPDX-License-Identifier: MIT
"""The networks that come with bpfn: their files are what their cards say, and their names work as checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import bpfn, refused, succeeded

from bpfn_cli import shipped
from bpfn_cli.errors import CheckpointError, UsageError
from bpfn_cli.files import sha256_of
from bpfn_cli.models import load_checkpoint
from bpfn_cli.profiling import count_modules
from bpfn_cli.shipped import DEFAULT, FOLDER, find_weights, shipped_network, shipped_networks

ROOT = Path(__file__).parents[1]
MOST_BYTES = 30e6  # of all networks together
SMALL = ("--set", "data.points=1024", "--set", "data.holdout=0", "--set", "train.batch_size=1")
NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def test_every_file_has_a_card_and_all_together_are_small() -> None:
    assert DEFAULT in NAMES
    assert sorted(shipped_networks()) == NAMES
    assert sum(one.path.stat().st_size for one in shipped_networks().values()) <= MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_card_describes_the_file(name: str) -> None:
    path, card = shipped_network(name).path, shipped_network(name).card
    network = load_checkpoint(path)
    assert (card.bytes, card.sha256) == (path.stat().st_size, sha256_of(path))
    assert card.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert card.macs == count_modules(network.variant, card.points).macs.total()
    assert (card.variant, card.points) == (network.variant.name, network.num_points)
    assert all((ROOT / recipe).is_file() for recipe in card.recipes)
    assert {"kitti", "driving"} <= card.results.keys()
    assert all(f"--checkpoint {name}" in result.command for result in card.results.values())


def test_history_of_a_student_starts_with_the_network_it_was_sliced_from() -> None:
    teacher, student = shipped_network("baseline").card, shipped_network("half4").card
    first, last = shipped_network("half4").history
    assert [(one.step, one.network) for one in (first, last)] == [("teacher", "baseline"), ("sliced, trained", "half4")]
    for step, card in ((first, teacher), (last, student)):
        assert (step.parameters, step.macs, step.bytes) == (card.parameters, card.macs, card.bytes)
        assert (step.epe3d_m, step.sha256) == (card.results["kitti"].epe3d, card.sha256)
    assert [one.network for one in shipped_network("baseline").history] == ["baseline"]
    untested = replace(shipped_network("baseline"), card=replace(teacher, results={}))
    assert [(one.epe3d_m, one.on) for one in untested.history] == [(None, None)]


def test_networks_are_listed_from_the_largest() -> None:
    sizes = [one.card.parameters for one in shipped_networks().values()]
    assert sizes == sorted(sizes, reverse=True)


def test_find_weights_prefers_a_file_to_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT).mkdir()  # a folder is not a checkpoint
    assert find_weights(Path(DEFAULT)) == FOLDER / f"{DEFAULT}.safetensors"
    Path(DEFAULT).rmdir()
    Path(DEFAULT).touch()
    assert find_weights(Path(DEFAULT)) == Path(DEFAULT)


@pytest.mark.parametrize("path", ["a.safetensors", "runs/a/student", "baseline.pth"])
def test_find_weights_leaves_paths_alone(path: str) -> None:
    assert find_weights(Path(path)) == Path(path)


def test_run_folder_stands_for_its_deployed_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    assert find_weights(run) == run  # any folder
    (run / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"runs/a: this run has no student\.safetensors yet; finish it with"):
        find_weights(run)
    (run / "student.safetensors").touch()
    (tmp_path / "runs" / "latest").symlink_to("a")
    assert find_weights(run) == run / "student.safetensors"
    assert find_weights(tmp_path / "runs" / "latest").samefile(run / "student.safetensors")
    monkeypatch.chdir(run.parent)
    assert find_weights(Path("a")) == Path("a/student.safetensors")


def test_find_weights_suggests_the_nearest_name() -> None:
    with pytest.raises(CheckpointError, match=r"^basline: no such file or network, did you mean baseline\?$"):
        find_weights(Path("basline"))
    with pytest.raises(CheckpointError, match="`bpfn weights` lists"):
        find_weights(Path("zzz"))


def test_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Known: .*baseline"):
        shipped_network("nothing")


def test_damaged_card_names_the_file_and_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = yaml.safe_load((FOLDER / f"{DEFAULT}.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**card, "hours": "many"}))
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(UsageError, match=r"mine\.yaml.*hours"):
        shipped_networks.__wrapped__()


def test_weights_lists_all_and_shows_one(tmp_path: Path) -> None:
    listed = succeeded(bpfn("weights", cwd=tmp_path)).stdout
    assert all(name in listed for name in NAMES)
    shown = yaml.safe_load(succeeded(bpfn("weights", DEFAULT, cwd=tmp_path)).stdout)
    assert shown == json.loads(succeeded(bpfn("weights", DEFAULT, "--json", cwd=tmp_path)).stdout)
    assert shown["sha256"] == shipped_network(DEFAULT).card.sha256
    refused(bpfn("weights", "basline", cwd=tmp_path), 2, "did you mean baseline?")


def test_predict_uses_the_default_network_and_says_so(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).uniform((-5, -1, 4), (5, 3, 30), (3000, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", cloud)
    np.save(tmp_path / "b.npy", cloud + np.float32([0, 0, -0.3]))
    words = ("predict", "a.npy", "b.npy", "--points", 2048, "--seed", 3)
    said = succeeded(bpfn(*words, cwd=tmp_path)).stderr
    assert f"weights: {DEFAULT}, which comes with bpfn" in said
    named = succeeded(bpfn(*words, "--checkpoint", DEFAULT, "--out", "named.npy", cwd=tmp_path)).stderr
    assert f"weights: {DEFAULT}, which comes with bpfn" in named
    assert (tmp_path / "flow.npy").read_bytes() == (tmp_path / "named.npy").read_bytes()
    assert np.isfinite(np.load(tmp_path / "flow.npy")).all()


def test_distill_takes_the_shipped_teacher_unless_told_to_train_one(tmp_path: Path) -> None:
    succeeded(bpfn("synth", "--train", 2, "--val", 1, "--out", "data/synthetic", cwd=tmp_path))
    words = ("distill", "--loss", "basic", "--variant", "weightnet4", *SMALL, "--epochs", 1, "--dry-run")
    said = succeeded(bpfn(*words, cwd=tmp_path)).stderr
    assert "teacher: baseline, which comes with bpfn" in said
    trained = succeeded(bpfn(*words, "--teacher", "train", cwd=tmp_path)).stderr
    assert "teacher: baseline, trained first" in trained
    assert "comes with bpfn" not in trained
    other = succeeded(bpfn(*words, "--set", "teacher=weightnet8", cwd=tmp_path)).stderr
    assert "teacher: weightnet8, trained first" in other
    refused(bpfn(*words, "--teacher", "basline", cwd=tmp_path), 4, "did you mean baseline?")
