# SPDX-License-Identifier: MIT
"""The commands of the README's quick start, as printed, in an empty folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from command import launched

README = Path(__file__).parents[2] / "README.md"
LEAST_GAIN = 0.25  # share of EPE3D below the best baseline


def quick_start() -> list[list[str]]:
    block = README.read_text(encoding="utf-8").partition("## Quick start")[2].split("```")[1]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.startswith("bpfn ")]


@pytest.mark.slow
def test_student_of_the_quick_start_is_far_below_all_baselines(tmp_path: Path) -> None:
    lines = quick_start()
    assert [line[0] for line in lines][-4:] == ["eval", "predict", "report", "view"]
    printed = {}
    for line in lines:
        result = launched(*line, cwd=tmp_path, seconds=1800)
        assert result.returncode == 0, result.stderr
        printed[line[0]] = result.stdout
    (path,) = tmp_path.glob("runs/student-*/summary.json")
    epe3d = {row["name"]: row["epe3d"] for row in json.loads(path.read_text())["result"]["rows"]}
    for baseline in ("zero_flow", "nearest_neighbor", "rigid_icp"):
        assert epe3d["model"] < (1 - LEAST_GAIN) * epe3d[baseline]
    assert (tmp_path / "flow.npy").is_file()
    (evaluation,) = tmp_path.glob("runs/student-*/evaluations/*.json")  # written by `distill`, and again by `eval`
    assert "teacher" in {row["name"] for row in json.loads(evaluation.read_text())["rows"]}
    for words in ("zero flow", "nearest neighbor", "rigid ICP", "weightnet48", "bihint", "teacher"):
        assert words in printed["report"]
    assert (tmp_path / "scene.html").is_file()
