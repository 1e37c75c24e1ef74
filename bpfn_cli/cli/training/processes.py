# SPDX-License-Identifier: MIT
"""A command that trains, as one process or several."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bpfn_cli.cli.console import ConsoleProgress, finish, print_json
from bpfn_cli.cli.places import RUNS
from bpfn_cli.launch import adopt_slurm, end_with_launcher, is_started, launch, local_rank
from bpfn_cli.parallel import usable_cores

if TYPE_CHECKING:
    import torch

    from bpfn_cli.progress import Bar, Progress
    from bpfn_cli.training import Outcome


@dataclass(frozen=True)
class Processes:
    """Where a training is computed, as typed. devices: None: one, or all that a launcher has started."""

    device: str
    devices: int | None
    nodes: int

    def adopt(self) -> bool:
        """Whether others have been started beside this process, by torchrun or srun."""
        adopt_slurm(os.environ, None if self.devices is None else self.devices * self.nodes)
        return is_started()

    @contextlib.contextmanager
    def joined(self, alone: bool = False) -> Iterator[torch.device]:
        """The device of this process, which is one of several in the block if so many are wanted.

        A process that only starts them ends here, with their exit code. alone: never start or join others.
        """
        from bpfn_cli.device import resolve_device
        from bpfn_cli.distributed import joined

        if alone:
            yield resolve_device(self.device)
            return
        if not self.adopt() and (self.devices or 1) * self.nodes > 1:
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
                f"--device {self.device}: names one of several; write --device cuda, or choose them by "
                "CUDA_VISIBLE_DEVICES"
            )
        if device.type == "cuda":
            resolve_device(f"cuda:{devices - 1}")
        return launch(devices, self.nodes, max(1, usable_cores() // devices))


class Silent:
    """Progress of a process beside the main one."""

    def line(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, what: str, samples: int | None = None) -> Iterator[Bar]:
        yield lambda done, total, figures="": None


def progress_of_process() -> Progress:
    """What this process shows."""
    from bpfn_cli.distributed import is_main

    return ConsoleProgress() if is_main() else Silent()


def conclude(outcome: Outcome, runs: Path, json: bool) -> None:
    """The last lines of a training, or its result as JSON; once, by the main process."""
    from bpfn_cli.distributed import is_main

    if not is_main():
        return
    if json:
        print_json({"run": str(outcome.folder), "result": outcome.result})
    finish(outcome.folder, "bpfn report" + ("" if runs == RUNS else f" --source {runs}"))
