# SPDX-License-Identifier: MIT
"""The example in C++, where a compiler and the headers of onnxruntime are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_world import LEAST, Scenes, tiny_network

from bpfn_cli.models.exported import FORMATS
from bpfn_cli.models.exported.base import Request

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.cpp"
HEADER = "onnxruntime_cxx_api.h"
FOLDERS = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
LIBRARIES = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


def test_example_in_cpp_predicts_every_point(tmp_path: Path) -> None:
    include = next((folder for folder in FOLDERS if folder and (Path(folder) / HEADER).is_file()), None)
    compiler = shutil.which("g++")
    if include is None or compiler is None or not LIBRARIES:
        pytest.skip(f"needs g++ and {HEADER}; set ONNXRUNTIME_INCLUDE to its folder")
    program, library = tmp_path / "predict_onnx", tmp_path / "libonnxruntime.so.1"  # the name that the loader looks for
    library.symlink_to(LIBRARIES[0])
    build = [compiler, "-std=c++17", "-Wall", "-Werror", f"-I{include}", EXAMPLE, library, "-o", program]
    subprocess.run([*build, f"-Wl,-rpath,{library.parent}"], check=True)
    model, scene = tiny_network(), Scenes(points=LEAST).load(0)
    (tmp_path / "net.onnx").write_bytes(FORMATS["onnx"].write(model, Request()))
    scene.pc1.tofile(tmp_path / "a.f32")
    scene.pc2.tofile(tmp_path / "b.f32")
    subprocess.run([program, "net.onnx", "a.f32", "b.f32", "flow.f32"], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = model(*(torch.from_numpy(cloud)[None] for cloud in (scene.pc1, scene.pc2))).flows[0][0].numpy()
    found = np.fromfile(tmp_path / "flow.f32", np.float32).reshape(-1, 3)
    assert np.abs(found - expected).max() < 1e-5 < np.median(np.abs(expected))
