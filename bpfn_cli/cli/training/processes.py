# SPDX-License-Identifier: MIT
"""Run a training command as one process or several."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bpfn_cli.cli.console import ConsoleProgress, finish, print_json
from bpfn_cli.cli.places import note_more_than_cores, report_command
from bpfn_cli.cores import usable_cores
from bpfn_cli.launch import end_with_launcher, is_started, launch, local_rank, refuse_plain_srun

if TYPE_CHECKING:
    import torch

    from bpfn_cli.progress import Bar, Progress
    from bpfn_cli.training.pipeline import Outcome


@dataclass(frozen=True)
class Processes:
    """Where to train, as typed. devices: None: one, or as many as a launcher has started."""

    device: str
    devices: int | None
    nodes: int

    def __post_init__(self) -> None:
        """Raises: UsageError: `srun` started tasks that do not know of each other."""
        if (self.devices or 1) * self.nodes == 1:
            refuse_plain_srun()

    @contextlib.contextmanager
    def joined(self, alone: bool = False) -> Iterator[torch.device]:
        """Start or join the processes that were asked for; yield the device of this one.

        A process that only starts the others exits here, with their exit code. alone: never start or join others.
        """
        from bpfn_cli.device import resolve_device
        from bpfn_cli.distributed import joined

        if alone:
            yield resolve_device(self.device)
            return
        if not is_started() and (self.devices or 1) * self.nodes > 1:
            sys.exit(self._launch())
        device = resolve_device(self.device, local_rank())
        end_with_launcher()
        with joined(device):
            yield device

    def _launch(self) -> int:
        from bpfn_cli.device import resolve_device
        from bpfn_cli.errors import UsageError

        devices = self.devices or 1
        device = resolve_device(self.device)
        if device.index is not None:
            raise UsageError(
                f"--device {self.device}: names a single GPU; write --device cuda, or choose GPUs with "
                "CUDA_VISIBLE_DEVICES"
            )
        if device.type == "cuda":
            resolve_device(f"cuda:{devices - 1}")
        else:
            note_more_than_cores(devices)
        return launch(devices, self.nodes, max(1, usable_cores() // devices))


class Silent:
    """Progress of a process other than the main one."""

    def line(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, what: str, samples: int | None = None) -> Iterator[Bar]:
        yield lambda done, total, figures="": None


def process_progress() -> Progress:
    """Progress that only the main process shows."""
    from bpfn_cli.distributed import is_main

    return ConsoleProgress() if is_main() else Silent()


def conclude(outcome: Outcome, runs: Path, json: bool) -> None:
    """Print the result of a training, once, from the main process."""
    from bpfn_cli.distributed import is_main

    if not is_main():
        return
    if json:
        print_json({"run": str(outcome.folder), "result": outcome.result and outcome.result.as_dict()})
    finish(outcome.folder, *report_command(runs))
