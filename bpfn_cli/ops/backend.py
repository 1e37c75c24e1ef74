# SPDX-License-Identifier: MIT
"""Which of two equal paths computes: the plain one as published, or the fast one. `BPFN_PLAIN=1` chooses plain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_forced: ContextVar[bool | None] = ContextVar("bpfn_plain", default=None)


def is_plain() -> bool:
    """True when every operation is to be done as published: plain torch, no sharing, no algebra.

    A network compiled by `torch.compile` always takes the fast path.
    """
    if torch.compiler.is_compiling():
        return False
    forced = _forced.get()
    return os.environ.get("BPFN_PLAIN", "") == "1" if forced is None else forced


@contextmanager
def plain_path(plain: bool = True) -> Iterator[None]:
    """Choose the plain (or, with False, the fast) path inside a `with` block, whatever the environment says."""
    token = _forced.set(plain)
    try:
        yield
    finally:
        _forced.reset(token)


def runs_triton(*tensors: Tensor) -> bool:
    """True when Triton kernels are to compute on these CUDA tensors: all are float32, and the path is the fast one."""
    single = all(tensor.dtype == torch.float32 for tensor in tensors)
    return single and not is_plain() and _has_triton(tensors[0].device)


@cache
def _has_triton(device: torch.device) -> bool:
    """Triton comes with torch for CUDA on Linux, and supports compute capability 8.0 and newer."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)
