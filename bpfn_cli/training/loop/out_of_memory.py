# SPDX-License-Identifier: MIT
"""Advice when memory runs out: the largest batch that fits, found by trying."""

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator

import torch

from bpfn_cli import distributed
from bpfn_cli.errors import OutOfMemoryError, means_out_of_memory
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import Strategy
from bpfn_cli.structures import FlowBatch


@contextlib.contextmanager
def memory_advice(strategy: Strategy, first_batch: Callable[[], FlowBatch], recipe: Recipe) -> Iterator[None]:
    """Turn memory errors in the block into one that says which batch size fits. Raises: OutOfMemoryError."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed step
        error.__traceback__ = None
    strategy.optimizer.zero_grad(set_to_none=True)
    if strategy.teacher is not None:
        strategy.teacher.forget()
    raise OutOfMemoryError(_advice(strategy, first_batch, recipe))


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or means_out_of_memory(str(error))


def _advice(strategy: Strategy, first_batch: Callable[[], FlowBatch], recipe: Recipe) -> str:
    size, points = recipe.train.batch_size, recipe.data.points
    problem = f"out of memory with {-(-size // recipe.train.accumulate)} samples of {points} points at once"
    if distributed.size() > 1:  # the other processes wait elsewhere, so nothing can be tried
        return f"{problem}; split the batch into more parts with a larger train.accumulate"
    fitting = _largest_fitting(strategy, first_batch, recipe)
    if fitting is None:
        return f"{problem}: not even one sample fits; lower data.points, or choose a smaller --variant or teacher"
    how = f"computes a batch of {size} in parts of {fitting}, with batch norm over each part"
    how += f" (or --set train.batch_size={fitting}); the last checkpoint is kept"
    return f"{problem}: {fitting} fit; --set train.accumulate={-(-size // fitting)} {how}"


def _largest_fitting(strategy: Strategy, first_batch: Callable[[], FlowBatch], recipe: Recipe) -> int | None:
    """The largest half, quarter, ... of the batch that fits; None: not even one sample."""
    size = -(-recipe.train.batch_size // recipe.train.accumulate)
    strategy.accumulate = 1
    while size > 1:
        size = -(-size // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            strategy.trial_step(first_batch().of_samples(0, size), recipe.train.lr, recipe.train.epochs)
            return size
        except (MemoryError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
    return None
