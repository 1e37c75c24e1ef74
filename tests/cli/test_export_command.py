# SPDX-License-Identifier: MIT
"""`bpfn export`, and `bpfn predict` with what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import bpfn, refused, succeeded
from tiny_world import LEAST, Scenes, tiny_network, write_things

from bpfn_cli.history import plain_steps
from bpfn_cli.models import load_checkpoint, save_checkpoint
from bpfn_cli.models.history import step_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, scene = tmp_path_factory.mktemp("export"), Scenes(points=2 * LEAST).load(0)
    steps = plain_steps([step_of("teacher", tiny_network())])
    save_checkpoint(folder / "tiny.safetensors", tiny_network(), history=steps)
    np.save(folder / "a.npy", scene.pc1)
    np.save(folder / "b.npy", scene.pc2)
    succeeded(bpfn("export", "--checkpoint", "tiny.safetensors", "--out", "tiny.onnx", cwd=folder))
    write_things(folder / "things", train=5)
    return folder


def test_export_prints_the_difference_and_both_errors(folder: Path) -> None:
    done = succeeded(bpfn("export", "--checkpoint", "tiny.safetensors", "--out", "again.onnx", cwd=folder))
    assert f"a synthetic scene, {LEAST:,} points: flow differs by at most " in done.stdout
    assert "EPE3D" in done.stdout
    assert "History of again.onnx" in done.stdout
    assert (folder / "again.onnx").read_bytes() == (folder / "tiny.onnx").read_bytes()
    assert "next: bpfn predict a.ply b.ply --checkpoint again.onnx" in done.stderr


def test_export_compares_on_the_pair(folder: Path) -> None:
    words = ("export", "--checkpoint", "tiny.safetensors", "--format", "pth", "--precision", "float16", "--json")
    done = succeeded(bpfn(*words, "--pair", "a.npy", "b.npy", "--frame", "lidar", cwd=folder))
    found = json.loads(done.stdout)
    assert (found["out"], found["pair"], found["bytes"]) == (
        "tiny.pth",
        "a.npy and b.npy",
        (folder / "tiny.pth").stat().st_size,
    )
    assert [one["step"] for one in found["history"]] == ["teacher", "pth, float16"]
    assert found["history"][1]["bytes"] == found["bytes"]
    assert all(0 < one["median_m"] < found["tolerance_m"] for one in found["comparisons"])
    assert load_checkpoint(folder / "tiny.pth").variant.levels == tiny_network().variant.levels


@pytest.mark.parametrize("more", [(), ("--average", 2)])
def test_predict_runs_an_onnx_file(folder: Path, more: tuple[object, ...]) -> None:
    flows = []
    for weights in ("tiny.onnx", "tiny.safetensors"):
        words = ("predict", "a.npy", "b.npy", "--checkpoint", weights, "--out", "flow.npy", "--force", *more)
        succeeded(bpfn(*words, cwd=folder))
        flows.append(np.load(folder / "flow.npy"))
    assert np.abs(flows[0] - flows[1]).max() < 1e-5 < np.abs(flows[1]).max()


def test_predict_refuses_what_an_onnx_file_cannot_do(folder: Path) -> None:
    export = ("export", "--checkpoint", "tiny.safetensors", "--out", "fixed.onnx", "--points", LEAST)
    succeeded(bpfn(*export, cwd=folder))
    predict = ("predict", "a.npy", "b.npy", "--checkpoint", "fixed.onnx", "--out", "no.npy")
    refused(bpfn(*predict, "--points", LEAST + 1, cwd=folder), 2, f"--points {LEAST + 1}: fixed.onnx takes {LEAST}")
    refused(bpfn(*predict, "--precision", "bf16", cwd=folder), 2, "fixed.onnx: an ONNX file runs on the CPU")
    assert not (folder / "no.npy").exists()


@pytest.mark.parametrize("more", [("--data", "things", "--scenes", 4), ("--calibrate", "minmax", "--scenes", 4)])
def test_int8_is_calibrated_and_predict_runs_it(folder: Path, more: tuple[object, ...]) -> None:
    words = ("export", "--checkpoint", "tiny.safetensors", "--precision", "int8", "--out", "int8.onnx", "--force")
    done = succeeded(bpfn(*words, *more, cwd=folder))
    method = "minmax" if "minmax" in more else "percentile"
    where = "scenes of things" if "things" in more else "rendered driving scenes"
    assert f"int8: calibrating ({method}) with 4 {where} of 2,048 points" in done.stderr.replace("1,024", "2,048")
    assert (folder / "int8.onnx").stat().st_size < (folder / "tiny.onnx").stat().st_size + 1e5
    succeeded(
        bpfn("predict", "a.npy", "b.npy", "--checkpoint", "int8.onnx", "--out", "int8.npy", "--force", cwd=folder)
    )


def test_learned_ranges_are_used_unless_asked_otherwise(folder: Path) -> None:
    from bpfn_cli.models.fake_quantization import RANGES, add_quantizers, quantizers

    add_quantizers(model := tiny_network())
    ranges = {name: [-3.0, 3.0] for name in quantizers(model)}
    save_checkpoint(folder / "learned.safetensors", tiny_network(), **{RANGES: ranges})
    words = ("export", "--checkpoint", "learned.safetensors", "--precision", "int8", "--out", "learned.onnx", "--force")
    assert "with the ranges learned in training" in succeeded(bpfn(*words, cwd=folder)).stderr
    again = succeeded(bpfn(*words, "--calibrate", "minmax", "--scenes", 4, cwd=folder))
    assert "calibrating (minmax)" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--points", "many"), 2, "--points many: use a number, or dynamic"),
        (("--points", 70000, "--out", "new.onnx"), 2, "--points 70000: use 1024 to 65536"),
        (("--format", "torch", "--points", "dynamic"), 2, "a torch file has a fixed number of points"),
        (("--format", "torch", "--out", "x.onnx"), 2, "the format torch has the suffix .pt2"),
        (("--out", "x.tflite"), 2, "x.tflite: use one of the suffixes"),
        (("--out", "no/tiny.safetensors/x.onnx", "--pair", "a.npy", "b.npy", "--data", "."), 2, "use only one of"),
        (("--pair", "a.npy", "none.npy", "--out", "new.onnx"), 3, "none.npy"),
        (("--calibrate", "minmax", "--out", "new.onnx"), 2, "--calibrate: has no effect with --precision float32"),
        (("--scenes", 9, "--out", "new.onnx"), 2, "--scenes: has no effect with --precision float32"),
        (("--frame", "lidar", "--out", "new.onnx"), 2, "--frame: has no effect without --pair"),
        (("--precision", "int8", "--scenes", 3, "--out", "new.onnx"), 2, "use a number greater than or equal to 4"),
        (("--precision", "int8", "--out", "new.pth"), 2, "a pth file has float32, float16, bfloat16"),
        (("--precision", "int8", "--data", "things", "--out", "new.onnx"), 2, "things has 5 to calibrate with"),
        (("--precision", "int8", "--out", "/dev/full/x.onnx"), 5, "/dev/full"),
        (("--out", "tiny.safetensors"), 2, "is also an input"),
        (("--out", "tiny.onnx"), 5, "tiny.onnx: exists"),
        (("--checkpoint", "tiny.onnx"), 4, "tiny.onnx: an exported network; give the checkpoint"),
        (("--checkpoint", "a.npy"), 4, "a.npy"),
        (("--out", "/dev/full/x.onnx"), 5, "/dev/full"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    folder: Path, words: tuple[object, ...], code: int, message: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    first = () if "--checkpoint" in words else ("--checkpoint", "tiny.safetensors")
    refused(bpfn("export", *first, *words, cwd=folder), code, message)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
