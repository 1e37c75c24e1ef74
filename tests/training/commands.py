# SPDX-License-Identifier: MIT
"""Trainings of the smallest networks in processes of their own, to be killed, and asked what they came to.

Processes are forked from a server that has imported everything and computed nothing, so one costs no second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_world import BIG, LEAST, TINY, Quiet

from bpfn_cli.cli import main as command
from bpfn_cli.config import Tree, build
from bpfn_cli.models import VARIANTS
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.runs.checkpoints import tensors_of
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.training import Changes, Experiment, Interruption, resume, run_experiment

# The server is a Python of its own, which must find this module to have it ready.
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*sys.path, os.environ.get("PYTHONPATH", "")]))
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["commands"])
NAME = "a"

BRIEF: dict[str, Any] = {
    "variant": "tiny",
    "teacher": "big",
    "loss": ["none"],
    "data": {"points": LEAST, "holdout": 0.3, "augment": {"jitter_m": 0.01}},
    "train": {"epochs": 3, "batch_size": 1, "checkpoint_minutes": 0, "validate_every": 1, "warmup_steps": 0},
    "objective": {"calibration_step": 1},
}


def add_small_variants() -> None:
    """Let recipes name the smallest networks."""
    VARIANTS.update({TINY.name: TINY, BIG.name: BIG})


def brief(**changes: Any) -> Recipe:
    """A recipe of a few steps; `changes` are merged into `BRIEF`, two levels deep."""
    tree = {
        key: {**value, **changes.pop(key, {})} if isinstance(value, dict) else value for key, value in BRIEF.items()
    }
    return build(Recipe, Tree({**tree, **changes}, {}, "brief"))


def experiment(data: Path, runs: Path, recipe: Recipe, **more: Any) -> Experiment:
    return Experiment(
        recipe=recipe, data=data, runs=runs, device=torch.device("cpu"), command="bpfn distill", name=NAME, **more
    )


def begin_or_go_on(data: Path, runs: Path, recipe: Recipe, more: dict[str, Any]) -> None:
    """What a job script does that is started again and again."""
    if (runs / NAME / "run.json").is_file():
        resume(runs / NAME, Quiet())
    else:
        run_experiment(experiment(data, runs, recipe, **more), Quiet())


def as_command(data: Path, runs: Path, recipe: Recipe, more: dict[str, Any], before: Callable[[], None] | None) -> None:
    """In a process of its own, as the command line runs it: signals, one line on stderr, an exit code."""
    torch.set_num_threads(1)
    add_small_variants()
    if before is not None:
        before()
    sys.stderr = (runs.parent / "stderr").open("w")
    signal.signal(signal.SIGTERM, command._terminate)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started by
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def app(*_: Any, **__: Any) -> None:
        begin_or_go_on(data, runs, recipe, more)

    command.app = app  # type: ignore[assignment]
    code = command.run([])
    sys.stderr.flush()
    sys.exit(code)


def start(
    data: Path, runs: Path, recipe: Recipe, before: Callable[[], None] | None = None, **more: Any
) -> ForkServerProcess:
    """Begin the run or go on with it, in a process group of its own.

    Args: before: of the top level of a module; called first, to plant a fault.
    """
    runs.mkdir(parents=True, exist_ok=True)
    process = SERVER.Process(target=_led, args=(data, runs, recipe, more, before))
    process.start()
    return process


def _led(*arguments: Any) -> None:
    os.setpgid(0, 0)
    as_command(*arguments)


def carried_out(data: Path, runs: Path, recipe: Recipe, **more: Any) -> tuple[int, str]:
    """Exit code and last line on stderr of the run, begun or gone on with."""
    process = start(data, runs, recipe, **more)
    process.join(120)
    assert process.exitcode is not None, "still running"
    return process.exitcode, last_line(runs)


def last_line(runs: Path) -> str:
    lines = (runs.parent / "stderr").read_text().splitlines()
    return lines[-1] if lines else ""


def signal_group(process: ForkServerProcess, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, number)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def has_checkpoint(runs: Path, number: int = 1) -> Callable[[], bool]:
    """Whether a checkpoint of at least so many batches is there."""
    folder = runs / NAME / "checkpoints"
    return lambda: any(int(path.stem[5:]) >= number for path in folder.glob("step-*.safetensors"))


def about(runs: Path) -> dict[str, Any]:
    return json.loads((runs / NAME / "run.json").read_text())


def metrics(runs: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (runs / NAME / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def digest(runs: Path) -> str:
    """Of all that the newest checkpoint holds: weights, optimizers, critics, peers, moved teachers; and figures."""
    found = RunFolder.open(runs / NAME).checkpoints.newest(lambda text: None)
    assert found is not None
    state = dict(found.state)
    seconds = state.pop("epoch_seconds"), state["log"].pop("seconds")
    assert all(np.isfinite(seconds[0]))
    state.pop("teacher_counts")
    result = hashlib.sha256(json.dumps(metrics(runs), sort_keys=True).encode())
    for name, tensor in [*tensors_of(state), *sorted(found.weights.state.items())]:
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def gone_on(runs: Path, stop: Interruption | None = None, **changes: Any) -> Quiet:
    """`resume` in this process; what it said."""
    progress = Quiet()
    resume(runs / NAME, progress, stop, Changes(**changes))
    return progress
