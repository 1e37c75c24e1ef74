# SPDX-License-Identifier: MIT
"""Commands that need an extra which is not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command import bpfn, refused
from run_folders import record
from tiny_world import LEAST, Scenes, tiny_network, write_things

from bpfn_cli.models import save_checkpoint

VIZ = 'pip install -c constraints.txt -e ".[viz]"'
EXPORT = 'pip install -c constraints.txt -e ".[export]"'
DRAWING, PAGES, RUNTIME = ("matplotlib",), ("matplotlib", "jinja2"), ("onnxruntime",)
TINY, PAIR = ("--checkpoint", "tiny.safetensors"), ("a.npy", "b.npy")
PRUNED = ("--teacher", "tiny.safetensors", "--data", "things", "--scenes", 4)
CASES = {
    "search --plot": (
        DRAWING,
        ("search", *PRUNED, "--plot", "--out", "new"),
        f"pages and pictures need matplotlib: {VIZ}",
    ),
    "bench --plot": (
        DRAWING,
        ("bench", *TINY, "--points", LEAST, "--plot", "new/b.png"),
        f"pages and pictures need matplotlib: {VIZ}",
    ),
    "report --figures": (DRAWING, ("report", "--figures", "new"), f"pages and pictures need matplotlib: {VIZ}"),
    "report --html": (PAGES, ("report", "--html", "new"), f"pages and pictures need matplotlib and jinja2: {VIZ}"),
    "view": (PAGES, ("view", *PAIR, *TINY, "--out", "new/ab.html"), f"pages and pictures need jinja2: {VIZ}"),
    "view --png": (
        PAGES,
        ("view", *PAIR, *TINY, "--out", "new/ab.html", "--png"),
        f"pages and pictures need jinja2 and matplotlib: {VIZ}",
    ),
    "export --format onnx": (
        ("onnx",),
        ("export", *TINY, "--format", "onnx", "--out", "new/tiny.onnx"),
        f"writing ONNX files needs onnx: {EXPORT}",
    ),
    "export --format onnx, without its runtime": (
        RUNTIME,
        ("export", *TINY, "--format", "onnx", "--out", "new/tiny.onnx"),
        f"new/tiny.onnx: running ONNX files needs onnxruntime: {EXPORT}",
    ),
    "export --precision int8": (
        RUNTIME,
        ("export", *TINY, "--precision", "int8", "--scenes", 4, "--out", "new/tiny.onnx"),
        f"ONNX files needs onnxruntime: {EXPORT}",
    ),
    "bench --formats": (
        ("onnx", "onnxruntime"),
        ("bench", "--formats", *TINY, "--points", LEAST, "--out", "new/b.json"),
        f"writing ONNX files needs onnx: {EXPORT}",
    ),
    "bench --formats, without the runtime": (
        RUNTIME,
        ("bench", "--formats", *TINY, "--points", LEAST, "--out", "new/b.json"),
        f"ONNX files needs onnxruntime: {EXPORT}",
    ),
    "predict": (
        RUNTIME,
        ("predict", *PAIR, "--checkpoint", "x.onnx", "--out", "new/flow.npy"),
        f"x.onnx: running ONNX files needs onnxruntime: {EXPORT}",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, a pair of clouds, scenes and a run; `x.onnx` is not read."""
    folder, scene = tmp_path_factory.mktemp("extras"), Scenes(points=LEAST).load(0)
    save_checkpoint(folder / "tiny.safetensors", tiny_network())
    np.save(folder / "a.npy", scene.pc1)
    np.save(folder / "b.npy", scene.pc2)
    (folder / "x.onnx").write_bytes(b"onnx")
    write_things(folder / "things", train=6)
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "runs" / "one" / "run.json").write_text(json.dumps(record()))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_missing_extra_is_one_line_and_leaves_nothing(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, words, message = CASES[case]
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # neither found nor imported
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = bpfn(*words, cwd=folder)
    refused(result, 2, message)
    assert result.stderr.splitlines()[-1].endswith(message)
    assert result.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
