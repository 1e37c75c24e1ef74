# SPDX-License-Identifier: MIT
"""Named stages of a forward pass, for measuring them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

Watch = Callable[[str], AbstractContextManager[Any]]

_watch: ContextVar[Watch | None] = ContextVar("bpfn_stages", default=None)


def stage(name: str) -> AbstractContextManager[Any]:
    """Mark what is done inside as a stage: `with stage("encoder"):`. A compiled network has no stages."""
    watch = None if torch.compiler.is_compiling() else _watch.get()
    return nullcontext() if watch is None else watch(name)


@contextmanager
def watch_stages(watch: Watch) -> Iterator[None]:
    """Enter `watch(name)` around every stage; with `torch.profiler.record_function` a trace shows them."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
