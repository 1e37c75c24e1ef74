# SPDX-License-Identifier: MIT
"""Two processes on a CPU that train together: both call the same function."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from run_processes import SERVER
from small_runs import CPU, NAME, StopAfter, add_small_variants, job_for
from tiny_world import BIG, LEAST, TINY, Quiet, Scenes, tiny_network

from bpfn_cli import distributed
from bpfn_cli.data.augment import AugmentSettings
from bpfn_cli.data.loader import training_batches
from bpfn_cli.errors import BpfnError, NonFiniteError
from bpfn_cli.losses import build_losses
from bpfn_cli.models import BiPointFlowNet, Variant
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import STRATEGIES, Strategy, Teacher
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training import pipeline, resume, run
from bpfn_cli.training.build import build as build_parts
from bpfn_cli.training.loop.state import EpochLog

SECONDS = 300.0  # for one answer, on a busy machine


def call_in_pair(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function` returns in each process: arrays, not tensors. A BpfnError is returned, not raised."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ends = [SERVER.Pipe(duplex=False) for _ in range(2)]
    processes = [
        SERVER.Process(target=_one, args=(rank, port, ends[rank][1], function, arguments)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    answers = []
    for own, _ in ends:
        if not own.poll(SECONDS):
            for process in processes:
                process.kill()
            raise TimeoutError("a process still waits for the other")
        answers.append(pickle.loads(own.recv()))
    for process in processes:
        process.join()
    for answer in answers:
        if isinstance(answer, str) and answer.startswith("Traceback"):
            raise AssertionError(answer)
    return answers


def _one(rank: int, port: int, end: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    add_small_variants()
    try:
        with distributed.joined(CPU):
            try:
                answer = function(*arguments)
            except BpfnError as error:
                answer = error
    except BaseException:
        answer = traceback.format_exc()
    end.send(pickle.dumps(answer))


# --- functions to call ------------------------------------------------------------------------------

NAMES = ("0000000", "0000001", "0000002")  # split into 1 and 2


def whole_batch() -> FlowBatch:
    return next(batches((0, 1)))


def batches(part: tuple[int, int], samples: int = len(NAMES)) -> Any:
    return training_batches(
        Scenes(NAMES[:samples], points=LEAST + 50),
        range(samples),
        points=LEAST,
        batch_size=len(NAMES),
        seed=0,
        epoch=0,
        augmentation=AugmentSettings(),
        part=part,
    )


def own_batch(samples: int = len(NAMES)) -> FlowBatch:
    """This process's part of the batch; the whole batch in a single process."""
    return next(batches((distributed.rank(), distributed.size()), samples))


def meta_val(number: int) -> Any:
    return iter([whole_batch().of_samples(number % 2, number % 2 + 2)])


def build_strategy(kind: str, losses: tuple[str, ...], variant: Variant = TINY, **more: Any) -> Strategy:
    torch.manual_seed(0)  # equal adapters and critics in all processes
    strategy = STRATEGIES[kind]
    student = tiny_network(1, variant)
    with torch.no_grad():  # keep channels off the kink of the activation, where rounding decides the gradient
        for name, parameter in student.named_parameters():
            if name.endswith("bn_linear.bias"):
                parameter.normal_(0, 0.1)
    options = {"meta": {"every": 1}}.get(kind, {})
    objective = build_losses(losses, variant, BIG, {"calibration_step": 0})
    teacher = None if losses == ("none",) else Teacher(tiny_network(5, BIG))
    built = strategy(
        student,
        teacher,
        objective,
        weight_decay=1e-4,
        clip_norm=None,
        options=strategy.settings(**options),
        meta_val=meta_val,
        largest=BIG,
        seed=3,
        **more,
    )
    objective.prepare(lambda: iter([(built.teacher(batch), batch) for batch in [whole_batch()] if built.teacher]))
    built.after_preparation()
    built.begin_epoch(1, 4)
    return built


def gradients_of_a_step(kind: str, losses: tuple[str, ...], samples: int, accumulate: int = 1) -> dict[str, Any]:
    """Averaged gradients, the terms of the whole batch, and the buffers that a step changes beside the networks."""
    strategy = build_strategy(kind, losses, accumulate=accumulate)
    batch = own_batch(samples)
    log = EpochLog()
    log.add(strategy.step(batch, 1e-3, True), len(batch.names) if batch.share else 0)
    trained = [parameter for group in strategy.parameter_groups() for parameter in group]
    found = [torch.zeros(1) if p.grad is None else p.grad.flatten() for p in trained]
    state = strategy.state_dict()
    beside = {key: state["objective"][key] for key in ("kappas",)}
    teacher = state.get("teacher", {})
    return {
        "gradient": torch.cat(found).numpy(),
        "figures": log.of_all_processes().figures(),
        "kappas": beside["kappas"].numpy(),
        "teacher": [tensor.numpy() for tensor in teacher.values()],
        "critic": [
            parameter.detach().numpy() for name, parameter in strategy.objective.named_parameters() if "critic" in name
        ],
    }


def statistics_of_a_step(variant: Variant) -> dict[str, Any]:
    strategy = build_strategy("plain", ("none",), variant)
    strategy.step(own_batch(), 1e-3)
    return {name: buffer.numpy() for name, buffer in strategy.student.named_buffers()}


def poisoned_step() -> tuple[str, bool]:
    """The error where the second process's samples are NaN, and whether all weights are unchanged."""
    strategy = build_strategy("plain", ("hint",))
    before = [parameter.detach().clone() for parameter in strategy.student.parameters()]
    batch = own_batch()
    if distributed.rank() == 1:
        batch.flow.fill_(torch.nan)
    try:
        strategy.step(batch, 1e-3)
    except NonFiniteError as error:
        after = strategy.student.parameters()
        return str(error), all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return "", False


def train_lines(data: Path, runs: Path, recipe: Recipe, more: dict[str, Any]) -> list[str]:
    """Start a run; returns what this process printed."""
    progress = Quiet()
    run(job_for(data, runs, recipe, **more), progress)
    return progress.lines


def train_until_one_stops(data: Path, runs: Path, recipe: Recipe, more: dict[str, Any], steps: int) -> list[str]:
    """Only the second process is asked to stop."""
    stop = StopAfter(steps if distributed.rank() else 10**6)
    return train_lines(data, runs, recipe, {**more, "stop": stop})


def resume_lines(runs: Path, steps: int) -> list[str]:
    """Resume a run; returns what this process printed."""
    progress = Quiet()
    resume(runs / NAME, progress, StopAfter(steps))
    return progress.lines


def new_norms(data: Path, runs: Path, recipe: Recipe) -> dict[str, Any]:
    """The student before its first step."""
    student = build_parts(job_for(data, runs, recipe), Quiet()).student
    return {name: value.numpy() for name, value in student.state_dict().items()}


def digest_of_weights(data: Path, runs: Path, recipe: Recipe) -> str:
    """The digest of the weights of this process at the end of a run."""
    kept: list[BiPointFlowNet] = []
    real = pipeline.fit

    def fit(training: Any, *rest: Any) -> None:
        kept.append(training.strategy.student)
        real(training, *rest)

    pipeline.fit = fit
    train_lines(data, runs, recipe, {})
    digest = hashlib.sha256()
    for tensor in kept[-1].state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
