# SPDX-License-Identifier: MIT
"""Several processes that train one network together, each on its part of every batch. Alone, all of this does nothing.

All run the same code, and all must call each function here; only the main one writes. Gradients are summed by hand, in
one piece, after the backward pass: with 8 M parameters that is 32 MB, a millisecond between GPUs, and it fits steps of
any form (two students, gradients of single terms), unlike `DistributedDataParallel`, made for one forward and backward.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from bpfn_cli.errors import BpfnError, UsageError, printable

Value = TypeVar("Value")
LONGEST_SEARCH = timedelta(minutes=10)  # for the others, some of which may be started later
LONGEST_WAIT = timedelta(days=2)  # while the main process evaluates; who dies is noticed by the launcher

_share = 1.0


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _is_joined() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _is_joined() else 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be one of the processes that the environment names (`WORLD_SIZE`, ...). Raises: UsageError: they do not meet."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _is_joined():
        yield
        return
    backend = "gloo"
    if device.type == "cuda":  # numbers and objects of the host go through gloo, gradients on GPUs through NCCL
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=LONGEST_SEARCH))
    except (dist.DistError, ValueError) as error:
        place = printable(f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}")
        problem = f"the processes of this training do not meet there ({printable(str(error).splitlines()[0])})"
        advice = "give the first machine and a free port of it, and start all of them"
        raise UsageError(f"MASTER_ADDR:MASTER_PORT {place}: {problem}; {advice}") from None
    store.set_timeout(LONGEST_WAIT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    yield
    dist.barrier()  # not reached after an error, when others may be waiting elsewhere
    dist.destroy_process_group()


def any_of(flag: bool) -> bool:
    """Whether any of the processes says so."""
    if not _is_joined():
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def gather(value: Value) -> list[Value]:
    """The values of all processes, in order."""
    if not _is_joined():
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return cast(list[Value], found)


def agreed(error: BpfnError | None) -> BpfnError | None:
    """The error of the first process that has one."""
    if not _is_joined() or not any_of(error is not None):
        return error
    found = next(one for one in gather(error) if one is not None)
    found.is_shared = True
    return found


def raise_any(error: BpfnError | None) -> None:
    """Raises: the error of the first process that has one."""
    if (found := agreed(error)) is not None:
        raise found


def from_main(function: Callable[[], Value]) -> Value:
    """What a function gives in the main process, which alone calls it; all get it, or its error."""
    if not _is_joined():
        return function()
    answer: list[Any] = [None, None]
    try:
        if is_main():
            answer[0] = function()
    except BaseException as error:
        message = (
            error if isinstance(error, BpfnError) else BpfnError(f"the main process failed: {type(error).__name__}")
        )
        message.is_shared = isinstance(error, BpfnError)
        dist.broadcast_object_list([None, message], src=0)
        raise
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return cast(Value, answer[0])


@contextlib.contextmanager
def sharing(share: float) -> Iterator[None]:
    """In the block, this process computes so large a part of a batch's samples; the parts of all sum to 1."""
    global _share  # noqa: PLW0603
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def share() -> float:
    """The part of the batch's samples that counts in this process: 1 where it is alone.

    A mean loss over this process's samples is multiplied by it, so that the gradients sum to those of the whole batch.
    """
    return _share


def summed_gradients(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums over the processes, sent in one piece; None, where it is, is so in all of them."""
    known = [gradient for gradient in gradients if gradient is not None]
    if not _is_joined() or not known:
        return list(gradients)
    whole = torch.cat([gradient.reshape(-1) for gradient in known])
    dist.all_reduce(whole)
    pieces = iter(whole.split([gradient.numel() for gradient in known]))
    return [None if gradient is None else next(pieces).view_as(gradient) for gradient in gradients]


def differentiable_sum(value: Tensor) -> Tensor:
    """The sum over the processes, through which the gradients of all of them flow."""
    return _Sum.apply(value)


class _Sum(torch.autograd.Function):
    """All processes go through their graphs in the same order, so the sums of the backward pass meet."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        found = value.contiguous().clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(None, gradient)


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
