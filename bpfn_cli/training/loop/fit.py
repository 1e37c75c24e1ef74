# SPDX-License-Identifier: MIT
"""The training loop."""

import contextlib
import time
from collections.abc import Callable
from functools import partial

from bpfn_cli.data.loader import explained_workers
from bpfn_cli.progress import Bar
from bpfn_cli.training.loop.batches import Batches
from bpfn_cli.training.loop.checkpointer import Checkpointer
from bpfn_cli.training.loop.state import Training
from bpfn_cli.training.loop.validate import Validator


def fit(
    training: Training,
    batches_of: Callable[[int, int], Batches],
    validator: Validator | None,
    checkpointer: Checkpointer,
    bar: Bar,
) -> None:
    """Train and validate, from the present state of `training` to the end of its last epoch.

    Args: batches_of: gives the batches of an epoch from a batch on; both are counted from 0.
        validator: chooses the best checkpoint; None: the last one is used.
    Raises: NonFiniteError, DataError, DiskError, OutOfMemoryError; Interrupted: after saving.
    """
    with checkpointer.stop.deferred(), explained_workers():
        while not training.is_done:
            training.begin_epoch()
            with contextlib.closing(batches_of(training.epoch, training.batch)) as batches:
                for batch in checkpointer.guarded(batches):
                    training.step(batch)
                    bar(training.position, training.total, training.glance())
                    checkpointer.save_in_time()
                    checkpointer.stop_if_asked()
            if validator is not None and validator.is_due(training.epoch):
                started = time.monotonic()
                measure = partial(validator.measure, training.strategy.student, checkpointer.stop.check)
                training.observe(checkpointer.saving_first(measure), time.monotonic() - started)
            checkpointer.end_epoch()
            checkpointer.stop_if_asked()
