# SPDX-License-Identifier: MIT
"""A training that was stopped, by whatever, comes to the same weights as one that never was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from commands import (
    NAME,
    about,
    brief,
    digest,
    experiment,
    gone_on,
    last_line,
    metrics,
    start,
    wait_until,
)
from tiny_world import Quiet

from bpfn_cli.errors import Interrupted
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import STRATEGIES
from bpfn_cli.training import Interruption, run_experiment

KILLS_IN_CI, KILLS_AT_NIGHT = 20, 100

pytestmark = pytest.mark.usefixtures("one_thread")


class Stopping(Interruption):
    """Asks for an end once `after` batches or scenes have been seen since the start."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def wanted(self) -> Interrupted | None:
        self.left -= 1
        return Interrupted("enough", 143) if self.left < 0 else None


def whole(data: Path, runs: Path, recipe: Recipe, **more: Any) -> str:
    """The digest of a run that is never stopped."""
    run_experiment(experiment(data, runs, recipe, **more), Quiet())
    return digest(runs)


# --- the same weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_stopped_at_every_step_is_the_uninterrupted_one(
    things: Path, teacher: Path, tmp_path: Path, name: str
) -> None:
    """Every state: critic, adapters, peer, moved teacher, mix, early stop, validations; also between their epochs."""
    online = {"kind": name, "online": {"target": "general"}, "meta": {"every": 2}}
    recipe = brief(
        loss=["adversarial", "hint"],
        strategy=online,
        early_stop={"kind": "auto", "checks": 1},
        data={"holdout": 0.2, "meta_val": 0.2},
        train={"epochs": 2, "keep_every": 1},
    )
    expected = whole(things, tmp_path / "whole", recipe, teacher=teacher)
    runs = tmp_path / "runs"
    with pytest.raises(Interrupted):
        run_experiment(experiment(things, runs, recipe, teacher=teacher, stop=Stopping(0)), Quiet())
    for stops in range(1, 30):  # after one batch or scene, and after two: else no validation would come to its end
        assert about(runs)["state"] == "interrupted"
        try:
            gone_on(runs, Stopping(stops % 2))
            break
        except Interrupted:
            pass
    assert 6 <= stops < 29
    assert digest(runs) == expected
    assert metrics(runs) == metrics(tmp_path / "whole")
    # And from a checkpoint before the newest.
    for path in sorted((runs / NAME / "checkpoints").glob("step-*"))[1:]:
        path.unlink()
    (runs / NAME / "summary.json").unlink()
    (runs / NAME / "run.json").write_text(json.dumps(about(runs) | {"state": "running"}))
    gone_on(runs)
    assert digest(runs) == expected


def test_workers_change_nothing(things: Path, tmp_path: Path) -> None:
    found = [whole(things, tmp_path / str(n), brief(data={"workers": n})) for n in (0, 1, 2)]
    assert len(set(found)) == 1


def test_another_seed_is_another_training(things: Path, tmp_path: Path) -> None:
    """The digest tells trainings apart."""
    assert whole(things, tmp_path / "0", brief()) != whole(things, tmp_path / "1", brief(seed=1))


def test_stopped_teacher_is_gone_on_with_and_then_its_student(things: Path, tmp_path: Path) -> None:
    recipe = brief(loss=["bihint"], train={"epochs": 2})
    expected = whole(things, tmp_path / "whole", recipe)
    runs = tmp_path / "runs"
    with pytest.raises(Interrupted, match=f"enough; resume with: bpfn resume {runs / NAME}"):
        run_experiment(experiment(things, runs, recipe, stop=Stopping(4)), Quiet())
    assert about(runs)["state"] == "interrupted"
    said = gone_on(runs).lines
    assert any(line.startswith(f"teacher: going on with {runs / 'teacher-big-scratch-'}") for line in said)
    assert digest(runs) == expected
    assert len([path for path in runs.iterdir() if path.name.startswith("teacher-")]) == 1


def test_cached_teacher_is_gone_on_with(things: Path, teacher: Path, tmp_path: Path) -> None:
    plain = brief(loss=["basic"])
    expected = whole(things, tmp_path / "whole", plain, teacher=teacher)
    cached = brief(loss=["basic"], train={"teacher_cache": str(tmp_path / "cache")})
    runs = tmp_path / "runs"
    with pytest.raises(Interrupted):
        run_experiment(experiment(things, runs, cached, teacher=teacher, stop=Stopping(5)), Quiet())
    gone_on(runs)
    assert digest(runs) == expected


def newest(runs: Path) -> int:
    """The number of the newest checkpoint; 0: none."""
    return max((int(path.stem[5:]) for path in runs.glob(f"{NAME}/checkpoints/step-*.safetensors")), default=0)


def is_further(process: ForkServerProcess, runs: Path, number: int) -> bool:
    """Whether a training has come further than a checkpoint, or to its end."""
    return newest(runs) > number or process.exitcode is not None


def kill_loop(data: Path, tmp_path: Path, recipe: Recipe, kills: int, seed: int, **more: Any) -> None:
    expected = whole(data, tmp_path / "whole", recipe, **more)
    generator, killed, rounds = random.Random(seed), 0, 0
    while killed < kills:
        runs = tmp_path / f"round{rounds}" / "runs"
        rounds += 1
        while True:
            before = newest(runs)
            process = start(data, runs, recipe, **more)
            if killed % 2:  # at any time, also while it starts
                process.join(generator.uniform(0, 2.5))
            else:  # soon after it has come further, however slow the machine is
                wait_until(partial(is_further, process, runs, before))
                process.join(generator.uniform(0, 0.5))
            if process.exitcode is None:
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
                killed += 1
                continue
            assert process.exitcode == 0, last_line(runs)
            break
        assert digest(runs) == expected
        assert metrics(runs) == metrics(tmp_path / "whole")
        shutil.rmtree(runs)
    print(f"{killed} kills in {rounds} trainings")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_killed_again_and_again_is_the_uninterrupted_one(things: Path, tmp_path: Path, workers: int) -> None:
    kill_loop(things, tmp_path, brief(data={"workers": workers}), KILLS_IN_CI // 2, seed=workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_killed_100_times_is_the_uninterrupted_one(things: Path, tmp_path: Path, workers: int) -> None:
    kill_loop(things, tmp_path, brief(data={"workers": workers}), KILLS_AT_NIGHT // 2, seed=10 + workers)
