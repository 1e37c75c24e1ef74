# SPDX-License-Identifier: MIT
"""The four lines of the README, as printed, in an empty folder."""

from __future__ import annotations

import json

import pytest
from command import launched

LEAST_GAIN = 0.25  # share of EPE3D below the better baseline


@pytest.mark.slow
def test_student_of_the_default_recipe_is_far_below_both_baselines(tmp_path):
    for line in ("subset", "profile --variant weightnet48", "distill --loss bihint", "report"):
        result = launched(*line.split(), cwd=tmp_path, seconds=1800)
        assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("runs/student-*/summary.json")
    epe3d = {row["name"]: row["epe3d"] for row in json.loads(path.read_text())["result"]["rows"]}
    for baseline in ("zero_flow", "nearest_neighbor"):
        assert epe3d["model"] < (1 - LEAST_GAIN) * epe3d[baseline]
    for words in ("zero flow", "nearest neighbor", "weightnet48", "bihint", "teacher"):
        assert words in result.stdout
