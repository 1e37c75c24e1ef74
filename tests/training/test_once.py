# SPDX-License-Identifier: MIT
"""From the command to the optimizer step, nothing is opened, listed, hashed or built twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import bpfn, succeeded
from small_runs import NAME, SMALL, checkpoints_of, mark_unfinished

from bpfn_cli.config import to_yaml
from bpfn_cli.data.datasets.base import Dataset, SceneDataset
from bpfn_cli.strategies import Strategy
from bpfn_cli.training import build, job, teacher

ONCE = {"find_data", "identity", "train split", "test split", "test identity", "student", "teacher", "strategy"}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thing is found, opened, hashed or built."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, label: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            found[label(*arguments, **more)] += 1
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, counted)

    count(job, "find_data", lambda *_: "find_data")
    count(Dataset, "_identified", lambda *_: "identity")
    count(Dataset, "open", lambda self, split: f"{split} split")
    count(SceneDataset, "identity", lambda *_: "test identity")
    count(build, "build_model", lambda *_: "student")
    count(teacher, "build_from", lambda *_: "teacher")
    count(Strategy, "__init__", lambda *_, **__: "strategy")
    return found


def test_distill_and_resume_find_open_hash_and_build_everything_once(
    things: Path, teacher: Path, tmp_path: Path, counts: Counter[str]
) -> None:
    recipe = {**SMALL, "loss": ["basic"], "train": {**SMALL["train"], "epochs": 1}}
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    words = ["-c", "recipe.yaml", "--data", things, "--teacher", teacher, "--name", NAME, "--device", "cpu"]
    succeeded(bpfn("distill", *words, cwd=tmp_path))
    assert counts == dict.fromkeys(ONCE, 1)
    runs = tmp_path / "runs"
    mark_unfinished(runs)
    checkpoints_of(runs)[0].unlink()
    counts.clear()
    succeeded(bpfn("resume", f"runs/{NAME}", cwd=tmp_path))
    assert counts == dict.fromkeys(ONCE, 1)
