# SPDX-License-Identifier: MIT
"""When a training saves its state, and what it writes at the end of an epoch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bpfn_cli import distributed
from bpfn_cli.distributed import from_main
from bpfn_cli.errors import BpfnError, DataError, DiskError, Interrupted, OutOfMemoryError, printable
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.stop import Interruption
from bpfn_cli.training.loop.state import Training

Item = TypeVar("Item")

CHECKPOINTS_AT_ONCE = 4  # the newest two, the best, and the one being written
# Errors from outside, between two steps, that leave the training state valid.
FROM_OUTSIDE = (Interrupted, DataError, DiskError, OutOfMemoryError)


class Checkpointer:
    """Saves the training state: every few minutes, after the best validation, at the end, and before an interruption
    or an error from outside ends the work.
    """

    def __init__(self, training: Training, run: RunFolder, stop: Interruption):
        self.training, self.run, self.stop = training, run, stop
        self.seconds = 60 * training.recipe.train.checkpoint_minutes
        self.saved_at = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint. Raises: DiskError: earlier checkpoints are kept."""
        training = self.training
        state = training.state_dict()
        metadata: dict[str, Any] = {"run": self.run.path.name, "epoch": training.epoch}
        if training.best == training.number:
            metadata["validation_epe3d"] = training.best_epe3d
        distributed.from_main(
            lambda: self.run.checkpoints.save(
                training.number, training.strategy.student, state, best=training.best, **metadata
            )
        )
        if not self.run.record.has_checkpoints:
            self.run.update(has_checkpoints=True)
        self.saved_at = time.monotonic()

    def save_in_time(self) -> None:
        """Save if the last checkpoint is old enough."""
        if distributed.any_of(time.monotonic() - self.saved_at >= self.seconds):
            self.save()

    def stop_if_asked(self) -> None:
        """Raises: Interrupted: after saving."""
        found = distributed.agreed(self.stop.wanted())
        if found is not None:
            self.save()
            raise found

    def guarded(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; an error while fetching one is raised after saving."""
        while True:
            fetched = self.saving_first(lambda: next(items, None), self.stop.immediate())
            if fetched is None:
                return
            yield fetched

    def saving_first(
        self, function: Callable[[], Item], context: contextlib.AbstractContextManager[None] | None = None
    ) -> Item:
        """Call a function that does not change the training; errors from outside are raised after saving.

        Args: context: entered for the call.
        """
        error: BpfnError | None = None
        try:
            with context or contextlib.nullcontext():
                found = function()
        except FROM_OUTSIDE as one:
            error = one
        error = distributed.agreed(error)
        if error is None:
            return found
        with contextlib.suppress(DiskError):  # report the error that ended the work
            self.save()
        raise error

    def end_epoch(self) -> None:
        """Write the metrics of the epoch, then the checkpoint, which must never be ahead of the log."""
        training = self.training
        self.run.log_metrics(training.end_epoch())
        is_first = training.epoch == 1  # so that a kill never costs the whole of a short training
        is_best = training.best == training.number
        if is_first or is_best or training.is_done or self.run.checkpoints.is_kept(training.number):
            self.save()
        else:
            self.save_in_time()
        validated: dict[str, Any] = {}
        if training.best is not None:
            validated["best_validation_epe3d"] = training.best_epe3d
        if training.validation_seconds:
            validated["validation_seconds"] = training.validation_seconds
        self.run.update(epochs_done=training.epoch, epoch_seconds=tuple(training.epoch_seconds), **validated)


def check_space(folder: RunFolder, training: Training) -> None:
    """Raises: DiskError: too little space for the checkpoints to come, some of which replace existing ones."""
    if training.is_done:
        return
    weights = sum(parameter.numel() for group in training.strategy.parameter_groups() for parameter in group)
    needed = CHECKPOINTS_AT_ONCE * 3 * 4 * weights  # weights and the two moments of Adam, float32

    def check() -> None:
        try:
            found = os.statvfs(folder.path)
        except OSError:
            return
        free, owned = found.f_bavail * found.f_frsize, folder.checkpoints.replaceable_bytes(training.best)
        if free + owned < needed:
            raise DiskError(
                f"{printable(folder.path)}: checkpoints need {(needed - owned) / 1e6:,.0f} MB, but only "
                f"{free / 1e6:,.0f} MB are free; free some space, or choose another --runs"
            )

    from_main(check)
