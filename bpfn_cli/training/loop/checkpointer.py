# SPDX-License-Identifier: MIT
"""When a training saves its state, and what it writes at the end of an epoch."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
    """Saves the training state: every few minutes, after the best validation, at the end, and before it is stopped."""

    def __init__(self, training: Training, run: RunFolder, stop: Interruption):
        self.training, self.run, self.stop = training, run, stop
        self.seconds = 60 * training.recipe.train.checkpoint_minutes
        self.saved_at = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint. Raises: DiskError: earlier checkpoints are kept."""
        training, save = self.training, self.run.checkpoints.save
        metadata: dict[str, Any] = {"run": self.run.path.name, "epoch": training.epoch, "best": training.best}
        if training.best == training.number:
            metadata[f"validation_{training.selected_by}"] = training.best_value
        state = training.state_dict()  # in all processes
        from_main(lambda: save(training.number, training.strategy.student, state, **metadata))
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
        while (fetched := self.saving_first(lambda: next(items, None), self.stop.immediate())) is not None:
            yield fetched

    def saving_first(self, function: Callable[[], Item], within: AbstractContextManager[None] | None = None) -> Item:
        """Call a function that does not change the training; errors from outside are raised after saving."""
        error: BpfnError | None = None
        try:
            with within or contextlib.nullcontext():
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
        is_kept = training.best == training.number or self.run.checkpoints.is_kept(training.number)
        if is_first or is_kept or training.is_done:
            self.save()
        else:
            self.save_in_time()
        validated: dict[str, Any] = {}
        if training.best is not None:
            validated["selected_by"] = training.selected_by
            if training.selected_by == "epe3d":
                validated["best_validation_epe3d"] = training.best_value
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
            problem = f"need {(needed - owned) / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free"
            advice = "free some space, or choose another --runs"
            raise DiskError(f"{printable(folder.path)}: checkpoints {problem}; {advice}")

    from_main(check)
