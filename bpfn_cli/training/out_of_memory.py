# SPDX-License-Identifier: MIT
"""What fits where memory has run out: found by trying, not by guessing."""

from __future__ import annotations

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
def advising(strategy: Strategy, first_batch: Callable[[], FlowBatch], recipe: Recipe) -> Iterator[None]:
    """Turn memory that runs out in the block into an error that says which size fits.

    Raises: OutOfMemoryError.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not means_out_of_memory(str(error)):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what the failed step had computed
        error.__traceback__ = None
    strategy.optimizer.zero_grad(set_to_none=True)
    if strategy.teacher is not None:
        strategy.teacher.forget()
    raise OutOfMemoryError(_advice(strategy, first_batch, recipe))


def _advice(strategy: Strategy, first_batch: Callable[[], FlowBatch], recipe: Recipe) -> str:
    size, points = recipe.train.batch_size, recipe.data.points
    problem = f"out of memory with {-(-size // recipe.train.accumulate)} samples of {points} points at once"
    if distributed.size() > 1:  # the others wait elsewhere, so nothing can be tried
        return f"{problem}; take a batch in more parts: a larger train.accumulate"
    fitting = _largest_fitting(strategy, first_batch, recipe)
    if fitting is None:
        return f"{problem}: not even one fits; lower data.points, or choose a smaller --variant or teacher"
    parts = -(-size // fitting)
    return (
        f"{problem}: {fitting} fit; --set train.accumulate={parts} takes a batch of {size} in parts of {fitting}, "
        f"batch norm seeing one at a time (or --set train.batch_size={fitting}); the last checkpoint is kept"
    )


def _largest_fitting(strategy: Strategy, first_batch: Callable[[], FlowBatch], recipe: Recipe) -> int | None:
    """The most samples at once, of the halves of what did not fit, that a step works with; None: not even one."""
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
        except MemoryError:
            continue
        except RuntimeError as error:
            if not means_out_of_memory(str(error)):
                raise
    return None
