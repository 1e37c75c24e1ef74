# SPDX-License-Identifier: MIT
"""Measure the teacher's share of the time of a distillation step.

The configurations alternate, so other work on the machine affects all of them alike.

    python benchmarks/teacher.py --out teacher.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bpfn_cli.device import keep_freed_memory, resolve_device
from bpfn_cli.files import write_json
from bpfn_cli.losses import build_losses
from bpfn_cli.models import BiPointFlowNet, build_model, variant_named
from bpfn_cli.precision import Precision
from bpfn_cli.profiling import describe_machine
from bpfn_cli.profiling.workload import synthetic_batch
from bpfn_cli.strategies import PlainStrategy, Strategy, Teacher
from bpfn_cli.structures import FlowBatch, FlowPyramid

LEARNING_RATE = 1e-9  # leaves the networks practically unchanged


class TimedTeacher(Teacher):
    """A teacher that sums up its time, with the student's point pyramid or with its own."""

    def __init__(self, network: BiPointFlowNet, precision: Precision, shares_pyramid: bool):
        super().__init__(network, precision)
        self.shares_pyramid, self.seconds = shares_pyramid, 0.0

    def compute(self, batch: FlowBatch, student: FlowPyramid | None = None) -> FlowPyramid:
        synchronize(batch.pc1.device)
        start = time.perf_counter()
        output = super().compute(batch, student if self.shares_pyramid else None)
        synchronize(batch.pc1.device)
        self.seconds += time.perf_counter() - start
        return output


def main() -> None:
    """Measure, print a table, and write JSON."""
    options = _options()
    device = resolve_device(options.device)
    keep_freed_memory()
    batch = synthetic_batch(options.points, options.batch).to(device)
    configurations = {
        "student alone": _strategy(options, device, loss="none", teacher=None),
        "teacher": _strategy(options, device, loss=options.loss, teacher=Precision.float32),
        "teacher in bf16": _strategy(options, device, loss=options.loss, teacher=Precision.bf16),
        "teacher with its own pyramid": _strategy(
            options, device, loss=options.loss, teacher=Precision.float32, shares_pyramid=False
        ),
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in configurations}
    for turn in range(options.rounds + 1):
        for name, strategy in configurations.items():
            found = _timed_step(strategy, batch)
            if turn:  # skip the warm-up
                times[name].append(found)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        **{key: str(value) for key, value in vars(options).items()},
    }
    result["configurations"] = {name: _summary(found) for name, found in times.items()}
    print(f"{'':<30}{'step [s]':>10}{'teacher [s]':>13}{'share':>8}")
    for name, one in result["configurations"].items():
        print(f"{name:<30}{one['step_s']:>10.2f}{one['teacher_s']:>13.2f}{one['share']:>8.1%}")
    if options.out:
        write_json(options.out, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="weightnet48")
    parser.add_argument("--teacher", default="baseline")
    parser.add_argument("--loss", default="bihint")
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _strategy(
    options: argparse.Namespace,
    device: torch.device,
    *,
    loss: str,
    teacher: Precision | None,
    shares_pyramid: bool = True,
) -> Strategy:
    student, network = (build_model(name, options.points).to(device) for name in (options.student, options.teacher))
    objective = build_losses([loss], variant_named(options.student), variant_named(options.teacher)).to(device)
    objective.options = replace(objective.options, calibration_step=0)
    return PlainStrategy(
        student,
        None if teacher is None else TimedTeacher(network, teacher, shares_pyramid),
        objective,
        weight_decay=0.0,
        clip_norm=None,
    )


def _timed_step(strategy: Strategy, batch: FlowBatch) -> dict[str, float]:
    teacher = strategy.teacher
    assert teacher is None or isinstance(teacher, TimedTeacher)
    if teacher is not None:
        teacher.forget()  # the same batch again
        teacher.seconds = 0.0
    synchronize(batch.pc1.device)
    start = time.perf_counter()
    strategy.step(batch, LEARNING_RATE)
    synchronize(batch.pc1.device)
    return {"step_s": time.perf_counter() - start, "teacher_s": teacher.seconds if teacher else 0.0}


def _summary(times: list[dict[str, float]]) -> dict[str, Any]:
    medians: dict[str, Any] = {key: statistics.median(one[key] for one in times) for key in times[0]}
    share = statistics.median(one["teacher_s"] / one["step_s"] for one in times)
    return {**medians, "share": share, "times": times}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
