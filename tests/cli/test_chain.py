# SPDX-License-Identifier: MIT
"""The whole chain, with small networks: data, teacher, student, evaluation, prediction, report."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import bpfn, refused
from command import succeeded as good

from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.models import load_checkpoint

REAL_DATA = os.environ.get("BPFN_REAL_DATA")
SHORT = ("--variant", "tiny", "--set", "teacher=big", "--epochs", 1, "--set", "train.batch_size=2")
SHORT += ("--set", "objective.calibration_step=0", "--set", "data.points=1024")

pytestmark = pytest.mark.usefixtures("small_variants")


@pytest.fixture(scope="module")
def work(tmp_path_factory, small_variants) -> Path:
    """A folder with six synthetic scenes, their subset, a teacher and a student of one epoch."""
    folder = tmp_path_factory.mktemp("work")
    good(bpfn("synth", "--train", 6, "--val", 2, "--out", "data/synthetic", cwd=folder))
    good(bpfn("subset", "--source", "data/synthetic", "--fraction", 0.5, cwd=folder))
    good(bpfn("distill", "--loss", "bihint", *SHORT, cwd=folder))
    return folder


def runs(folder: Path) -> dict[str, dict]:
    found = (json.loads(path.read_text()) for path in folder.glob("runs/*/run.json") if not path.parent.is_symlink())
    return {about["role"]: about for about in found}


def test_subset_is_verified_and_repeated_at_once(work):
    good(bpfn("subset", "--verify", "--out", "data/synthetic-subset", cwd=work))
    repeated = good(bpfn("subset", "--source", "data/synthetic", "--fraction", 0.5, cwd=work))
    assert "already complete" in repeated.stdout


def test_subset_notices_an_edited_file(work, tmp_path):
    good(bpfn("subset", "--source", work / "data/synthetic", "--out", "sub", "--link", "copy", cwd=tmp_path))
    victim = next(tmp_path.glob("sub/train/*/pc1.npy"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    refused(bpfn("subset", "--verify", "--out", "sub", cwd=tmp_path), 3, "pc1.npy")


def test_distill_trains_a_teacher_once_and_records_both(work):
    found = runs(work)
    teacher, student = found["teacher"], found["student"]
    assert teacher["state"] == student["state"] == "finished"
    assert (teacher["variant"], teacher["method"]) == ("big", "scratch")
    assert (student["variant"], student["method"]) == ("tiny", "bihint")
    assert student["teacher"]["run"] == teacher["name"]
    again = good(bpfn("distill", "--loss", "basic", *SHORT, "--dry-run", cwd=work))
    assert "basic" in again.stdout
    assert 0 < student["complexity"]["parameters"] < teacher["complexity"]["parameters"]


def test_second_distill_reuses_the_teacher(work):
    said = bpfn("distill", "--loss", "hint", *SHORT, "--runs", "runs", cwd=work)
    assert "trained earlier with this recipe" in good(said).stderr


def test_report_has_baselines_teacher_and_student(work):
    report = json.loads(good(bpfn("report", "--json", cwd=work)).stdout)
    assert "tiny" in json.dumps(report)
    good(bpfn("report", "--out", "results", "--published", cwd=work))
    markdown = (work / "results/report.md").read_text()
    for words in ("zero flow", "nearest neighbor", "big", "tiny", "published", "0.0492"):
        assert words in markdown
    assert (work / "results/accuracy.csv").read_text().count("\n") >= 4


def test_evaluation_gives_the_same_figures_twice_and_as_after_training(work):
    before = {path: json.loads(path.read_text()) for path in work.glob("runs/*/evaluations/*")}
    first, second = (json.loads(good(bpfn("eval", "--json", cwd=work)).stdout) for _ in range(2))
    assert first == second
    (trained,) = (work / first["checkpoint"]["path"]).parent.glob("evaluations/*")
    assert trained.name == EvaluationResult.model_validate(first, strict=False).file_name
    assert [row["name"] for row in first["rows"]] == ["model", "zero_flow", "nearest_neighbor", "rigid_icp"]
    assert first["rows"] == before[trained]["rows"] == json.loads(trained.read_text())["rows"]
    assert first["scenes"] == before[trained]["scenes"]
    assert set(work.glob("runs/*/evaluations/*")) == set(before)


def test_evaluation_in_bf16_adds_a_row_and_the_report_keeps_the_exact_one(work):
    def answer(*words: str) -> dict:
        return json.loads(good(bpfn(*words, "--json", cwd=work)).stdout)

    before = answer("report")
    exact, reduced = answer("eval"), answer("eval", "--precision", "bf16")
    assert reduced["rows"][:-1] == exact["rows"]
    assert reduced["rows"][-1]["name"] == "model_bf16"
    assert reduced["rows"][-1]["epe3d"] == pytest.approx(exact["rows"][0]["epe3d"], rel=0.05)
    assert answer("report") == before
    assert answer("eval") == exact


def test_evaluation_on_the_whole_dataset_is_the_one_on_its_subset(work):
    before = set(work.glob("runs/*/evaluations/*"))
    result = json.loads(good(bpfn("eval", "--data", "data/synthetic", "--json", cwd=work)).stdout)
    (trained,) = (work / result["checkpoint"]["path"]).parent.glob("evaluations/*")
    assert trained.name == EvaluationResult.model_validate(result, strict=False).file_name
    assert set(work.glob("runs/*/evaluations/*")) == before


def test_slim_slices_a_teacher(work):
    teacher = "t.safetensors"
    small = ("--points", 1024, "--out")
    good(bpfn("slim", "--variant", "baseline", *small, teacher, cwd=work))
    result = good(bpfn("slim", "--teacher", teacher, "--c-mid", "4,4,4,8,8", *small, "s.safetensors", cwd=work))
    assert "84 tensors sliced" in result.stdout
    sliced = load_checkpoint(work / "s.safetensors")
    assert sum(parameter.numel() for parameter in sliced.parameters()) == 3_857_356
    refused(bpfn("slim", "--teacher", teacher, "--c-mid", "4", "--out", "s.safetensors", cwd=work), 5, "--force")
    good(bpfn("slim", "--teacher", "s.safetensors", "--width", 0.5, *small, "n.safetensors", cwd=work))
    assert [level.c_mid for level in load_checkpoint(work / "n.safetensors").variant.levels] == [4, 4, 4, 8, 8]


def test_predict_gives_a_row_for_each_point(work):
    scene = next(work.glob("data/synthetic/val/*"))
    words = ("predict", scene / "pc1.npy", scene / "pc2.npy", "--frame", "flyingthings3d", "--out", "flow.npy")
    good(bpfn(*words, cwd=work))
    flow = np.load(work / "flow.npy")
    assert flow.shape == np.load(scene / "pc1.npy").shape
    assert np.isfinite(flow).all()
    refused(bpfn(*words, cwd=work), 5, "flow.npy", "--force")


def test_predict_refuses_too_few_points(work, tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((50, 3), np.float32))
    words = ("predict", "few.npy", "few.npy", "--checkpoint", next(work.glob("runs/student-*/student.safetensors")))
    refused(bpfn(*words, cwd=tmp_path), 3, "50", "1024")
    assert not (tmp_path / "flow.npy").exists()


def interrupt_once(is_time: Callable[[], object]) -> None:
    """What a person does with Ctrl-C."""
    end = time.monotonic() + 60
    while not is_time() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_training_is_recorded_and_leaves_no_temporary(work):
    words = ("train", "--variant", "tiny", "--epochs", 500, "--set", "data.points=1024", "--runs", "stopped")
    interrupt = threading.Thread(target=interrupt_once, args=(lambda: list(work.glob("stopped/*/metrics.jsonl")),))
    interrupt.start()
    refused(bpfn(*words, cwd=work), 130, "stopped by SIGINT; resume with: bpfn resume stopped/student-")
    interrupt.join()
    about = json.loads(next(work.glob("stopped/student-*/run.json")).read_text())
    assert about["state"] == "interrupted"
    assert not list(work.rglob(".bpfn-tmp-*"))
    incomplete = good(bpfn("report", "--runs", "stopped", cwd=work)).stdout
    assert "interrupted" in incomplete


def test_read_only_runs_folder_is_refused_before_work(work, tmp_path):
    (tmp_path / "runs").write_text("a file")
    refused(bpfn("train", "--data", work / "data/synthetic", *SHORT, cwd=tmp_path), 5, "runs")


def test_damaged_scene_is_named(work, tmp_path):
    good(bpfn("subset", "--source", work / "data/synthetic", "--out", "sub", "--link", "copy", cwd=tmp_path))
    victim = next(tmp_path.glob("sub/val/*/pc2.npy"))
    victim.write_bytes(victim.read_bytes()[:-100])
    checkpoint = next(work.glob("runs/student-*/student.safetensors"))
    refused(bpfn("eval", "--data", "sub", "--checkpoint", checkpoint, cwd=tmp_path), 3, "pc2.npy")


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA, reason="BPFN_REAL_DATA is not set")
def test_real_kitti_and_argoverse(work, tmp_path):
    raw = Path(str(REAL_DATA))
    good(bpfn("prepare", "kitti", "--source", raw / "kitti_scene_flow", "--out", "kitti", cwd=tmp_path))
    checkpoint = next(work.glob("runs/student-*/student.safetensors"))
    words = ("--data", "kitti", "--checkpoint", checkpoint, "--points", 2048, "--json")
    result = json.loads(good(bpfn("eval", *words, cwd=tmp_path)).stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert result["dataset"]["scenes"] == 2
    assert rows["zero_flow"]["epe3d"] == pytest.approx((0.375 + 0.467) / 2, abs=0.03)
    assert rows["model"]["epe2d"] > 0
    pair = raw / "argoverse2/pair.npz"
    words = ("predict", pair, "--frame", "lidar", "--checkpoint", checkpoint, "--json")
    predicted = json.loads(good(bpfn(*words, cwd=tmp_path)).stdout)
    assert predicted["points"] == len(np.load(pair)["pc1"])
    assert predicted["metrics"]["epe3d"] > 0
