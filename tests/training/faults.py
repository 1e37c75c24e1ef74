# SPDX-License-Identifier: MIT
"""Faults to plant in the process of a training before it starts. Each happens while its switch file exists."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bpfn_cli import files
from bpfn_cli.data import loader
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.strategies import Strategy


@dataclass(frozen=True)
class Fault:
    """A fault, planted by a call in the new process.

    Attributes: name: of a function below. switch: the fault happens while this file exists.
    """

    name: str
    switch: Path

    def __call__(self) -> None:
        globals()[self.name](self.switch)


def slow_save(switch: Path) -> None:
    """Writing a checkpoint hangs."""

    def fsync(descriptor: int) -> None:
        if switch.exists() and "/checkpoints/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            switch.with_suffix(".begun").touch()
            time.sleep(60)

    files.os.fsync = fsync  # type: ignore[attr-defined]


def broken_disk(switch: Path) -> None:
    """fsync fails."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if switch.exists():
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    files.os.fsync = fsync  # type: ignore[attr-defined]


def _in_workers(switch: Path, what: Callable[[], None]) -> None:
    main, real = os.getpid(), loader.keyed_generator

    def keyed_generator(*arguments: Any) -> Any:
        if os.getpid() != main and switch.exists():
            switch.with_suffix(".begun").touch()
            what()
        return real(*arguments)

    loader.keyed_generator = keyed_generator


def hanging_workers(switch: Path) -> None:
    """Workers hang in a read."""
    _in_workers(switch, lambda: time.sleep(600))


def killed_workers(switch: Path) -> None:
    """The system kills a worker because memory is short."""
    _in_workers(switch, lambda: os.kill(os.getpid(), signal.SIGKILL))


def gpu_memory(switch: Path) -> None:
    """A GPU whose memory fits a single sample."""
    real = BiPointFlowNet.forward

    def forward(self: BiPointFlowNet, pc1: torch.Tensor, *rest: Any, **more: Any) -> Any:
        if switch.exists() and len(pc1) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, pc1, *rest, **more)

    BiPointFlowNet.forward = forward  # type: ignore[method-assign]


def little_memory(switch: Path) -> None:
    """This process cannot allocate more memory from the third step on."""
    real = Strategy.step

    def step(self: Strategy, *rest: Any, **more: Any) -> Any:
        if self.steps == 2 and switch.exists():
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), hard))
            bytearray(1 << 28)
        return real(self, *rest, **more)

    Strategy.step = step  # type: ignore[method-assign]


def poisoned_loss(switch: Path) -> None:
    """The loss is NaN from the third step on."""
    real = Strategy.run

    def run(self: Strategy, *rest: Any, **more: Any) -> Any:
        output = real(self, *rest, **more)
        if self.steps >= 2 and switch.exists():
            return output.mapped(lambda level, tensor: tensor * torch.nan)
        return output

    Strategy.run = run  # type: ignore[method-assign]
