# SPDX-License-Identifier: MIT
"""`bpfn predict` on many pairs: what it writes, what it says, and what is left when it ends early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import bpfn, refused, succeeded
from kills import killed_before_change
from tiny_world import LEAST, tiny_network

from bpfn_cli.models import save_checkpoint
from bpfn_cli.models.predict import Estimate, FlowPredictor, predict_flow

FRAMES = 4
WEIGHTS = ("--checkpoint", "tiny.safetensors")
FIGURES = [
    *("points", "mean_flow_m", "median_flow_m", "metrics", "measured", "true_flow_m", "by_motion", "holds", "left_out"),
    *("nearest_m", "parts", "spread_m", "origin", "pose", "residual_m", "notes"),
]


def cloud(seed: int, points: int = LEAST + 20) -> np.ndarray:
    return np.random.default_rng(seed).uniform((-5, -2, 2), (5, 3, 30), (points, 3)).astype(np.float32)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with weights and a sequence of four frames, whose names are in natural order only."""
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_network())
    (tmp_path / "frames").mkdir()
    for index in range(FRAMES):
        np.save(tmp_path / "frames" / f"{index + 8}.npy", cloud(index))
    return tmp_path


def predicted(first: int, second: int) -> np.ndarray:
    return predict_flow(tiny_network(), cloud(first), cloud(second), points=LEAST)


def close(found: Path, expected: np.ndarray) -> bool:
    return bool(np.abs(np.load(found) - expected).max() <= 1e-5 * np.abs(expected).max())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what it writes ---------------------------------------------------------------------------------


def test_sequence_gives_the_flow_of_each_pair_of_frames(work: Path) -> None:
    done = succeeded(bpfn("predict", "frames", *WEIGHTS, "--out", "flows", cwd=work))
    assert names(work / "flows") == ["10.npy", "8.npy", "9.npy"]
    for index in range(FRAMES - 1):
        assert close(work / "flows" / f"{index + 8}.npy", predicted(index, index + 1))
    assert done.stdout.startswith("3 pairs, ")
    assert " pairs/s, peak memory " in done.stdout
    assert "written: flows" in done.stderr
    assert "predicting: 3/3" in done.stderr


def test_cloud_is_kept_if_the_next_pair_begins_with_it(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, estimate = [], FlowPredictor.estimate

    def spy(self: FlowPredictor, *clouds: np.ndarray, keep: bool, **options: Any) -> Estimate:
        kept.append(keep)
        return estimate(self, *clouds, keep=keep, **options)

    monkeypatch.setattr(FlowPredictor, "estimate", spy)
    succeeded(bpfn("predict", "frames", *WEIGHTS, "--out", "flows", cwd=work))
    assert kept == [True, True, False]


def test_output_may_be_named_as_the_estimated_pose(work: Path) -> None:
    succeeded(bpfn("predict", "frames", *WEIGHTS, "--pose", "estimate", "--out", "estimate", cwd=work))
    assert "8.pose.txt" in names(work / "estimate")


def test_figures_in_json_are_those_of_each_pair(work: Path) -> None:
    (work / "pairs").mkdir()
    flow = np.full((LEAST + 20, 3), 0.5, np.float32)
    np.savez(work / "pairs" / "a.npz", pc1=cloud(0), pc2=cloud(0) + flow, flow=flow)
    np.savez(work / "pairs" / "b.npz", pc1=cloud(1, LEAST), pc2=cloud(2))
    text = succeeded(bpfn("predict", "pairs", *WEIGHTS, cwd=work)).stdout
    assert "mean over 1 pairs with a flow: EPE3D " in text
    done = json.loads(succeeded(bpfn("predict", "pairs", *WEIGHTS, "--force", "--json", cwd=work)).stdout)
    assert list(done) == ["out", "frame", "pairs", "pairs_per_s", "peak_memory_mb"]
    assert done["out"] == "flow"
    assert done["pairs_per_s"] > 0
    assert 50 < done["peak_memory_mb"] < 50_000
    first, second = done["pairs"]
    assert list(first) == ["name", "out", *FIGURES]
    assert [(one["name"], one["out"], one["points"]) for one in (first, second)] == [
        ("a", "flow/a.npy", LEAST + 20),
        ("b", "flow/b.npy", LEAST),
    ]
    lengths = np.linalg.norm(np.load(work / "flow/a.npy"), axis=1)
    assert first["mean_flow_m"] == pytest.approx(lengths.mean())
    assert first["median_flow_m"] == pytest.approx(np.median(lengths))
    errors = np.linalg.norm(np.load(work / "flow/a.npy") - flow, axis=1)
    assert first["metrics"]["epe3d"] == pytest.approx(errors.mean(), rel=1e-5)
    assert second["metrics"] is None


def test_list_and_scene_folders_give_the_same_flows(work: Path) -> None:
    for index in (0, 1):
        scene = work / "scenes" / f"s{index}"
        scene.mkdir(parents=True)
        np.save(scene / "pc1.npy", cloud(index))
        np.save(scene / "pc2.npy", cloud(index + 2))
    (work / "pairs.txt").write_text("scenes/s0/pc1.npy scenes/s0/pc2.npy\nscenes/s1/pc1.npy frames/11.npy # same\n")
    succeeded(bpfn("predict", "scenes", *WEIGHTS, "--out", "a", cwd=work))
    succeeded(bpfn("predict", work / "pairs.txt", *WEIGHTS, "--out", "b", cwd=work))
    for folder in (work / "a", work / "b"):
        assert names(folder) == ["s0.npy", "s1.npy"]
        for index in (0, 1):
            assert close(folder / f"s{index}.npy", predicted(index, index + 2))


def test_one_pair_keeps_its_words_and_keys(work: Path) -> None:
    words = ("predict", "frames/8.npy", "frames/9.npy", *WEIGHTS)
    assert succeeded(bpfn(*words, cwd=work)).stdout.startswith("mean flow ")
    assert close(work / "flow.npy", predicted(0, 1))
    done = json.loads(succeeded(bpfn(*words, "--force", "--json", cwd=work)).stdout)
    assert list(done) == ["out", "frame", *FIGURES, "peak_memory_mb"]


# --- refusals ---------------------------------------------------------------------------------------


def test_outputs_are_checked_before_the_work(work: Path) -> None:
    (work / "flows").mkdir()
    (work / "flows" / "9.npy").touch()
    words = ("predict", "frames", "--checkpoint", "nowhere.safetensors")
    refused(bpfn(*words, "--out", "flows", cwd=work), 5, "flows/9.npy: exists (1 of 3 outputs do)", "--force")
    refused(bpfn(*words, "--out", "flow.npy", cwd=work), 2, "--out flow.npy", "folder")
    refused(bpfn(*words, "--out", "frames", "--force", cwd=work), 2, "--out frames: frames is also an input")
    refused(bpfn("predict", "frames", "frames/8.npy", cwd=work), 2, "frames: holds many pairs")
    (work / "pairs.txt").write_text("frames/8.npy frames/9.npy\nframes/8.npy frames/10.npy\n")
    refused(bpfn("predict", "pairs.txt", cwd=work), 3, "would both be written to 8.npy")
    (work / "pairs.txt").write_text("frames/8.npy frames/9.npy\n")
    refused(bpfn("predict", "pairs.txt", "--out", "frames", "--force", cwd=work), 2, "frames/8.npy is also an input")
    refused(
        bpfn("predict", ".", cwd=work / "frames"), 2, "--out flow: the flows of . would lie inside it; give another"
    )
    assert names(work / "flows") == ["9.npy"]
    assert names(work / "frames") == ["10.npy", "11.npy", "8.npy", "9.npy"]


def test_missing_input_is_named_whatever_the_output(work: Path) -> None:
    refused(bpfn("predict", "nowhere", *WEIGHTS, "--out", "flows", cwd=work), 3, "nowhere: no such file or folder")
    assert not (work / "flows").exists()


def test_pair_that_fails_is_named_and_earlier_flows_stay(work: Path) -> None:
    np.save(work / "frames" / "11.npy", cloud(3, LEAST - 1))
    words = ("predict", "frames", *WEIGHTS, "--out")
    few = f"pc2 has {LEAST - 1} points"
    refused(bpfn(*words, "few", cwd=work), 3, "10.npy and frames/11.npy: ", few, "(2 of 3 flows are written to few)")
    (work / "frames" / "10.npy").write_bytes(b"damaged")
    refused(bpfn(*words, "damaged", cwd=work), 3, "frames/10.npy: ", "(1 of 3 flows are written to damaged)")
    assert names(work / "few") == ["8.npy", "9.npy"]
    assert names(work / "damaged") == ["8.npy"]
    assert close(work / "few" / "9.npy", predicted(1, 2))


@pytest.mark.slow
def test_kill_between_or_during_writes_leaves_complete_flows(work: Path) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a child process must not wait for the threads of its parent
    try:
        for number in range(1, FRAMES):
            out = work / f"killed{number}"
            words = ("predict", "frames", *WEIGHTS, "--out", out)
            changes = number + 2  # two attempts to make the folder come first
            assert killed_before_change(changes, out, lambda words=words: bpfn(*words, cwd=work))  # type: ignore[misc]
            flows = [path for path in out.iterdir() if path.suffix == ".npy"]
            assert len(flows) == number - 1
            for path in flows:
                assert close(path, predicted(int(path.stem) - 8, int(path.stem) - 7))
    finally:
        torch.set_num_threads(before)
