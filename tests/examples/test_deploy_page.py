# SPDX-License-Identifier: MIT
"""The commands of docs/deploy.md run as written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from command import bpfn, succeeded
from tiny_world import Scenes

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_commands_of_the_page_run(tmp_path: Path) -> None:
    scene = Scenes(points=1200).load(0)
    np.save(tmp_path / "a.npy", scene.pc1)
    np.save(tmp_path / "b.npy", scene.pc2)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = (ROOT / "docs" / "deploy.md").read_text()
    lines = [shlex.split(line, comments=True) for line in "".join(BLOCK.findall(page)).splitlines()]
    for program, *words in lines:
        if program == "bpfn":
            succeeded(bpfn(*words, cwd=tmp_path))
        elif program == "python":
            subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
        else:
            assert [program, *words] == ["pip", "install", "-c", "constraints.txt", "-e", ".[export]"]
    written = {path.name for path in tmp_path.iterdir()} - {"a.npy", "b.npy", "examples"}
    assert written == {"weightnet4.onnx", "small.onnx", "checked.onnx", "flow.npy", "flow_numpy.npy"}
    assert (tmp_path / "weightnet4.onnx").stat().st_size < 11.5e6
    assert (tmp_path / "small.onnx").stat().st_size < 5.75e6
