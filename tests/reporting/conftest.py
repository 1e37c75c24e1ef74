# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import record

RunMaker = Callable[..., Path]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def make_run(runs: Path) -> RunMaker:
    """Write `runs/<name>` with these evaluations; keywords change its `run.json`."""

    def make(name: str, *evaluations: dict[str, Any], **changes: Any) -> Path:
        folder = runs / name
        (folder / "evaluations").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record(**changes)))
        for number, content in enumerate(evaluations):
            (folder / "evaluations" / f"{number}.json").write_text(json.dumps(content))
        return folder

    return make
