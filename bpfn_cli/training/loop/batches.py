# SPDX-License-Identifier: MIT
"""The batches of a job, on its device."""

import contextlib
from collections.abc import Generator, Sequence

from bpfn_cli import distributed
from bpfn_cli.cores import usable_cores
from bpfn_cli.data.loader import training_batches
from bpfn_cli.errors import BpfnError
from bpfn_cli.structures import FlowBatch
from bpfn_cli.training.job import Job

MOST_WORKERS = 8  # a sample is read and augmented in milliseconds

Batches = Generator[FlowBatch, None, None]


def epoch_batches(
    job: Job, indices: Sequence[int], epoch: int, start: int = 0, *, shared: bool = False, in_process: bool = False
) -> Batches:
    """The batches of the scenes `indices` in an epoch, from batch `start` on.

    Args: shared: only this process's part of each batch. in_process: load without worker processes, for a few batches.
    """
    data = job.recipe.data
    batches = training_batches(
        job.data.train,
        indices,
        points=data.points,
        batch_size=job.recipe.train.batch_size,
        seed=job.recipe.seed,
        epoch=epoch,
        augmentation=data.augment,
        workers=0 if in_process else _workers(job),
        views=data.views,
        start=start,
        timeout=data.timeout,
        part=(distributed.rank(), distributed.size()) if shared else (0, 1),
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield batch.to(job.device)


def first_batch(job: Job) -> FlowBatch:
    """The first batch of the training, or this process's part of it."""
    error: BpfnError | None = None
    with contextlib.closing(epoch_batches(job, job.split.learn, 0, shared=True, in_process=True)) as batches:
        try:
            batch = next(batches)
        except BpfnError as one:
            error = one
    distributed.raise_any(error)
    return batch


def _workers(job: Job) -> int:
    """Loader processes: none beside a CPU that computes, unless the recipe says otherwise."""
    if job.recipe.data.workers is not None:
        return job.recipe.data.workers
    return 0 if job.device.type == "cpu" else max(1, min(MOST_WORKERS, usable_cores() - 1))
