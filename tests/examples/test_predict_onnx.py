# SPDX-License-Identifier: MIT
"""The example without bpfn computes what `bpfn predict` computes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import LEAST, Scenes, tiny_network

from bpfn_cli.frames import axes_of
from bpfn_cli.models.exported import FORMATS
from bpfn_cli.models.exported.base import Request

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"


def test_example_is_short_and_needs_only_numpy_and_onnxruntime() -> None:
    text = EXAMPLE.read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([one.name for one in node.names] if isinstance(node, ast.Import) else [str(node.module)])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("points", [None, LEAST])
def test_example_predicts_every_point(points: int | None, tmp_path: Path) -> None:
    model, scene = tiny_network(), Scenes(points=LEAST).load(0)
    (tmp_path / "net.onnx").write_bytes(FORMATS["onnx"].write(model, Request(points)))
    axes = axes_of("lidar")
    for name, cloud in (("a", scene.pc1), ("b", scene.pc2)):
        np.save(tmp_path / f"{name}.npy", cloud @ axes)
    words = [sys.executable, EXAMPLE, "net.onnx", "a.npy", "b.npy", "flow.npy"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    random = np.random.default_rng(0)  # as the example draws: the order of the points decides which are sampled
    rows, others = random.permutation(LEAST), random.choice(LEAST, LEAST, replace=False)
    clouds = (torch.from_numpy(cloud)[None] for cloud in (scene.pc1[rows], scene.pc2[others]))
    with torch.no_grad():
        expected = model(*clouds).flows[0][0].numpy()
    found = (np.load(tmp_path / "flow.npy") @ axes.T)[rows]
    assert np.abs(found - expected).max() < 1e-5 < np.median(np.abs(expected))
