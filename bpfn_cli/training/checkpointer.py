# SPDX-License-Identifier: MIT
"""Sees to it that a training loses nothing: when its state is saved, and what is written at the end of an epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bpfn_cli import distributed
from bpfn_cli.errors import BpfnError, DataError, DiskError, Interrupted, OutOfMemoryError
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.training.state import Training
from bpfn_cli.training.stop import Interruption

Item = TypeVar("Item")

# Errors that leave a training as it was: they come from outside, between two steps.
FROM_OUTSIDE = (Interrupted, DataError, DiskError, OutOfMemoryError)


class Keeper:
    """Saves whole states of a training: every so many minutes, when a validation is the best, at the end, and before
    an interruption or an error from outside ends the work.
    """

    def __init__(self, training: Training, run: RunFolder, stop: Interruption):
        self.training, self.run, self.stop = training, run, stop
        self.seconds = 60 * training.recipe.train.checkpoint_minutes
        self.saved_at = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint of the training as it is. Raises: DiskError: those before are kept."""
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
        if not self.run.about.get("has_checkpoints"):
            self.run.record(has_checkpoints=True)
        self.saved_at = time.monotonic()

    def save_in_time(self) -> None:
        """Save where the last checkpoint is too long ago."""
        if distributed.any_of(time.monotonic() - self.saved_at >= self.seconds):
            self.save()

    def stop_if_asked(self) -> None:
        """Raises: Interrupted: after saving."""
        found = distributed.agreed(self.stop.wanted())
        if found is not None:
            self.save()
            raise found

    def guarded(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; an error in fetching one is raised after saving."""
        while True:
            fetched = self.saving_first(lambda: next(items, None), self.stop.immediate())
            if fetched is None:
                return
            yield fetched

    def saving_first(
        self, function: Callable[[], Item], context: contextlib.AbstractContextManager[None] | None = None
    ) -> Item:
        """What a function gives, which must not change the training. Errors from outside are raised after saving.

        Args: context: that it is called in.
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
        with contextlib.suppress(DiskError):  # the error that ends the work is the one to show
            self.save()
        raise error

    def end_epoch(self) -> None:
        """Write what the epoch has come to; the checkpoint last, so that it never knows more than the log."""
        training = self.training
        record = training.end_epoch()
        self.run.log_metrics(record)
        is_first = training.epoch == 1  # lest a kill cost the whole of a short training
        if (
            is_first
            or training.best == training.number
            or training.is_done
            or self.run.checkpoints.is_kept(training.number)
        ):
            self.save()
        else:
            self.save_in_time()
        validated = {} if training.best is None else {"best_validation_epe3d": training.best_epe3d}
        if training.validation_seconds:
            validated["validation_seconds"] = training.validation_seconds
        self.run.record(epochs_done=training.epoch, epoch_seconds=training.epoch_seconds, **validated)
