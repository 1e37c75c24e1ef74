# SPDX-License-Identifier: MIT
"""The commands of docs/deploy.md run as written, except those of the measurements."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import bpfn, succeeded
from tiny_world import BIG, Scenes, tiny_network, write_things

from bpfn_cli.models import save_checkpoint
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.exported import TOLERANCE_M

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_commands_of_the_page_run(tmp_path: Path) -> None:
    write_clouds(tmp_path)
    run_all("".join(commands("Export") + commands("The ONNX file")), tmp_path)
    written = {path.name for path in tmp_path.iterdir()} - {"a.npy", "b.npy", "examples"}
    assert written == {"weightnet4.onnx", "small.onnx", "checked.onnx", "flow.npy", "flow_numpy.npy"}
    assert (tmp_path / "weightnet4.onnx").stat().st_size < 11.5e6
    assert (tmp_path / "small.onnx").stat().st_size < 5.75e6


@pytest.mark.slow
def test_way_from_a_teacher_to_a_robot(tmp_path: Path, small_variants: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but with a small teacher, a few scenes, and short trainings."""
    write_clouds(tmp_path)
    write_things(tmp_path / "data" / "driving", train=6, val=2)
    save_checkpoint(tmp_path / "big.safetensors", tiny_network(1, BIG))
    target = f"{0.8 * cost_of(BIG, 1024).parameters / 1e6}M --scenes 4 --recover 1 --points 1024"
    text = commands("From a teacher to a robot")[0].replace("baseline", "big.safetensors").replace("1.2M", target)
    monkeypatch.setitem(TOLERANCE_M, "int8", 2.0)  # the teacher is untrained
    run_all(text.replace("--epochs 2", "").replace("--loss", "--epochs 1 --loss"), tmp_path)
    assert np.isfinite(np.load(tmp_path / "flow_robot.npy")).all()


@pytest.mark.slow
def test_shipped_student_becomes_a_file_of_less_than_2_mb(tmp_path: Path) -> None:
    run_all(commands("From a teacher to a robot")[1], tmp_path)
    assert (tmp_path / "half4.onnx").stat().st_size < 1.65e6


def commands(heading: str) -> list[str]:
    """Return the blocks of commands below a heading of the page."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    return BLOCK.findall(page.split(f"\n## {heading}\n")[1].split("\n## ")[0])


def write_clouds(folder: Path) -> None:
    scene = Scenes(points=1200).load(0)
    np.save(folder / "a.npy", scene.pc1)
    np.save(folder / "b.npy", scene.pc2)
    (folder / "examples").symlink_to(ROOT / "examples")


def run_all(text: str, folder: Path) -> None:
    """Run the commands of a block."""
    for program, *words in [shlex.split(line, comments=True) for line in text.splitlines()]:
        if program == "bpfn":
            succeeded(bpfn(*words, cwd=folder))
        elif program == "python":
            subprocess.run([sys.executable, *words], cwd=folder, check=True)
        else:
            assert [program, *words] == ["pip", "install", "-c", "constraints.txt", "-e", ".[export]"]
